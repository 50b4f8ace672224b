//! The kernels of training: target, loss, gradients.

use super::frame::Frame;
use super::kernels::{SHARED, SideParts};
use super::step::{EACH, Heads, Params, Part, Places, Task};
use crate::packed::Side;
use crate::shader::{AccessKind, file};

impl Frame {
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
