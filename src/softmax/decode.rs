//! Few queries: the query heads that share a key head are rows of one tile, and its keys go to several workgroups, whose results are
//! merged.

use super::tiles::Tiles;
use super::{AttentionShapes, ScoreParams};
use crate::dispatch::{Kernel, Launch};
use crate::merge::merge_splits;
use crate::{Caps, DType, Gpu, Layout, Result, Slice, Tensor};
use std::ops::Range;

/// Keys to one part, at least: parts depend on the keys alone, so that a row's bits do not depend on what stands beside it.
const KEYS_OF_A_PART: usize = 1024;
/// Parts at most.
const PARTS: usize = 32;
/// Queries that the tiles of few rows take.
const QUERIES: usize = 8;
/// Query heads of a key head that they take.
const HEADS: usize = 16;

/// How few queries are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Few {
    /// Whether query heads are rows.
    pub grouped: bool,
    /// Rows of a tile.
    pub rows: u32,
    /// Parts of the keys.
    pub splits: usize,
}

impl Few {
    /// Where there are few queries, and the visiting order takes them.
    pub fn of(tiles: &dyn Tiles, scores: &ScoreParams, shapes: &AttentionShapes) -> Option<Self> {
        let ([_, heads, queries, _], [_, heads_kv, keys, _]) = (shapes.q.shape, shapes.k.shape);
        let few = shapes.packed().is_none() && (1..=QUERIES).contains(&queries) && tiles.takes_few_rows();
        let group = heads / heads_kv;
        let by_place = scores.alibi_slopes.is_some() || !scores.score_mod.is_empty() || !scores.mask_mod.is_empty();
        let grouped = queries == 1 && (2..=HEADS).contains(&group) && !by_place && tiles.grouped(shapes).is_some();
        let rows = if grouped && group > 8 { 16 } else { 8 };
        few.then(|| Self { grouped, rows, splits: keys.div_ceil(KEYS_OF_A_PART).clamp(1, PARTS) })
    }

    /// In words, after the tiles'.
    pub fn describe(&self) -> String {
        let grouped = if self.grouped { "; query heads that share a key head are rows of one tile" } else { "" };
        match self.splits {
            1 => grouped.into(),
            splits => format!("{grouped}; keys in {splits} parts, merged"),
        }
    }
}

/// Query heads of a key head as rows of a sequence: [batch, heads, 1, width] as [batch, key heads, group, width].
pub(super) fn group_layout(layout: &Layout, heads_kv: usize) -> Layout {
    let [batch, heads, _, width] = layout.shape;
    let ([of_batch, of_heads, _], group) = (layout.strides, heads / heads_kv);
    let (shape, strides) = ([batch, heads_kv, group, width], [of_batch, group * of_heads, of_heads]);
    Layout { shape, strides, ..layout.clone() }
}

impl AttentionShapes {
    /// The same with query heads as rows.
    pub(super) fn grouped(&self) -> Self {
        let (heads_kv, group) = (self.k.shape[1], self.q.shape[1] / self.k.shape[1]);
        let grouped = |layout: &Layout| group_layout(layout, heads_kv);
        let block_mask = self.block_mask.clone().map(|mut mask| {
            // A tile of rows lies within one block.
            mask.block[0] = group.next_power_of_two().max(HEADS);
            mask
        });
        Self {
            q: grouped(&self.q),
            out: grouped(&self.out),
            lse: grouped(&self.lse),
            bias: self.bias.as_ref().map(grouped),
            mask: self.mask.as_ref().map(grouped),
            seqlens_q: self.seqlens_q.as_ref().map(|lengths| lengths.iter().map(|n| n * group).collect()),
            block_mask,
            ..self.clone()
        }
    }
}

/// The merge of the parts, as planned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SplitPlan {
    /// Out and LSE of the parts.
    pub partial: [Layout; 2],
    pub merge: Kernel,
    pub slices: Vec<Slice>,
}

impl SplitPlan {
    /// For attention of these shapes.
    pub fn new(caps: &Caps, splits: usize, shapes: &AttentionShapes) -> Result<Self> {
        let part = |layout: &Layout| {
            let [batch, heads, rows, width] = layout.shape;
            Layout::heads_first(DType::F32, [batch, heads * splits, rows, width])
        };
        let partial = [part(&shapes.out), part(&shapes.lse)];
        // No tensor of the caller's lies in a buffer of our own.
        let own = shapes.buffers.len();
        let [out, lse] = &partial;
        let to = [(&shapes.out, shapes.buffers[3]), (&shapes.lse, shapes.buffers[4])];
        let (merge, slices) = merge_splits(caps, splits, [(out, own), (lse, own + 1)], to)?;
        Ok(Self { partial, merge, slices })
    }
}

/// The merge compiled, with the parts that it merges.
#[derive(Debug)]
pub(super) struct Split {
    merge: Launch,
    partial: [Tensor; 2],
}

impl Split {
    pub async fn new(gpu: &Gpu, plan: &SplitPlan) -> Result<Self> {
        let merge = Launch::prepare(gpu, &plan.merge, &plan.slices, &Default::default()).await?;
        let [out, lse] = &plan.partial;
        let partial = [Tensor::empty(gpu, out.clone()).await?, Tensor::empty(gpu, lse.clone()).await?];
        Ok(Self { merge, partial })
    }

    /// Where the parts go.
    pub fn partial(&self) -> &[Tensor; 2] {
        &self.partial
    }

    fn tensors<'a>(&'a self, to: [&'a Tensor; 2]) -> [&'a Tensor; 4] {
        let [out, lse] = &self.partial;
        [out, lse, to[0], to[1]]
    }

    pub fn check(&self, to: [&Tensor; 2]) -> Result<()> {
        self.merge.check(&self.tensors(to), &(0..0)).map(|_| ())
    }

    /// Records the slices `which` of the merge.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, to: [&Tensor; 2], which: Range<usize>) -> Result<()> {
        self.merge.encode(pass, &self.tensors(to), which)
    }
}
