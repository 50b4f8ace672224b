//! A kernel that visits tiles, with what it needs before it: the map of tiles that masks hide, the table of packed sequences.
//! The forward pass is one stage, the gradient of queries another, that of keys and values a third.

mod parts;

use super::{FlashParams, FlashShapes};
use crate::arguments::Argument;
use crate::dispatch::{Kernel, Launch, Scratch, scratch};
use crate::packed::{ONE, Schedule, ScheduleTable, Side, judge};
use crate::shader::file;
use crate::slices::cut;
use crate::softmax::Portable;
use crate::tensor::Verdict;
use crate::{Caps, CuSeqlensShape, Gpu, Result, Slice, Tensor};
use parts::{Parts, slopes};
use std::ops::Range;
use std::sync::Arc;

/// What a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    /// Gradient of queries.
    Queries,
    /// Gradients of keys and values.
    KeysAndValues,
    /// One of them alone.
    Keys,
    Values,
    /// Gradient of the bias.
    Bias,
}

impl Pass {
    pub fn side(self) -> Side {
        match self {
            Pass::KeysAndValues | Pass::Keys | Pass::Values => Side::Keys,
            _ => Side::Queries,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "flash portable",
            Pass::Queries => "flash portable dq",
            Pass::KeysAndValues => "flash portable dk dv",
            Pass::Keys => "flash portable dk",
            Pass::Values => "flash portable dv",
            Pass::Bias => "flash portable dbias",
        }
    }

    fn files(self) -> Vec<&'static str> {
        let keys = [file::PORTABLE_DKV, file::SIDES_DKV, file::GRADIENTS, file::ROWS_STRIDED_GRADIENTS];
        match self {
            Pass::Forward => vec![file::PORTABLE, file::SIDES_FORWARD, file::STATE_SOFTMAX, file::EPILOGUE_FINAL],
            Pass::Queries => vec![file::PORTABLE_DQ, file::SIDES_DQ, file::GRADIENTS, file::ROWS_STRIDED_GRADIENTS],
            Pass::KeysAndValues => [&keys[..], &[file::DK, file::DV]].concat(),
            Pass::Keys => [&keys[..], &[file::DK, file::NO_DV]].concat(),
            Pass::Values => [&keys[..], &[file::NO_DK, file::DV]].concat(),
            Pass::Bias => vec![file::PORTABLE_DBIAS, file::SIDES_DQ, file::GRADIENTS, file::ROWS_STRIDED_GRADIENTS],
        }
    }
}

/// A stage as planned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    pub main: Kernel,
    /// Finds out which tiles the masks leave anything of.
    pub map: Option<Kernel>,
    /// Makes the table of packed sequences, where their offsets are on the GPU.
    pub schedule: Option<Kernel>,
    /// Tables that kernels write for one another: names and sizes in bytes.
    pub scratch: Vec<(&'static str, u64)>,
    pub slices: Vec<Slice>,
    /// The slices for which the map is made: the same, or with one head each.
    pub map_slices: Vec<Slice>,
    /// Why tiles are skipped or not, where masks are asked.
    pub masks: Option<String>,
}

/// Tiles of a word of the tile map: two bits each.
const TILES_PER_WORD: usize = 16;

impl Stage {
    /// Plans a pass over tensors that are checked to fit together. A tile costs `flops_per_pair` for each pair of its rows
    /// and columns.
    pub fn plan(
        caps: &Caps,
        params: &FlashParams,
        shapes: &FlashShapes,
        engine: &Portable,
        pass: Pass,
        arguments: Vec<Argument>,
        flops_per_pair: f64,
    ) -> Result<Self> {
        let [batch, heads_q, queries, _] = shapes.q.shape;
        let [_, heads_kv, keys, _] = shapes.k.shape;
        let slopes = slopes(params, heads_q)?;
        let (side, tile) = (pass.side(), engine.rows as usize);
        let packed = shapes.packed().map(|sides| Schedule::plan(caps, sides, [queries, keys], side, tile));
        let packed = packed.transpose()?;
        let mut parts = Parts { caps, params, shapes, engine, pass, slopes, packed, map: None };
        let pairs = shapes.pairs();
        let (heads, group, all_cols, longest) = match side {
            Side::Queries => (heads_q, 1, keys, pairs[3]),
            Side::Keys => (heads_kv, heads_q / heads_kv, queries, pairs[2]),
        };
        let bias = parts.bias_division();
        let [bias_batch, bias_heads, ..] = shapes.bias_shape();
        let (batch, heads) = if pass == Pass::Bias { (bias_batch, bias_heads) } else { (batch, heads) };
        let (tiles, cols) = match &parts.packed {
            _ if pass == Pass::Bias => {
                let query_tiles = pairs[2].div_ceil(tile) / bias.together[2].max(1);
                (query_tiles * bias.key_tiles, engine.cols as usize * bias.together.iter().product::<usize>())
            }
            Some(schedule) => (schedule.items, schedule.cols),
            None => (parts.rows().div_ceil(tile), all_cols),
        };
        let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
        let tile_flops = f64::from(engine.rows) * (cols * group) as f64 * flops_per_pair;
        let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, tile_flops)? };

        let words = longest.div_ceil(engine.cols as usize).div_ceil(TILES_PER_WORD).max(1);
        let by_head = parts.masks_differ_by_head();
        let strides = if by_head { [words * heads_q, words] } else { [words, 0] };
        let map_bytes = 4 * (batch * tiles * strides[0]) as u64;
        // The gradient of a bias goes by tiles of keys, not by visits: it has no use for a map.
        let masks = (parts.chain().masks_hide() && pass != Pass::Bias).then(|| {
            parts.map = Some(strides);
            let buffers = parts.main(arguments.clone(), &slices).shader.storage_buffers();
            if buffers > u64::from(caps.storage_buffers) || map_bytes > caps.binding_bytes {
                parts.map = None;
                return format!(
                    "masks are asked in every tile: a map of what they hide would need {buffers} storage buffers of {}, \
                     and a binding of {map_bytes} bytes of {}",
                    caps.storage_buffers, caps.binding_bytes
                );
            }
            let once = if by_head { "for each head" } else { "once for all heads" };
            format!("masks are asked first, {once}, and tiles that they hide are skipped")
        });
        let main = parts.main(arguments, &slices);
        let buffers = main.shader.storage_buffers();
        caps.within("flash", "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;
        let heads_of = |s: &Slice| if by_head { s.heads.start * group..s.heads.end * group } else { 0..1 };
        let map_slices: Vec<Slice> = slices.iter().map(|s| Slice { heads: heads_of(s), ..s.clone() }).collect();
        let map = parts.map.map(|_| parts.map(&map_slices));
        let mut scratch = vec![];
        scratch.extend(map.is_some().then_some(("tile_map", map_bytes)));
        let mut schedule = None;
        if let Some(packed) = parts.packed
            && let entries = packed.entries()
            && let ScheduleTable::Gpu(kernel) = packed.table
        {
            schedule = Some(*kernel);
            scratch.extend([("sequences", 16 * entries as u64), ("problem", 16)]);
        }
        Ok(Self { main, map, schedule, scratch, slices, map_slices, masks })
    }

    /// The kernels in the order in which they run.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.schedule.iter().chain(&self.map).chain([&self.main])
    }
}

/// A stage compiled.
#[derive(Debug)]
pub(super) struct StagePrepared {
    main: Launch,
    map: Option<Launch>,
    map_slices: Vec<Slice>,
    /// With the words that say what was wrong.
    schedule: Option<(Launch, wgpu::Buffer)>,
}

impl StagePrepared {
    /// `shared` are tables that other stages use too.
    pub async fn new(gpu: &Gpu, stage: &Stage, shared: &Scratch) -> Result<Self> {
        let mut tables = scratch(gpu, &stage.scratch).await?;
        tables.extend(shared.iter().map(|(name, buffer)| (*name, buffer.clone())));
        let launch = async |kernel, slices: &[Slice]| Launch::prepare(gpu, kernel, slices, &tables).await;
        let main = launch(&stage.main, &stage.slices).await?;
        let map = match &stage.map {
            Some(map) => Some(launch(map, &stage.map_slices).await?),
            None => None,
        };
        let schedule = match &stage.schedule {
            Some(kernel) => Some((launch(kernel, &[ONE]).await?, tables["problem"].clone())),
            None => None,
        };
        Ok(Self { main, map, map_slices: stage.map_slices.clone(), schedule })
    }

    pub fn gpu(&self) -> &Gpu {
        self.main.gpu()
    }

    pub fn slices(&self) -> &[Slice] {
        self.main.slices()
    }

    /// Checks that the tensors are as prepared, and that the slices are there.
    pub fn check(&self, tensors: &[&Tensor], which: &Range<usize>) -> Result<()> {
        self.main.check(tensors, which).map(|_| ())
    }

    /// Records a copy of what was found wrong in offsets on the GPU, which later work does not change.
    pub async fn verdict(&self, encoder: &mut wgpu::CommandEncoder, shapes: &FlashShapes) -> Result<Option<Verdict>> {
        let (Some((schedule, problem)), Some(sides)) = (&self.schedule, shapes.packed()) else { return Ok(None) };
        if self.slices().is_empty() {
            return Ok(None);
        }
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let words = schedule.gpu().buffer("problem", problem.size(), usage, &[]).await?;
        encoder.copy_buffer_to_buffer(problem, 0, &words, 0, problem.size());
        let sides = sides.map(CuSeqlensShape::clone);
        let rows = [shapes.q.shape[2], shapes.k.shape[2]];
        Ok(Some(Verdict { words, judge: Arc::new(move |words| judge(words, [&sides[0], &sides[1]], rows)) }))
    }

    /// Records the slices `which`. `offsets` are those of packed sequences on the GPU.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        tensors: &[&Tensor],
        mask: Option<&Tensor>,
        offsets: &[&Tensor],
        which: Range<usize>,
    ) -> Result<()> {
        self.check(tensors, &which)?;
        if let Some((schedule, _)) = self.schedule.as_ref().filter(|_| !which.is_empty()) {
            schedule.encode(pass, offsets, 0..1)?;
        }
        if let Some(map) = &self.map {
            let mask: Vec<&Tensor> = mask.into_iter().collect();
            // Slices that differ by their heads only may share a map. It is made anew in every command buffer, because
            // others may use it in between.
            let slices = &self.map_slices;
            for i in which.clone().filter(|&i| !slices[which.start..i].contains(&slices[i])) {
                map.encode(pass, &mask, i..i + 1)?;
            }
        }
        self.main.encode(pass, tensors, which)
    }
}
