//! What the kernels of a stage are made of: tables, files, the chain of functions that change a score.

use super::Pass;
use crate::arguments::{Argument, bind};
use crate::dispatch::Kernel;
use crate::error::require;
use crate::flash::uniforms::{BiasDivision, Division, uniforms};
use crate::flash::{FlashParams, FlashShapes};
use crate::hook;
use crate::packed::{Schedule, ScheduleTable, Side};
use crate::shader::{AccessKind, Binding, Chain, Gradient, Shader, file};
use crate::softmax::Portable;
use crate::{Caps, Result, Slice};

/// ALiBi's slopes, four a row.
pub(super) fn slopes(params: &FlashParams, heads: usize) -> Result<Option<Vec<[f32; 4]>>> {
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
pub(super) struct Parts<'a> {
    pub caps: &'a Caps,
    pub params: &'a FlashParams,
    pub shapes: &'a FlashShapes,
    pub engine: &'a Portable,
    pub pass: Pass,
    pub slopes: Option<Vec<[f32; 4]>>,
    pub packed: Option<Schedule>,
    /// Words of the tile map from one tile of rows to the next, and from one head to the next.
    pub map: Option<[usize; 2]>,
}

impl Parts<'_> {
    pub fn chain(&self) -> Chain {
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
    pub fn masks_differ_by_head(&self) -> bool {
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
            ((binding, contents), file::WORKGROUPS_PACKED)
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
                (table("sequences", "vec4u", &rows), file::WORKGROUPS_PADDED)
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
    pub fn bias_division(&self) -> BiasDivision {
        if self.pass != Pass::Bias {
            return BiasDivision::default();
        }
        let (pairs, bias) = (self.shapes.pairs(), self.shapes.bias_shape());
        let tiles = [1, 1, self.engine.rows as usize];
        let together = std::array::from_fn(|i| if bias[i] == pairs[i] { 1 } else { pairs[i].div_ceil(tiles[i]) });
        BiasDivision { key_tiles: pairs[3].div_ceil(self.engine.cols as usize), together }
    }

    /// Rows of the tensor whose tiles workgroups own.
    pub fn rows(&self) -> usize {
        match self.pass.side() {
            Side::Queries => self.shapes.q.shape[2],
            Side::Keys => self.shapes.k.shape[2],
        }
    }

    pub fn main(&self, arguments: Vec<Argument>, slices: &[Slice]) -> Kernel {
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

    pub fn map(&self, slices: &[Slice]) -> Kernel {
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
