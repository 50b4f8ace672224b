//! The kernels from tokens to a mask: which files, which tensors, how much work.

use super::Selector;
use super::frame::{Frame, SideFrame};
use super::task::{Access, Params, Task, Tensor};
use crate::packed::Side;
use crate::program::shader::{AccessKind, Binding, file};
use crate::program::{EACH, Heads, SHARED, Table, small_table};
use crate::rotary;

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
    pub(super) fn heads_of_x(&self) -> Heads {
        Heads { group: self.share, spread: self.joined, whole: false }
    }
}

/// Tables with their contents.
type Tables = Vec<(Binding, Table)>;

/// The tensors of one side.
pub(super) struct SideTensors {
    pub tokens: Tensor,
    pub pooled: Tensor,
    pub weights: Tensor,
    pub norm: Tensor,
    pub vectors_gradient: Tensor,
    pub projected_gradient: Tensor,
    pub weights_gradient: Tensor,
    pub norm_rows: Tensor,
    pub norm_gradient: Tensor,
}

impl SideTensors {
    pub fn of(side: Side) -> Self {
        match side {
            Side::Queries => Self {
                tokens: "q",
                pooled: "pooled_q",
                weights: "wq",
                norm: "norm_q",
                vectors_gradient: "gradient of vectors_q",
                projected_gradient: "gradient of projected q",
                weights_gradient: "dwq",
                norm_rows: "rows of dnorm_q",
                norm_gradient: "dnorm_q",
            },
            Side::Keys => Self {
                tokens: "k",
                pooled: "pooled_k",
                weights: "wk",
                norm: "norm_k",
                vectors_gradient: "gradient of vectors_k",
                projected_gradient: "gradient of projected k",
                weights_gradient: "dwk",
                norm_rows: "rows of dnorm_k",
                norm_gradient: "dnorm_k",
            },
        }
    }

    /// What is projected.
    pub fn features(&self, frame: &SideFrame) -> Tensor {
        if frame.pools.is_some() { self.pooled } else { self.tokens }
    }
}

impl Frame {
    /// Constants of a product.
    pub(super) fn product(&self) -> Vec<(&'static str, u32)> {
        let width = [("GATE_DIM", self.gate_dim), ("WIDTH4", self.gate_dim.div_ceil(4))];
        let all = width.into_iter().chain([("ROWS", tile_rows(self.gate_dim))]);
        all.map(|(name, value)| (name, value as u32)).collect()
    }

    /// Constants of features.
    pub(super) fn features(&self, side: Side) -> Vec<(&'static str, u32)> {
        let of = self.side(side);
        let tokens = u32::from(of.pools.is_none());
        vec![("WIDTH_X", of.width() as u32), ("SHARE", of.share as u32), ("TOKENS", tokens)]
    }

    pub(super) fn row_tiles(&self, rows: usize) -> usize {
        rows.div_ceil(tile_rows(self.gate_dim))
    }

    /// A product of so many terms an element.
    pub(super) fn product_flops(&self, terms: usize) -> f64 {
        (2 * tile_rows(self.gate_dim) * self.gate_dim * terms.max(1)) as f64
    }

    pub fn pool(&self, side: Side) -> Task {
        let (of, tensors_of) = (self.side(side), SideTensors::of(side));
        Task {
            name: "pool",
            files: vec![file::GATE_POOL],
            constants: vec![("HEAD_DIM", of.head_dim as u32), ("D4", of.head_dim.div_ceil(4) as u32)],
            tensors: vec![
                ("x", tensors_of.tokens, AccessKind::Load4, EACH),
                ("to", tensors_of.pooled, AccessKind::StoreBits, EACH),
            ],
            tables: vec![],
            work: [self.batch, of.heads_x(), of.rows],
            flops: (8 * of.head_dim * self.block[side as usize]) as f64,
            params: self.params(side),
        }
    }

    /// Files, tables and constants of the norm and of the rotary embedding.
    pub(super) fn turns(&self) -> (Vec<&'static str>, Tables) {
        match self.theta {
            None => (vec![file::GATE_NORM, file::GATE_STRAIGHT], vec![]),
            Some(theta) => (
                vec![file::GATE_NORM, file::GATE_TURNED, file::ROTARY_ANGLE],
                vec![rotary::angles(theta, self.gate_dim)],
            ),
        }
    }

    /// Weights and norm, where there are any.
    pub(super) fn learned(&self, side: Side) -> Vec<Access> {
        let (of, tensors_of) = (self.side(side), SideTensors::of(side));
        let weights = of.weighted.then_some(("weights", tensors_of.weights, AccessKind::Load4, EACH));
        let norm = of.normed.then_some(("norm", tensors_of.norm, AccessKind::Load1, SHARED));
        weights.into_iter().chain(norm).collect()
    }

    pub(super) fn projection(&self) -> Vec<&'static str> {
        vec![file::GATE_PRODUCT, file::GATE_PROJECTED, file::GATE_FEATURES, file::GATE_WEIGHTS]
    }

    pub fn project(&self, side: Side) -> Task {
        let (of, tensors_of) = (self.side(side), SideTensors::of(side));
        let (turns, tables) = self.turns();
        let mut tensors = vec![("x", tensors_of.features(of), AccessKind::Load1, of.heads_of_x())];
        tensors.extend(self.learned(side));
        tensors.push(("to", of.vectors, AccessKind::Store4, EACH));
        Task {
            name: "project",
            files: [vec![file::GATE_PROJECT], self.projection(), turns].concat(),
            constants: [self.product(), self.features(side), vec![("DIM", self.gate_dim as u32)]].concat(),
            tensors,
            tables,
            work: [self.batch, of.heads, self.row_tiles(of.rows)],
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
    pub(super) fn key_heads(&self) -> Heads {
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
                ("query", self.side(Side::Queries).vectors, AccessKind::Load4, EACH),
                ("key", self.side(Side::Keys).vectors, AccessKind::Load4, self.key_heads()),
                ("to", "logits", AccessKind::StoreBits, EACH),
            ],
            tables: vec![],
            work: [self.batch, self.heads, rows.div_ceil(tile_rows) * cols.div_ceil(tile_cols)],
            flops: (2 * tile_rows * tile_cols * self.gate_dim) as f64,
            params: Params { heads: self.key_heads().group as u32, ..self.params(Side::Queries) },
        }
    }

    /// A kernel that goes by rows of logits.
    pub(super) fn by_rows(&self, name: &'static str, files: Vec<&'static str>, tensors: Vec<Access>) -> Task {
        let [rows, cols] = self.pairs();
        Task {
            name,
            files: [files, vec![file::GATE_RULE, file::SUM]].concat(),
            constants: vec![],
            tensors,
            tables: vec![],
            work: [self.batch, self.heads, if cols == 0 { 0 } else { rows }],
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
        let files = [files, selector].concat();
        let mut tensors = vec![("logits", "logits", AccessKind::LoadBits, EACH)];
        tensors.extend(scores.then_some(("scores", "scores", AccessKind::StoreBits, EACH)));
        tensors.push(("chosen", "chosen", AccessKind::StoreBits, EACH));
        let most = self.most();
        let constants = most.iter().map(|most| ("MOST", most.len() as u32)).collect();
        let tables = most.map(|most| small_table("most", &most)).into_iter().collect();
        Task { tables, constants, ..self.by_rows("select", files, tensors) }
    }
}
