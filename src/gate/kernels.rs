//! The gate's kernels: which files, which tensors, how much work.

use super::Selector;
use super::frame::{Frame, SideFrame};
use super::step::{EACH, Heads, Params, Part, Places, Task};
use crate::packed::Side;
use crate::shader::{AccessKind, Binding, file};
use crate::softmax::tiles::small_table;

/// What there is one of for all heads and batch entries.
const SHARED: Heads = Heads { group: 1, spread: 1, whole: true };

/// Rows of the tile of a product: as many as core WebGPU's workgroup memory holds three times, besides what is staged.
fn tile_rows(gate_dim: usize) -> usize {
    (256 / gate_dim.div_ceil(4)).clamp(4, 16)
}

/// Rows and columns of a tile of logits, and how much of their width passes through workgroup memory at a time: 16 scores a thread.
fn logits_tile(rows: usize) -> [usize; 3] {
    if rows <= 4 { [4, 256, 2] } else { [32, 32, 8] }
}

impl SideFrame {
    /// How heads of the gate use heads of tokens.
    fn heads_of_x(&self) -> Heads {
        Heads { group: self.share, spread: self.joined, whole: false }
    }
}

/// Tables with their contents.
type Tables = Vec<(Binding, Option<Vec<u8>>)>;

/// The parts of one side.
pub(super) struct SideParts {
    pub tokens: Part,
    pub pooled: Part,
    pub weights: Part,
    pub norm: Part,
    pub vectors: Part,
    pub vectors_gradient: Part,
    pub projected_gradient: Part,
    pub weights_gradient: Part,
    pub norm_rows: Part,
    pub norm_gradient: Part,
}

impl SideParts {
    pub fn of(side: Side) -> Self {
        match side {
            Side::Queries => Self {
                tokens: Part::Q,
                pooled: Part::PooledQ,
                weights: Part::Wq,
                norm: Part::NormQ,
                vectors: Part::VectorsQ,
                vectors_gradient: Part::VectorsQGradient,
                projected_gradient: Part::ProjectedQGradient,
                weights_gradient: Part::WqGradient,
                norm_rows: Part::NormQRows,
                norm_gradient: Part::NormQGradient,
            },
            Side::Keys => Self {
                tokens: Part::K,
                pooled: Part::PooledK,
                weights: Part::Wk,
                norm: Part::NormK,
                vectors: Part::VectorsK,
                vectors_gradient: Part::VectorsKGradient,
                projected_gradient: Part::ProjectedKGradient,
                weights_gradient: Part::WkGradient,
                norm_rows: Part::NormKRows,
                norm_gradient: Part::NormKGradient,
            },
        }
    }

    /// What is projected.
    pub fn features(&self, frame: &SideFrame) -> Part {
        if frame.pools.is_some() { self.pooled } else { self.tokens }
    }
}

impl Frame {
    /// Constants of a product.
    fn product(&self) -> Vec<(&'static str, u32)> {
        let width = [("GATE_DIM", self.gate_dim), ("WIDTH4", self.gate_dim.div_ceil(4))];
        let all = width.into_iter().chain([("ROWS", tile_rows(self.gate_dim))]);
        all.map(|(name, value)| (name, value as u32)).collect()
    }

    /// Constants of features.
    fn features(&self, side: Side) -> Vec<(&'static str, u32)> {
        let of = self.side(side);
        let tokens = u32::from(of.pools.is_none());
        vec![("WIDTH_X", of.width() as u32), ("SHARE", of.share as u32), ("TOKENS", tokens)]
    }

    fn row_tiles(&self, rows: usize) -> usize {
        rows.div_ceil(tile_rows(self.gate_dim))
    }

    /// A product of so many terms an element.
    fn product_flops(&self, terms: usize) -> f64 {
        (2 * tile_rows(self.gate_dim) * self.gate_dim * terms.max(1)) as f64
    }

    pub fn pool(&self, side: Side) -> Task {
        let (of, parts) = (self.side(side), SideParts::of(side));
        Task {
            name: "pool",
            files: vec![file::GATE_POOL],
            constants: vec![("HEAD_DIM", of.head_dim as u32), ("D4", of.head_dim.div_ceil(4) as u32)],
            tensors: vec![
                ("x", parts.tokens, AccessKind::Load4, EACH),
                ("to", parts.pooled, AccessKind::StoreBits, EACH),
            ],
            tables: vec![],
            work: [self.batch(), of.heads_x(), of.rows],
            flops: (8 * of.head_dim * self.block[side as usize]) as f64,
            params: self.params(side),
        }
    }

    /// Files, tables and constants of the norm and of the rotary embedding.
    fn turns(&self, side: Side) -> (Vec<&'static str>, Tables) {
        let normed = if self.side(side).normed { file::GATE_NORMED } else { file::GATE_UNNORMED };
        match self.theta {
            None => (vec![normed, file::GATE_STRAIGHT], vec![]),
            Some(_) => {
                let table = Binding::Table { name: "angles", ty: "vec2f", length: None, write: false };
                (vec![normed, file::GATE_TURNED, file::ROTARY_ANGLE], vec![(table, None)])
            }
        }
    }

    /// Weights and norm, where there are any.
    fn learned(&self, side: Side) -> Vec<(&'static str, Part, AccessKind, Heads)> {
        let (of, parts) = (self.side(side), SideParts::of(side));
        let weights = of.weighted.then_some(("weights", parts.weights, AccessKind::Load4, EACH));
        let norm = of.normed.then_some(("norm", parts.norm, AccessKind::Load1, SHARED));
        weights.into_iter().chain(norm).collect()
    }

    fn projection(&self, side: Side) -> Vec<&'static str> {
        let weighted = if self.side(side).weighted { file::GATE_WEIGHTED } else { file::GATE_UNWEIGHTED };
        vec![file::GATE_PRODUCT, file::GATE_PROJECTED, file::GATE_FEATURES, weighted]
    }

    pub fn project(&self, side: Side) -> Task {
        let (of, parts) = (self.side(side), SideParts::of(side));
        let (turns, tables) = self.turns(side);
        let mut tensors = vec![("x", parts.features(of), AccessKind::Load1, of.heads_of_x())];
        tensors.extend(self.learned(side));
        tensors.push(("to", parts.vectors, AccessKind::Store4, EACH));
        Task {
            name: "project",
            files: [vec![file::GATE_PROJECT], self.projection(side), turns].concat(),
            constants: [self.product(), self.features(side), vec![("DIM", self.gate_dim as u32)]].concat(),
            tensors,
            tables,
            work: [self.batch(), of.heads, self.row_tiles(of.rows)],
            flops: self.product_flops(of.features() + 20),
            params: self.params(side),
        }
    }

    /// From tokens to logits.
    pub fn to_logits(&self) -> Vec<Task> {
        let sides = [Side::Queries, Side::Keys];
        let pooled = sides.into_iter().filter(|&side| self.side(side).pools.is_some()).map(|side| self.pool(side));
        let all = pooled.chain(sides.into_iter().map(|side| self.project(side)));
        all.chain([self.logits_task()]).collect()
    }

    /// Heads of keys that heads of logits share.
    fn key_heads(&self) -> Heads {
        Heads { group: self.heads / self.side(Side::Keys).heads.max(1), ..EACH }
    }

    pub fn logits_task(&self) -> Task {
        let [rows, cols] = self.pairs();
        let [tile_rows, tile_cols, depth] = logits_tile(rows);
        let tile = [("TILE_ROWS", tile_rows), ("TILE_COLS", tile_cols), ("DEPTH", depth)];
        let tile = tile.map(|(name, n)| (name, n as u32)).to_vec();
        Task {
            name: "logits",
            files: vec![file::GATE_LOGITS, file::GATE_RULE],
            constants: [self.product(), tile].concat(),
            tensors: vec![
                ("query", Part::VectorsQ, AccessKind::Load4, EACH),
                ("key", Part::VectorsK, AccessKind::Load4, self.key_heads()),
                ("to", Part::Logits, AccessKind::StoreBits, EACH),
            ],
            tables: vec![],
            work: [self.batch(), self.heads, rows.div_ceil(tile_rows) * cols.div_ceil(tile_cols)],
            flops: (2 * tile_rows * tile_cols * self.gate_dim) as f64,
            params: Params { heads: self.key_heads().group as u32, ..self.params(Side::Queries) },
        }
    }

    /// A kernel that goes by rows of logits.
    fn by_rows(
        &self,
        name: &'static str,
        files: Vec<&'static str>,
        tensors: Vec<(&'static str, Part, AccessKind, Heads)>,
    ) -> Task {
        let [rows, cols] = self.pairs();
        Task {
            name,
            files: [files, vec![file::GATE_RULE, file::SUM]].concat(),
            constants: vec![],
            tensors,
            tables: vec![],
            work: [self.batch(), self.heads, if cols == 0 { 0 } else { rows }],
            flops: 400.0 * cols as f64,
            params: self.params(Side::Queries),
        }
    }

    pub fn select(&self, scores: bool) -> Task {
        let selector = match self.selector {
            Selector::Threshold(_) => vec![file::GATE_THRESHOLD],
            Selector::TopP(_) => vec![file::GATE_TOP_P],
            Selector::Density(_) | Selector::Budget(_) => vec![file::GATE_TOP_K, file::LARGEST],
        };
        let files = vec![file::GATE_SELECT, file::GATE_ROW, file::SCAN];
        let files = [files, vec![if scores { file::GATE_SCORES } else { file::GATE_NO_SCORES }], selector].concat();
        let mut tensors = vec![("logits", Part::Logits, AccessKind::LoadBits, EACH)];
        tensors.extend(scores.then_some(("scores", Part::Scores, AccessKind::StoreBits, EACH)));
        tensors.push(("chosen", Part::Chosen, AccessKind::StoreBits, EACH));
        let tables = self.most().map(|most| small_table("most", &most)).into_iter().collect();
        Task { tables, ..self.by_rows("select", files, tensors) }
    }

    pub fn target(&self) -> Task {
        let tensors =
            vec![("wanted", Part::Wanted, AccessKind::Load1, EACH), ("to", Part::Target, AccessKind::StoreBits, EACH)];
        self.by_rows("target", vec![file::GATE_TARGET], tensors)
    }

    /// Rows from the `from`-th on count, with this weight each element.
    pub fn loss(&self, from: usize, weight: f32) -> Task {
        let tensors = vec![
            ("logits", Part::Logits, AccessKind::LoadBits, EACH),
            ("wanted", Part::Target, AccessKind::Load1, EACH),
            ("to", Part::LogitsGradient, AccessKind::StoreBits, EACH),
            ("shares", Part::RowShares, AccessKind::StoreBits, EACH),
        ];
        let task = self.by_rows("loss", vec![file::GATE_LOSS, file::GATE_ROW], tensors);
        Task { params: Params { from_row: from as u32, weight, ..task.params }, ..task }
    }

    pub fn gradient_query(&self) -> Task {
        let [rows, cols] = self.pairs();
        Task {
            name: "gradient of queries",
            files: vec![file::GATE_GRADIENT_QUERY, file::GATE_PRODUCT, file::GATE_RULE],
            constants: self.product(),
            tensors: vec![
                ("gradient", Part::LogitsGradient, AccessKind::Load1, EACH),
                ("key", Part::VectorsK, AccessKind::Load4, self.key_heads()),
                ("to", Part::VectorsQGradient, AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [self.batch(), self.heads, self.row_tiles(rows)],
            flops: self.product_flops(cols),
            params: Params { heads: self.key_heads().group as u32, ..self.params(Side::Queries) },
        }
    }

    pub fn gradient_key(&self) -> Task {
        let [rows, cols] = self.pairs();
        let (heads, group) = (self.side(Side::Keys).heads, self.key_heads().group);
        let of_logits = Heads { spread: group, ..EACH };
        Task {
            name: "gradient of keys",
            files: vec![file::GATE_GRADIENT_KEY, file::GATE_PRODUCT, file::GATE_RULE],
            constants: self.product(),
            tensors: vec![
                ("gradient", Part::LogitsGradient, AccessKind::Load1, of_logits),
                ("query", Part::VectorsQ, AccessKind::Load4, of_logits),
                ("to", Part::VectorsKGradient, AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [self.batch(), heads, self.row_tiles(cols)],
            flops: self.product_flops(group * rows),
            params: Params { heads: group as u32, inner: rows as u32, ..self.params(Side::Keys) },
        }
    }

    pub fn unproject(&self, side: Side) -> Task {
        let (of, parts) = (self.side(side), SideParts::of(side));
        let (turns, tables) = self.turns(side);
        let mut files = [vec![file::GATE_UNPROJECT], self.projection(side), turns].concat();
        files.push(if of.normed { file::GATE_UNPROJECT_NORMED } else { file::GATE_UNPROJECT_UNNORMED });
        let mut tensors = vec![("x", parts.features(of), AccessKind::Load1, of.heads_of_x())];
        tensors.extend(self.learned(side));
        tensors.push(("gradient", parts.vectors_gradient, AccessKind::Load1, EACH));
        tensors.push(("to", parts.projected_gradient, AccessKind::Store4, EACH));
        tensors.extend(of.normed.then_some(("shares", parts.norm_rows, AccessKind::Store4, EACH)));
        Task {
            name: "unproject",
            files,
            constants: [self.product(), self.features(side), vec![("DIM", self.gate_dim as u32)]].concat(),
            tensors,
            tables,
            work: [self.batch(), of.heads, self.row_tiles(of.rows)],
            flops: self.product_flops(of.features() + 20),
            params: self.params(side),
        }
    }

    pub fn gradient_weights(&self, side: Side) -> Task {
        let (of, parts) = (self.side(side), SideParts::of(side));
        let whole = |heads: Heads| Heads { whole: true, ..heads };
        Task {
            name: "gradient of weights",
            files: vec![file::GATE_GRADIENT_WEIGHTS, file::GATE_PRODUCT, file::GATE_FEATURES],
            constants: [self.product(), self.features(side)].concat(),
            tensors: vec![
                ("x", parts.features(of), AccessKind::Load1, whole(of.heads_of_x())),
                ("gradient", parts.projected_gradient, AccessKind::Load4, whole(EACH)),
                ("to", parts.weights_gradient, AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [1, of.heads, self.row_tiles(of.features())],
            flops: self.product_flops(self.batch() * of.rows),
            params: Params {
                rows: of.features() as u32,
                heads: self.batch() as u32,
                inner: of.rows as u32,
                ..self.params(side)
            },
        }
    }

    /// The sum of all rows of a tensor. `places` knows it.
    pub fn sum_rows(&self, from: Part, to: Part, places: &Places) -> Task {
        let [batch, heads, rows, width] = places.layout(from).shape;
        let all = Heads { spread: heads, ..SHARED };
        Task {
            name: "sum of rows",
            files: vec![file::GATE_SUM_ROWS],
            constants: vec![("GATE_DIM", width as u32), ("WIDTH4", width.div_ceil(4) as u32)],
            tensors: vec![("x", from, AccessKind::Load4, all), ("to", to, AccessKind::Store4, EACH)],
            tables: vec![],
            work: [1; 3],
            flops: (batch * heads * rows * width) as f64,
            params: Params { rows: batch as u32, heads: heads as u32, inner: rows as u32, ..Params::default() },
        }
    }
}
