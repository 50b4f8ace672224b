//! The kernels of training: target, loss, gradients.

use super::frame::Frame;
use super::kernels::SideTensors;
use super::task::{Params, Task, Tensor};
use crate::packed::Side;
use crate::program::shader::{AccessKind, file};
use crate::program::{EACH, Heads, SHARED};

impl Frame {
    pub fn target(&self) -> Task {
        let tensors =
            vec![("wanted", "wanted", AccessKind::Load1, EACH), ("to", "target", AccessKind::StoreBits, EACH)];
        self.by_rows("target", vec![file::GATE_TARGET], tensors)
    }

    /// Rows from the `from`-th on count, with this weight each element.
    pub fn loss(&self, from: usize, weight: f32) -> Task {
        let tensors = vec![
            ("logits", "logits", AccessKind::LoadBits, EACH),
            ("wanted", "target", AccessKind::Load1, EACH),
            ("to", "dlogits", AccessKind::StoreBits, EACH),
            ("shares", "row shares", AccessKind::StoreBits, EACH),
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
                ("gradient", "dlogits", AccessKind::Load1, EACH),
                ("key", self.side(Side::Keys).vectors, AccessKind::Load4, self.key_heads()),
                ("to", "gradient of vectors_q", AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [self.batch, self.heads, self.row_tiles(rows)],
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
                ("gradient", "dlogits", AccessKind::Load1, of_logits),
                ("query", self.side(Side::Queries).vectors, AccessKind::Load4, of_logits),
                ("to", "gradient of vectors_k", AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [self.batch, heads, self.row_tiles(cols)],
            flops: self.product_flops(group * rows),
            params: Params { heads: group as u32, inner: rows as u32, ..self.params(Side::Keys) },
        }
    }

    pub fn unproject(&self, side: Side) -> Task {
        let (of, tensors_of) = (self.side(side), SideTensors::of(side));
        let (turns, tables) = self.turns();
        let files = [vec![file::GATE_UNPROJECT], self.projection(), turns].concat();
        let mut tensors = vec![("x", tensors_of.features(of), AccessKind::Load1, of.heads_of_x())];
        tensors.extend(self.learned(side));
        tensors.push(("gradient", tensors_of.vectors_gradient, AccessKind::Load1, EACH));
        tensors.push(("to", tensors_of.projected_gradient, AccessKind::Store4, EACH));
        tensors.extend(of.normed.then_some(("shares", tensors_of.norm_rows, AccessKind::Store4, EACH)));
        Task {
            name: "unproject",
            files,
            constants: [self.product(), self.features(side), vec![("DIM", self.gate_dim as u32)]].concat(),
            tensors,
            tables,
            work: [self.batch, of.heads, self.row_tiles(of.rows)],
            flops: self.product_flops(of.features() + 20),
            params: self.params(side),
        }
    }

    pub fn gradient_weights(&self, side: Side) -> Task {
        let (of, tensors_of) = (self.side(side), SideTensors::of(side));
        let whole = |heads: Heads| Heads { whole: true, ..heads };
        Task {
            name: "gradient of weights",
            files: vec![file::GATE_GRADIENT_WEIGHTS, file::GATE_PRODUCT, file::GATE_FEATURES],
            constants: [self.product(), self.features(side)].concat(),
            tensors: vec![
                ("x", tensors_of.features(of), AccessKind::Load1, whole(of.heads_of_x())),
                ("gradient", tensors_of.projected_gradient, AccessKind::Load4, whole(EACH)),
                ("to", tensors_of.weights_gradient, AccessKind::Store4, EACH),
            ],
            tables: vec![],
            work: [1, of.heads, self.row_tiles(of.features())],
            flops: self.product_flops(self.batch * of.rows),
            params: Params {
                rows: of.features() as u32,
                heads: self.batch as u32,
                inner: of.rows as u32,
                ..self.params(side)
            },
        }
    }

    /// The sum of all rows of a tensor of this shape.
    pub fn sum_rows(&self, from: Tensor, to: Tensor, [batch, heads, rows, width]: [usize; 4]) -> Task {
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
