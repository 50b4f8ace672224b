//! A kernel that visits tiles, with what it needs before it: the map of tiles that masks hide, the table of packed sequences.
//! The forward pass is one stage, the gradient of queries another, that of keys and values a third.

mod parts;

use super::tiles::Tiles;
use super::{AttentionShapes, Portable, ScoreParams};
use crate::arguments::{Argument, is_written};
use crate::dispatch::{Kernel, Launch, Scratch, scratch};
use crate::error::require;
use crate::packed::{ONE, Schedule, ScheduleTable, Side, judge};
use crate::shader::file;
use crate::slices::cut;
use crate::tensor::Verdict;
use crate::{Caps, CuSeqlensShape, Gpu, Result, Slice, Tensor};
use parts::{Parts, Work, slopes};
use std::ops::Range;
use std::sync::Arc;

/// What a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
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
    /// Score reduction.
    Reduction,
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
            Pass::Forward => "portable",
            Pass::Queries => "portable dq",
            Pass::KeysAndValues => "portable dk dv",
            Pass::Keys => "portable dk",
            Pass::Values => "portable dv",
            Pass::Bias => "portable dbias",
            Pass::Reduction => "portable score reduction",
        }
    }

    /// What a gradient pass computes, in words.
    pub fn gradients(self) -> &'static str {
        self.name().trim_start_matches("portable").trim_start()
    }

    fn files(self) -> Vec<&'static str> {
        let gradients = [file::ACCUMULATE, file::GRADIENTS, file::ROWS_STRIDED_GRADIENTS];
        let keys = [&gradients[..], &[file::PORTABLE_DKV, file::SIDES_DKV]].concat();
        match self {
            Pass::Forward => {
                vec![file::PORTABLE, file::SIDES_FORWARD, file::ACCUMULATE, file::STATE_SOFTMAX, file::EPILOGUE_FINAL]
            }
            Pass::Queries => [&gradients[..], &[file::PORTABLE_DQ, file::SIDES_DQ]].concat(),
            Pass::KeysAndValues => [&keys[..], &[file::DK, file::DV]].concat(),
            Pass::Keys => [&keys[..], &[file::DK, file::NO_DV]].concat(),
            Pass::Values => [&keys[..], &[file::NO_DK, file::DV]].concat(),
            Pass::Bias => [&gradients[..], &[file::PORTABLE_DBIAS, file::SIDES_DQ]].concat(),
            Pass::Reduction => vec![file::REDUCE_SCORES, file::SIDES_SCORES],
        }
    }

    /// Whether it goes by tiles of keys, not by what a tile of queries visits: it has no use for a map of visits.
    fn by_keys_of_all(self) -> bool {
        matches!(self, Pass::Bias | Pass::Reduction)
    }

    /// Whether it needs what the gradients know of every row.
    fn has_stats(self) -> bool {
        !matches!(self, Pass::Forward | Pass::Reduction)
    }
}

/// The cells of a score reduction, and how they lie in tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cells {
    /// Queries and keys of a cell within a tile.
    pub within: [usize; 2],
    /// Groups of heads, of queries and of keys.
    pub groups: [usize; 3],
    /// Heads, tiles of queries and tiles of keys that go together.
    pub together: [usize; 3],
    /// `MODE_…` of the shader, and the bits of its bound.
    pub mode: (u32, u32),
    /// Whether each batch entry and head is a slice or several of its own.
    pub apart: bool,
}

/// What all stages of a call are planned for: params and tensors that are checked to fit together.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub caps: &'a Caps,
    pub tiles: &'a dyn Tiles,
    pub params: &'a ScoreParams,
    pub shapes: &'a AttentionShapes,
    pub engine: &'a Portable,
    /// What goes together in a score reduction.
    pub cells: Option<Cells>,
    /// Parts of what a tile visits, each a workgroup's.
    pub splits: usize,
}

impl Setup<'_> {
    /// Family, tiles and engine in words.
    pub fn heading(&self) -> String {
        let tiles = self.tiles.describe(self.shapes, self.engine).map_or(String::new(), |tiles| format!("{tiles}; "));
        format!("{}, {tiles}{}", self.tiles.family(), self.engine)
    }
}

/// A stage as planned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    pub pass: Pass,
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

/// Whether a workgroup may go over so many columns on a device that bounds loops: by what was found to come out right there, and a
/// quarter of that besides.
fn check_rounds(setup: &Setup, pass: Pass, columns: usize) -> Result<()> {
    let Some(available) = setup.caps.loop_rounds() else { return Ok(()) };
    let by_width = match setup.shapes.q.shape[3].max(setup.shapes.v.shape[3]) {
        1..=16 => 80,
        17..=64 => 160,
        _ => 320,
    };
    let by_tile = if pass.has_stats() { 2 * by_width } else { by_width };
    let what = format!("{} attention over {columns} tokens in one loop", setup.tiles.family());
    setup.caps.within(&what, "rounds of llvmpipe's loops", (columns.div_ceil(64) * by_tile) as u64, available)
}

impl Stage {
    /// Plans a pass. A pair of a row and a column costs `flops_per_pair`. Full blocks come last among the arguments: they are
    /// left out where no mask is asked.
    pub fn plan(setup: &Setup, pass: Pass, mut arguments: Vec<Argument>, flops_per_pair: f64) -> Result<Self> {
        let Setup { caps, params, shapes, engine, .. } = *setup;
        let [_, heads_q, queries, _] = shapes.q.shape;
        let keys = shapes.k.shape[2];
        let slopes = slopes(params, heads_q)?;
        let side = pass.side();
        let packed =
            shapes.packed().map(|sides| Schedule::plan(caps, sides, [queries, keys], side, engine.rows as usize));
        let mut parts = Parts { setup: *setup, pass, slopes, packed: packed.transpose()?, map: None };
        let Work { batches, heads, group, tiles, cols, visited } = parts.work();
        arguments.retain(|argument| argument.name != "full_blocks" || parts.chain().masks_hide());
        check_rounds(setup, pass, cols.max(visited * engine.cols as usize) * group / setup.splits)?;
        let whole = Slice { batches: 0..batches, heads: 0..heads, tiles: 0..tiles };
        let tile_flops = f64::from(engine.rows) * (cols * group) as f64 * flops_per_pair;
        for name in ["blocks", "full_blocks"] {
            // What loops are bounded by must be the same for a whole workgroup: a compiler sees that of what is only read.
            let written = arguments.iter().find(|a| a.name == name).is_some_and(|a| is_written(&arguments, a.buffer));
            let bound = "in another buffer than what is written";
            require(!written, "block_mask", format!("its {name} in the buffer of an output"), bound)?;
        }
        let wholes = match setup.cells {
            Some(Cells { apart: true, .. }) => {
                let each = (0..batches).flat_map(|b| (0..heads).map(move |h| (b, h)));
                each.map(|(b, h)| Slice { batches: b..b + 1, heads: h..h + 1, tiles: 0..tiles }).collect()
            }
            _ => vec![whole],
        };
        let mut slices = vec![];
        for whole in wholes.into_iter().filter(|whole| !whole.sizes().contains(&0)) {
            slices.extend(cut(caps, &arguments, whole, tile_flops)?);
        }

        let words = visited.div_ceil(TILES_PER_WORD).max(1);
        let by_head = parts.masks_differ_by_head();
        let strides = if by_head { [words * heads_q, words] } else { [words, 0] };
        let map_bytes = 4 * (batches * tiles * strides[0]) as u64;
        let chosen = setup.tiles.choice(side, &arguments).is_some();
        let masks = (parts.chain().masks_hide() && !chosen && !pass.by_keys_of_all()).then(|| {
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
        caps.within(setup.tiles.family(), "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;
        let splits = setup.splits;
        let heads_of = |s: &Slice| match by_head {
            true => s.heads.start / splits * group..s.heads.end.div_ceil(splits) * group,
            false => 0..1,
        };
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
        Ok(Self { pass, main, map, schedule, scratch, slices, map_slices, masks })
    }

    /// The kernels in the order in which they run.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.schedule.iter().chain(&self.map).chain([&self.main])
    }
}

/// A stage compiled.
#[derive(Debug)]
pub(crate) struct StagePrepared {
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
            Some(kernel) => Some((launch(kernel, &[ONE]).await?, tables[&"problem"].clone())),
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
        self.main.check(self.used(tensors), which).map(|_| ())
    }

    /// Without the full blocks where they are left out.
    fn used<'a, 'b>(&self, tensors: &'a [&'b Tensor]) -> &'a [&'b Tensor] {
        &tensors[..self.main.arguments().min(tensors.len())]
    }

    /// Records a copy of what was found wrong in offsets on the GPU, which later work does not change.
    pub async fn verdict(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        shapes: &AttentionShapes,
    ) -> Result<Option<Verdict>> {
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
        self.main.encode(pass, self.used(tensors), which)
    }
}
