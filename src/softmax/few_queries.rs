//! Few queries: the query heads that share a key head are rows of one tile, and its keys go to several workgroups, whose results are
//! merged.

use super::visibility::Visibility;
use super::{AttentionShapes, ScoreParams};
use crate::Layout;
use crate::lists::TokenListShape;
use crate::program::Operand;

/// Parts at most.
const PARTS: usize = 32;
/// Queries that the tiles of few rows take.
const QUERIES: usize = 8;
/// Query heads of a key head that they take.
const HEADS: usize = 16;

/// How few queries are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FewQueries {
    /// Whether query heads are rows.
    pub grouped: bool,
    /// Rows of a tile.
    pub rows: u32,
    /// Parts of the keys.
    pub splits: usize,
}

impl FewQueries {
    /// Where there are few queries, and the visiting order takes them.
    pub fn of(visibility: &dyn Visibility, scores: &ScoreParams, shapes: &AttentionShapes) -> Option<Self> {
        let ([_, heads, queries, _], [_, heads_kv, ..]) = (shapes.q.shape(), shapes.k.shape());
        let few = visibility.few(shapes).filter(|few| shapes.packed.is_none() && (1..=QUERIES).contains(&few.rows));
        let group = heads / heads_kv;
        let by_place = scores.alibi_slopes.is_some() || !scores.score_mod.is_empty() || !scores.mask_mod.is_empty();
        let shared = queries == 1 && (2..=HEADS).contains(&group);
        let grouped = shared && !by_place && visibility.grouped(shapes).is_some();
        let rows = if grouped && group > 8 { 16 } else { 8 };
        few.map(|few| Self { grouped, rows, splits: few.columns.div_ceil(few.part).clamp(1, PARTS) })
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
fn grouped(operand: &Operand, heads_kv: usize) -> Operand {
    let layout = &operand.layout;
    let [batch, heads, _, width] = layout.shape;
    let ([of_batch, of_heads, _], group) = (layout.strides, heads / heads_kv);
    let (shape, strides) = ([batch, heads_kv, group, width], [of_batch, group * of_heads, of_heads]);
    operand.view(Layout { shape, strides, ..layout.clone() })
}

impl AttentionShapes {
    /// The same with query heads as rows.
    pub(super) fn grouped(&self) -> Self {
        let (heads_kv, group) = (self.k.shape()[1], self.q.shape()[1] / self.k.shape()[1]);
        let grouped = |operand: &Operand| grouped(operand, heads_kv);
        // A tile of rows lies within one block.
        let rows_together = group.next_power_of_two().max(HEADS);
        let block_mask = self.block_mask.clone().map(|mut mask| {
            mask.block[0] = rows_together;
            mask
        });
        let token_lists = self.token_lists.clone().map(|lists| TokenListShape { block: rows_together, ..lists });
        Self {
            q: grouped(&self.q),
            out: self.out.as_ref().map(grouped),
            lse: grouped(&self.lse),
            bias: self.bias.as_ref().map(grouped),
            mask: self.mask.as_ref().map(grouped),
            query_rows: group,
            block_mask,
            token_lists,
            ..self.clone()
        }
    }
}
