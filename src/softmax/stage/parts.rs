//! What the kernels of a stage are made of: tables, files, the chain of functions that change a score.

use super::{Cells, Pass, Setup};
use crate::Result;
use crate::error::require;
use crate::packed::{PackedWork, Schedule, Side};
use crate::program::shader::{AccessKind, Binding, Chain, Gradient, Shader, file};
use crate::program::{Argument, EACH, Heads, Part, Step, Table, float_table, small_table};
use crate::softmax::ScoreParams;
use crate::softmax::uniforms::{BiasDivision, Division, uniforms};
use crate::softmax::visibility::Extent;

/// ALiBi's slopes.
pub(super) fn slopes(params: &ScoreParams, heads: usize) -> Result<Option<Vec<f32>>> {
    let Some(slopes) = &params.alibi_slopes else { return Ok(None) };
    require(slopes.len() == heads, "alibi_slopes.len()", slopes.len(), format!("{heads}, one per query head"))?;
    Ok(Some(slopes.clone()))
}

/// The work of a pass.
pub(super) struct Work {
    pub batches: usize,
    /// Heads that workgroups own, and heads on the other side to one of them.
    pub heads: usize,
    pub group: usize,
    /// Tiles of a batch entry and head.
    pub tiles: usize,
    /// Columns that a tile visits, on average.
    pub cols: usize,
    /// Tiles of columns that one visits, at most.
    pub visited: usize,
}

/// The map of what masks hide.
#[derive(Clone, Copy)]
pub(super) struct TileMap {
    /// Words from one tile of rows to the next, and from one head to the next.
    pub strides: [usize; 2],
    pub scratch: usize,
}

/// What the kernels are made of.
pub(super) struct Parts<'a> {
    pub setup: Setup<'a>,
    pub pass: Pass,
    pub slopes: Option<Vec<f32>>,
    pub schedule: Schedule,
    pub map: Option<TileMap>,
}

/// Tables with what they hold.
type Tables = Vec<(Binding, Table)>;

impl Parts<'_> {
    pub fn chain(&self) -> Chain {
        let softcap = self.setup.params.softcap.map(|_| "softcap");
        let alibi = self.slopes.as_ref().map(|_| "alibi");
        let bias = self.setup.shapes.bias.as_ref().map(|_| "bias");
        Chain {
            scores: softcap.into_iter().chain(alibi).chain(bias).collect(),
            masks: self.setup.shapes.mask.iter().map(|_| "mask").collect(),
            hooks: self.setup.params.hooks(),
            gradient: match self.pass {
                Pass::Forward | Pass::Reduction => None,
                Pass::Bias => Some(Gradient::Bias),
                _ => Some(Gradient::Score),
            },
        }
    }

    /// Whether a mask may hide something else from one head than from another.
    pub fn masks_differ_by_head(&self) -> bool {
        let mask = self.setup.shapes.mask.as_ref().map(|mask| &mask.layout);
        mask.is_some_and(|mask| mask.strides[1] != 0 && mask.shape[1] > 1)
            || self.chain().of_masks().hooks.iter().any(|placed| placed.says(&["head"]))
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
    fn sequences(&self) -> ((Binding, Table), &'static str) {
        let packed = self.schedule.packed.is_some();
        (self.schedule.table.clone(), if packed { file::WORKGROUPS_PACKED } else { file::WORKGROUPS_PADDED })
    }

    fn kernel(
        &self,
        (name, splits): (&str, usize),
        arguments: Vec<Argument>,
        tables: Tables,
        files: Vec<&'static str>,
        chain: Chain,
        parts: &[Part],
    ) -> Step {
        let Setup { caps, shapes, engine, visibility, params, .. } = self.setup;
        let [batch, _, _, head_dim] = shapes.q.shape();
        let files = files.into_iter().chain(Self::chain_files(&chain)).collect();
        let of_chain = |name: &str| chain.scores.iter().chain(&chain.masks).any(|other| *other == name);
        let steps = [("bias", "BIAS_STEP", &shapes.bias), ("mask", "MASK_STEP", &shapes.mask)];
        let steps = steps.into_iter().filter(|(name, ..)| of_chain(name));
        let division = Division {
            tiles: self.extent().tiles,
            sequences: self.schedule.packed.map_or(batch, |packed| packed.sequences),
            map: self.map.map_or([0; 2], |map| map.strides),
            scored: self.chain().scores_change(),
            side: self.pass.side(),
            bias: self.bias_division(),
        };
        let mut constants = engine.constants(head_dim, shapes.v.shape()[3]);
        constants.extend(visibility.constants(self.pass.side(), shapes, engine));
        constants.extend(self.setup.cells.map(|cells| ("MODE", cells.mode.0)));
        constants.push(("SPLITS", splits as u32));
        constants.extend(steps.map(|(_, constant, pairs)| (constant, shapes.key_step(pairs.as_ref()))));
        let name = format!("{} {name}", visibility.family());
        let optional = [self.pass.optional(), visibility.optional()].concat();
        let shader = Shader {
            written_out: engine.written_out(caps),
            optional,
            ..Shader::of(name, constants, files, Some(chain))
        };
        let params = |part: &Part| uniforms(params, shapes, division, part);
        Step::new(caps, shader, arguments, tables, parts.to_vec(), params)
    }

    /// What the gradient of a bias adds up, and its tiles.
    pub fn bias_division(&self) -> BiasDivision {
        if self.pass != Pass::Bias {
            return BiasDivision::default();
        }
        let (pairs, bias) = (self.setup.shapes.pairs(), self.setup.shapes.bias_shape());
        let tiles = [1, 1, self.setup.engine.rows() as usize, self.setup.engine.cols() as usize];
        let together = std::array::from_fn(|i| if bias[i] == pairs[i] { 1 } else { pairs[i].div_ceil(tiles[i]) });
        BiasDivision { key_tiles: bias[3].div_ceil(tiles[3]), together }
    }

    /// The work on one batch entry and head, sequences in full length.
    fn extent(&self) -> Extent {
        self.setup.visibility.extent(self.pass.side(), self.setup.shapes, self.setup.engine)
    }

    /// The work of the pass.
    pub fn work(&self) -> Work {
        let Setup { shapes, engine, .. } = self.setup;
        let (batches, heads_q, heads_kv) = (shapes.q.shape()[0], shapes.q.shape()[1], shapes.k.shape()[1]);
        let Extent { tiles, cols, visited } = self.extent();
        let [_, _, longest_queries, longest_keys] = shapes.pairs();
        let (heads, group, longest) = match self.pass.side() {
            Side::Queries => (heads_q * self.setup.splits, 1, longest_keys),
            Side::Keys => (heads_kv, heads_q / heads_kv, longest_queries),
        };
        if let Some(Cells { within, groups, together, .. }) = self.setup.cells {
            let tile = [engine.rows() as usize, engine.cols() as usize];
            let parts = |i: usize| groups[i + 1].div_ceil(tile[i] / within[i]);
            let cols = tile[1] * together.iter().product::<usize>();
            let (batches, heads, tiles) = (shapes.pairs()[0], groups[0], parts(0) * parts(1));
            return Work { batches, heads, group, tiles, cols, visited };
        }
        match self.schedule.packed {
            _ if self.pass == Pass::Bias => {
                let [batches, heads, ..] = shapes.bias_shape();
                let BiasDivision { key_tiles, together } = self.bias_division();
                let query_tiles = longest_queries.div_ceil(engine.rows() as usize) / together[2].max(1);
                let cols = engine.cols() as usize * together.iter().product::<usize>();
                Work { batches, heads, group, tiles: query_tiles * key_tiles, cols, visited }
            }
            Some(PackedWork { items, cols, .. }) => {
                let visited = longest.div_ceil(engine.cols() as usize);
                Work { batches, heads, group, tiles: items, cols, visited }
            }
            None => Work { batches, heads, group, tiles, cols, visited },
        }
    }

    pub fn main(&self, arguments: Vec<Argument>, parts: &[Part]) -> Step {
        let (sequences, work) = self.sequences();
        let mut tables = vec![sequences];
        tables.extend(self.own_tables());
        tables.extend(self.slopes.as_ref().map(|slopes| float_table("slopes", slopes)));
        tables.extend(self.tile_map(false));
        if let (true, Some(stats)) = (self.pass.has_stats(), self.setup.stats) {
            let binding = Binding::Table { name: "stats", ty: "vec2f", length: None, write: false };
            tables.push((binding, Table::Scratch(stats)));
        }
        tables.extend(self.cells().map(|table| small_table("reduction", &table)));
        let mut files =
            vec![file::PARAMS, file::SCORE_TILE, work, file::ROWS_STRIDED, file::SCORE_POSITION, file::ELEMENT];
        let (visibility, side) = (self.setup.visibility, self.pass.side());
        let mapped = if self.map.is_some() { file::MAPPED } else { file::UNMAPPED };
        files.extend(visibility.choice(side).unwrap_or(vec![mapped]));
        files.extend(visibility.files(side));
        let engine = self.setup.engine;
        files.extend(engine.products());
        files.extend(self.pass.files(engine));
        self.kernel((&self.pass.kernel(engine), self.setup.splits), arguments, tables, files, self.chain(), parts)
    }

    /// The table of a score reduction.
    fn cells(&self) -> Option<[[u32; 4]; 3]> {
        let Cells { within, groups, together, mode, .. } = self.setup.cells?;
        let parts = groups[2].div_ceil(self.setup.engine.cols() as usize / within[1]);
        let rows = [
            [within[0], within[1], groups[1], groups[2]],
            [together[0], together[1], together[2], parts],
            [mode.1 as usize, 0, 0, 0],
        ];
        Some(rows.map(|row| row.map(|n| n as u32)))
    }

    /// The tables of the family.
    fn own_tables(&self) -> Tables {
        self.setup.visibility.tables(self.pass.side(), self.setup.shapes, self.setup.engine)
    }

    fn tile_map(&self, write: bool) -> Option<(Binding, Table)> {
        let binding = Binding::Table { name: "tile_map", ty: "u32", length: None, write };
        self.map.map(|map| (binding, Table::Scratch(map.scratch)))
    }

    /// The kernel that makes the map.
    pub fn map_kernel(&self, parts: &[Part]) -> Step {
        let (sequences, work) = self.sequences();
        let mut tables = vec![sequences];
        tables.extend(self.tile_map(true));
        tables.extend(self.own_tables());
        let heads = Heads { whole: self.schedule.packed.is_some(), ..EACH };
        let mask = self.setup.shapes.mask.as_ref();
        let arguments = mask.map(|mask| Argument::new("mask", mask, AccessKind::Load1, heads)).into_iter().collect();
        let mut files = vec![file::PARAMS, file::TILE_MAP, work, file::MAPPED, file::SCORE_POSITION, file::ELEMENT];
        files.extend(self.setup.visibility.files(self.pass.side()));
        self.kernel(("tile map", 1), arguments, tables, files, self.chain().of_masks(), parts)
    }
}
