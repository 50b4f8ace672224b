//! A kernel that visits tiles, with what it needs before it: the map of tiles that masks hide, the table of packed sequences.
//! The forward pass is one stage, the gradient of queries another, that of keys and values a third.

use super::uniforms::{BiasDivision, Division, uniforms};
use super::{FlashParams, FlashShapes};
use crate::arguments::{Argument, bind};
use crate::dispatch::{Kernel, Launch, Scratch, scratch};
use crate::error::require;
use crate::hook;
use crate::packed::{ONE, Schedule, ScheduleTable, Side};
use crate::shader::{AccessKind, Binding, Chain, Gradient, Shader, file};
use crate::slices::cut;
use crate::softmax::Portable;
use crate::{Caps, Gpu, Result, Slice, Tensor};
use std::ops::Range;

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
    pub schedule: Option<(Launch, wgpu::Buffer)>,
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

/// ALiBi's slopes, four a row.
fn slopes(params: &FlashParams, heads: usize) -> Result<Option<Vec<[f32; 4]>>> {
    let Some(slopes) = &params.alibi_slopes else { return Ok(None) };
    require(slopes.len() == heads, "alibi_slopes.len()", slopes.len(), format!("{heads}, one a query head"))?;
    let four = |four: &[f32]| std::array::from_fn(|i| four.get(i).copied().unwrap_or(0.0));
    Ok(Some(slopes.chunks(4).map(four).collect()))
}

/// Largest uniform table, by WebGPU's default limit.
const UNIFORM_ROWS: usize = (64 << 10) / 16;

/// A table of rows of 16 bytes: a uniform array where it fits one. Few lengths, so that few shaders differ by it.
fn table<T: bytemuck::Pod>(name: &'static str, ty: &'static str, rows: &[T]) -> (Binding, Option<Vec<u8>>) {
    let length = Some(rows.len().next_power_of_two().max(16)).filter(|&rows| rows <= UNIFORM_ROWS);
    let mut bytes = bytemuck::cast_slice(rows).to_vec();
    bytes.resize(16 * length.unwrap_or(rows.len()), 0);
    (Binding::Table { name, ty, length, write: false }, Some(bytes))
}

/// What the kernels are made of.
struct Parts<'a> {
    caps: &'a Caps,
    params: &'a FlashParams,
    shapes: &'a FlashShapes,
    engine: &'a Portable,
    pass: Pass,
    slopes: Option<Vec<[f32; 4]>>,
    packed: Option<Schedule>,
    /// Words of the tile map from one tile of rows to the next, and from one head to the next.
    map: Option<[usize; 2]>,
}

impl Parts<'_> {
    fn chain(&self) -> Chain {
        let FlashParams { softcap, score_mod, mask_mod, .. } = self.params;
        let softcap = softcap.map(|_| "softcap");
        let alibi = self.slopes.as_ref().map(|_| "alibi");
        let bias = self.shapes.bias.as_ref().map(|_| "bias");
        Chain {
            scores: softcap.into_iter().chain(alibi).chain(bias).collect(),
            masks: self.shapes.mask.iter().map(|_| "mask").collect(),
            hooks: hook::place(score_mod, mask_mod),
            gradient: match self.pass {
                Pass::Forward => None,
                Pass::Bias => Some(Gradient::Bias),
                _ => Some(Gradient::Score),
            },
        }
    }

    /// Whether a mask may hide something else from one head than from another.
    fn masks_differ_by_head(&self) -> bool {
        let mask = self.shapes.mask.as_ref().is_some_and(|mask| mask.strides[1] != 0 && mask.shape[1] > 1);
        mask || self.chain().of_masks().hooks.iter().any(|placed| placed.says("head"))
    }

    /// The files behind the chain.
    fn chain_files(chain: &Chain) -> impl Iterator<Item = &'static str> {
        chain.scores.iter().chain(&chain.masks).map(|&name| match name {
            "softcap" => file::SCORE_SOFTCAP,
            "alibi" => file::SCORE_ALIBI,
            "bias" => file::SCORE_BIAS,
            _ => file::SCORE_MASK,
        })
    }

    /// The table of sequences, and the file that reads it.
    fn sequences(&self) -> ((Binding, Option<Vec<u8>>), &'static str) {
        let [batch, _, queries, _] = self.shapes.q.shape;
        let storage = |contents| {
            let binding = Binding::Table { name: "sequences", ty: "vec4u", length: None, write: false };
            ((binding, contents), file::WORK_PACKED)
        };
        match self.packed.as_ref().map(|schedule| &schedule.table) {
            Some(ScheduleTable::Host(rows)) => storage(Some(bytemuck::cast_slice(rows).to_vec())),
            Some(ScheduleTable::Gpu(_)) => storage(None),
            None => {
                let length = |s: &Option<Vec<usize>>, b: usize, all: usize| s.as_ref().map_or(all, |s| s[b]) as u32;
                let FlashShapes { seqlens_q, seqlens_k, k, .. } = self.shapes;
                let rows: Vec<[u32; 4]> = (0..batch)
                    .map(|b| [0, length(seqlens_q, b, queries), 0, length(seqlens_k, b, k.shape[2])])
                    .collect();
                (table("sequences", "vec4u", &rows), file::WORK_PADDED)
            }
        }
    }

    fn kernel(
        &self,
        name: &str,
        arguments: Vec<Argument>,
        tables: Vec<(Binding, Option<Vec<u8>>)>,
        files: Vec<&'static str>,
        chain: Chain,
        slices: &[Slice],
    ) -> Kernel {
        let [batch, _, _, head_dim] = self.shapes.q.shape;
        let (fixed, tables): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        let fixed = std::iter::once(Binding::Uniform { name: "params", ty: "Params" }).chain(fixed).collect();
        let (bindings, accesses) = bind(self.caps, &arguments, fixed);
        let files = files.into_iter().chain(Self::chain_files(&chain)).collect();
        let division = Division {
            tiles: self.rows().div_ceil(self.engine.rows as usize),
            sequences: self.packed.as_ref().map_or(batch, |schedule| schedule.sequences),
            map: self.map.unwrap_or_default(),
            scored: self.chain().scores_change(),
            side: self.pass.side(),
            bias: self.bias_division(),
        };
        let uniforms = slices
            .iter()
            .map(|slice| uniforms(self.caps, self.params, self.shapes, division, &arguments, slice))
            .collect();
        let constants = self.engine.constants(head_dim, self.shapes.v.shape[3]);
        let shader = Shader { name: name.into(), constants, bindings, accesses, chain: Some(chain), files };
        Kernel { shader, arguments, uniforms, tables }
    }

    /// What the gradient of a bias adds up, and its tiles.
    fn bias_division(&self) -> BiasDivision {
        if self.pass != Pass::Bias {
            return BiasDivision::default();
        }
        let (pairs, bias) = (self.shapes.pairs(), self.shapes.bias_shape());
        let tiles = [1, 1, self.engine.rows as usize];
        let together = std::array::from_fn(|i| if bias[i] == pairs[i] { 1 } else { pairs[i].div_ceil(tiles[i]) });
        BiasDivision { key_tiles: pairs[3].div_ceil(self.engine.cols as usize), together }
    }

    /// Rows of the tensor whose tiles workgroups own.
    fn rows(&self) -> usize {
        match self.pass.side() {
            Side::Queries => self.shapes.q.shape[2],
            Side::Keys => self.shapes.k.shape[2],
        }
    }

    fn main(&self, arguments: Vec<Argument>, slices: &[Slice]) -> Kernel {
        let (sequences, work) = self.sequences();
        let mut tables = vec![sequences];
        tables.extend(self.slopes.as_ref().map(|slopes| table("slopes", "vec4f", slopes)));
        tables.extend(self.map.map(|_| (tile_map(false), None)));
        let stats = Binding::Table { name: "stats", ty: "vec2f", length: None, write: false };
        tables.extend((self.pass != Pass::Forward).then_some((stats, None)));
        let mut files = vec![
            file::PARAMS,
            file::SCORE_TILE,
            file::ACCUMULATE,
            work,
            self.tiles(),
            if self.map.is_some() { file::MAPPED } else { file::UNMAPPED },
            file::ROWS_STRIDED,
            file::SCORE_POSITION,
            file::ELEMENT,
        ];
        files.extend(self.pass.files());
        self.kernel(self.pass.name(), arguments, tables, files, self.chain(), slices)
    }

    fn tiles(&self) -> &'static str {
        match self.pass.side() {
            Side::Queries => file::TILES_DENSE,
            Side::Keys => file::TILES_DENSE_KEYS,
        }
    }

    fn map(&self, slices: &[Slice]) -> Kernel {
        let (sequences, work) = self.sequences();
        let tables = vec![sequences, (tile_map(true), None)];
        let mask = self.shapes.mask.as_ref().map(|layout| Argument {
            name: "mask",
            layout: layout.clone(),
            kind: AccessKind::Load1,
            group: 1,
            spread: 1,
            buffer: 0,
            whole: self.packed.is_some(),
        });
        let arguments = mask.into_iter().collect();
        let files = vec![
            file::PARAMS,
            file::TILE_MAP,
            work,
            self.tiles(),
            file::MAPPED,
            file::ROWS_STRIDED,
            file::SCORE_POSITION,
            file::ELEMENT,
        ];
        self.kernel("tile map", arguments, tables, files, self.chain().of_masks(), slices)
    }
}

fn tile_map(write: bool) -> Binding {
    Binding::Table { name: "tile_map", ty: "u32", length: None, write }
}
