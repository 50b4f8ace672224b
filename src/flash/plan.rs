//! What will run for given params and shapes: decided without a GPU.

use super::uniforms::{Division, uniforms};
use super::{FlashParams, FlashShapes, check_params, check_shapes};
use crate::arguments::{Argument, bind};
use crate::dispatch::Kernel;
use crate::error::require;
use crate::hook;
use crate::packed::{Schedule, ScheduleTable};
use crate::shader::{AccessKind, Binding, Chain, Shader, file};
use crate::slices::cut;
use crate::softmax::Portable;
use crate::{Caps, Layout, Result, Slice};
use std::fmt;

/// What runs and why. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct FlashPlan {
    pub(crate) attention: Kernel,
    /// Finds out which tiles the masks leave anything of.
    pub(crate) map: Option<Kernel>,
    /// Makes the table of packed sequences, where their offsets are on the GPU.
    pub(crate) schedule: Option<Kernel>,
    /// Tables that kernels write for one another: names and sizes in bytes.
    pub(crate) scratch: Vec<(&'static str, u64)>,
    engine: Portable,
    slices: Vec<Slice>,
    /// The slices of the map: the same, or with one head each.
    map_slices: Vec<Slice>,
    /// Why tiles are skipped or not, where masks are asked.
    masks: Option<String>,
}

/// Tiles of a word of the tile map: two bits each.
const TILES_PER_WORD: usize = 16;

impl FlashPlan {
    /// Chooses variant, tile sizes and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device
    /// that has too little.
    pub fn new(caps: &Caps, params: &FlashParams, shapes: &FlashShapes) -> Result<Self> {
        check_params(caps, params)?;
        check_shapes(shapes)?;
        let [batch, heads, queries, head_dim] = shapes.q.shape;
        let [_, heads_kv, keys, value_dim] = shapes.v.shape;
        let engine = Portable::plan(caps, "flash", head_dim, value_dim)?;
        caps.within("out", "maxBufferSize", shapes.out.byte_span()?.end, caps.buffer_bytes)?;
        let slopes = slopes(params, heads)?;
        let packed = shapes.packed().map(|sides| Schedule::plan(caps, sides, [queries, keys], engine.rows as usize));
        let packed = packed.transpose()?;

        let (tiles, tile_keys) = match &packed {
            Some(schedule) => (schedule.items, schedule.keys),
            None => (queries.div_ceil(engine.rows as usize), keys),
        };
        let arguments = arguments(shapes, heads / heads_kv);
        let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
        let tile_flops = 2.0 * f64::from(engine.rows) * tile_keys as f64 * (head_dim + value_dim) as f64;
        let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, tile_flops)? };

        let mut parts = Parts { caps, params, shapes, engine: &engine, slopes, packed, map: None };
        let words = shapes.pairs()[3].div_ceil(engine.cols as usize).div_ceil(TILES_PER_WORD).max(1);
        let by_head = parts.masks_differ_by_head();
        let strides = if by_head { [words * heads, words] } else { [words, 0] };
        let map_bytes = 4 * (batch * tiles * strides[0]) as u64;
        let masks = parts.chain().masks_hide().then(|| {
            parts.map = Some(strides);
            let buffers = parts.attention(arguments.clone(), &slices).shader.storage_buffers();
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
        let attention = parts.attention(arguments, &slices);
        let buffers = attention.shader.storage_buffers();
        caps.within("flash", "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;
        let heads_of = |slice: &Slice| if by_head { slice.heads.clone() } else { 0..1 };
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
        Ok(Self { attention, map, schedule, scratch, engine, slices, map_slices, masks })
    }

    /// The boxes of work that are dispatched one after another. None of them takes long.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The slices for which the map of tiles is made: those of [`FlashPlan::slices`] cut to what differs.
    pub(crate) fn map_slices(&self) -> &[Slice] {
        &self.map_slices
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = self.schedule.iter().chain(&self.map).chain([&self.attention]);
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

fn arguments(shapes: &FlashShapes, group: usize) -> Vec<Argument> {
    let all = [
        ("q", Some(&shapes.q), AccessKind::Load4, 1),
        ("k", Some(&shapes.k), AccessKind::Load4, group),
        ("v", Some(&shapes.v), AccessKind::Load4, group),
        ("out", Some(&shapes.out), AccessKind::Store4, 1),
        ("lse", Some(&shapes.lse), AccessKind::StoreBits, 1),
        ("bias", shapes.bias.as_ref(), AccessKind::Load1, 1),
        ("mask", shapes.mask.as_ref(), AccessKind::Load1, 1),
    ];
    all.into_iter()
        .zip(shapes.buffers)
        .filter_map(|((name, layout, kind, group), buffer)| {
            let whole = shapes.packed().is_some() && ["bias", "mask"].contains(&name);
            Some(Argument { name, layout: layout?.clone(), kind, group, buffer, whole })
        })
        .collect()
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
    slopes: Option<Vec<[f32; 4]>>,
    packed: Option<Schedule>,
    /// Words of the tile map from one tile of queries to the next, and from one head to the next.
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
        let [batch, _, queries, head_dim] = self.shapes.q.shape;
        let (fixed, tables): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        let fixed = std::iter::once(Binding::Uniform { name: "params", ty: "Params" }).chain(fixed).collect();
        let (bindings, accesses) = bind(self.caps, &arguments, fixed);
        let files = files.into_iter().chain(Self::chain_files(&chain)).collect();
        let division = Division {
            tiles: queries.div_ceil(self.engine.rows as usize),
            sequences: self.packed.as_ref().map_or(batch, |schedule| schedule.sequences),
            map: self.map.unwrap_or_default(),
            scored: self.chain().scores_change(),
        };
        let uniforms = slices
            .iter()
            .map(|slice| uniforms(self.caps, self.params, self.shapes, division, &arguments, slice))
            .collect();
        let constants = self.engine.constants(head_dim, self.shapes.v.shape[3]);
        let shader = Shader { name: name.into(), constants, bindings, accesses, chain: Some(chain), files };
        Kernel { shader, arguments, uniforms, tables }
    }

    fn attention(&self, arguments: Vec<Argument>, slices: &[Slice]) -> Kernel {
        let (sequences, work) = self.sequences();
        let mut tables = vec![sequences];
        tables.extend(self.slopes.as_ref().map(|slopes| table("slopes", "vec4f", slopes)));
        tables.extend(self.map.map(|_| (tile_map(false), None)));
        let files = vec![
            file::PARAMS,
            file::PORTABLE,
            file::SCORE_TILE,
            file::ACCUMULATE,
            file::SIDES_FORWARD,
            work,
            file::TILES_DENSE,
            if self.map.is_some() { file::MAPPED } else { file::UNMAPPED },
            file::ROWS_STRIDED,
            file::SCORE_POSITION,
            file::STATE_SOFTMAX,
            file::EPILOGUE_FINAL,
            file::ELEMENT,
        ];
        self.kernel("flash portable", arguments, tables, files, self.chain(), slices)
    }

    fn map(&self, slices: &[Slice]) -> Kernel {
        let (sequences, work) = self.sequences();
        let tables = vec![sequences, (tile_map(true), None)];
        let arguments = arguments(self.shapes, 1).into_iter().filter(|a| a.name == "mask").collect();
        let files = vec![
            file::PARAMS,
            file::TILE_MAP,
            work,
            file::TILES_DENSE,
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

impl fmt::Display for FlashPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flash, {}", self.engine)?;
        write!(f, "; {} slice{}", self.slices.len(), if self.slices.len() == 1 { "" } else { "s" })?;
        if let Some(note) = &self.masks {
            write!(f, "; {note}")?;
        }
        if !self.attention.shader.is_trusted() {
            write!(f, "; bounds checks stay on, because of the caller's functions")?;
        }
        for (argument, access) in self.attention.arguments.iter().zip(&self.attention.shader.accesses) {
            let Layout { shape, strides, offset, .. } = &argument.layout;
            let name = argument.name;
            if !access.wide && matches!(access.kind, AccessKind::Load4 | AccessKind::Store4) {
                write!(
                    f,
                    "; {name} moves one element at a time: width {}, strides {strides:?} and offset {offset} are not all \
                     multiples of 4",
                    shape[3]
                )?;
            }
            let first = self.attention.shader.accesses.iter().find(|other| other.binding == access.binding);
            if let Some(first) = first.filter(|first| first.name != name) {
                write!(f, "; {name} lies so near {} in one buffer that both are bound as words", first.name)?;
            }
        }
        Ok(())
    }
}
