//! Sizes and rules of a gate's work.

use super::task::Params;
use super::{Pool, Selector};
use crate::packed::Side;
use crate::program::Table;
use crate::program::shader::Binding;
use crate::{Caps, Causal, DType, Layout, Result};

/// One side of the gate: what becomes of queries, or of keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SideFrame {
    /// The name of the gate's vectors.
    pub vectors: &'static str,
    /// Heads of the gate's vectors.
    pub heads: usize,
    /// Heads of the gate to one of the tokens, and heads of tokens that one of the gate joins.
    pub share: usize,
    pub joined: usize,
    /// Longest sequence, and the gate's rows of it.
    pub rows: usize,
    /// What is pooled; unset: tokens go in as they are.
    pub pools: Option<Vec<Pool>>,
    /// Width of tokens.
    pub head_dim: usize,
    pub weighted: bool,
    pub normed: bool,
}

impl SideFrame {
    /// Elements of one head of pooled tokens, or of tokens.
    pub fn width(&self) -> usize {
        self.head_dim * self.pools.as_ref().map_or(1, Vec::len)
    }

    /// Features of a head of the gate.
    pub fn features(&self) -> usize {
        self.width() * self.joined
    }

    /// Heads of tokens.
    pub fn heads_x(&self) -> usize {
        self.heads * self.joined / self.share
    }
}

/// All that planning looks at besides where tensors lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub batch: usize,
    /// The table of (first query, queries, first key, keys) of each batch entry.
    pub sequences: (Binding, Table),
    /// Heads of the logits.
    pub heads: usize,
    pub gate_dim: usize,
    pub sides: [SideFrame; 2],
    /// Queries and keys of a block.
    pub block: [usize; 2],
    pub causal: Option<Causal>,
    /// Whether rows see a triangle: of those a share of density is a root.
    pub triangle: bool,
    /// Whether a row sees only blocks before its own, and whether blocks that are not full count as 0.
    pub past: bool,
    pub complete: bool,
    /// Rows of a ring of keys, where x is one.
    pub ring: usize,
    pub theta: Option<f32>,
    pub epsilon: f32,
    pub selector: Selector,
    /// `FORCE_…` of the shader.
    pub forced: u32,
}

impl Frame {
    pub fn side(&self, side: Side) -> &SideFrame {
        &self.sides[side as usize]
    }

    /// Rows and blocks of keys of the longest sequence.
    pub fn pairs(&self) -> [usize; 2] {
        self.sides.each_ref().map(|side| side.rows)
    }

    /// [batch, heads, rows, blocks of keys].
    pub fn logits(&self) -> Layout {
        let [rows, cols] = self.pairs();
        Layout::heads_first(DType::F32, [self.batch, self.heads, rows, cols])
    }

    /// Pooled tokens of a side.
    pub fn pooled(&self, side: Side) -> Layout {
        let of = self.side(side);
        Layout::heads_first(DType::F32, [self.batch, of.heads_x(), of.rows, of.width()])
    }

    /// The gate's vectors of a side.
    pub fn vectors(&self, side: Side) -> Layout {
        let of = self.side(side);
        Layout::heads_first(DType::F32, [self.batch, of.heads, of.rows, self.gate_dim])
    }

    /// Weights of a side.
    pub fn weights(&self, side: Side) -> Layout {
        let of = self.side(side);
        Layout::heads_first(DType::F32, [1, of.heads, of.features(), self.gate_dim])
    }

    /// How many blocks a row may choose in a sequence of 0, 1, 2, … blocks of keys, where the selector counts; the last holds for more.
    pub fn most(&self) -> Option<Vec<[u32; 4]>> {
        let of = |blocks: usize| match self.selector {
            Selector::Density(density) => {
                // A row that sees i blocks takes the smaller of k and i: of a triangle that is this share.
                let share = if self.triangle { 1.0 - (1.0 - density).sqrt() } else { density };
                Some(((share * blocks as f64) as usize).max(1))
            }
            Selector::Budget(tokens) => Some(tokens / self.block[1]),
            _ => None,
        };
        let [_, cols] = self.pairs();
        let differ = matches!(self.selector, Selector::Density(_));
        let all = |blocks: usize| of(blocks).map(|k| [k.min(cols) as u32, 0, 0, 0]);
        (0..=if differ { cols } else { 0 }).map(all).collect()
    }

    /// Whether a selection may go over so many blocks on a device that bounds loops: a threshold of the largest is found bit by bit.
    pub fn check_loops(&self, caps: &Caps) -> Result<()> {
        let Some(available) = caps.loop_rounds() else { return Ok(()) };
        let [_, cols] = self.pairs();
        let (what, rounds) = (format!("a choice among {cols} blocks"), 40 * cols.div_ceil(64));
        caps.within(&what, "rounds of llvmpipe's loops", rounds as u64, available)
    }

    /// The uniform struct, but for addresses.
    pub(super) fn params(&self, side: Side) -> Params {
        let of = self.side(side);
        let [_, cols] = self.pairs();
        let mut pool = [0; 4];
        for (place, kind) in pool.iter_mut().zip(of.pools.iter().flatten()) {
            *place = *kind as u32;
        }
        let bound = match self.selector {
            Selector::Threshold(bound) | Selector::TopP(bound) => bound as f32,
            _ => 0.0,
        };
        Params {
            rows: of.rows as u32,
            cols: cols as u32,
            query_block: self.block[0] as u32,
            key_block: self.block[1] as u32,
            causal: match self.causal {
                None => 0,
                Some(Causal::BottomRight) => 1,
                Some(Causal::TopLeft) => 2,
            },
            past: u32::from(self.past),
            complete: u32::from(self.complete),
            forced: self.forced,
            side: side as u32,
            joined: of.joined as u32,
            pools: of.pools.as_ref().map_or(0, Vec::len) as u32,
            ring: self.ring as u32,
            pool,
            bound,
            scale: 1.0 / (self.gate_dim as f32).sqrt(),
            epsilon: self.epsilon,
            ..Params::default()
        }
    }
}
