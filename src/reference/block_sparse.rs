//! Who sees whom in block-sparse attention, by its definition.

use super::At;
use crate::HeadBlocks;

/// The chosen blocks: give [`ChosenBlocks::sees`] to [`super::flash`] as `mask_mod`.
///
/// ```
/// use wgpu_attention::reference::{At, ChosenBlocks};
/// let blocks = ChosenBlocks { block: [2, 3], shape: [1, 1, 1, 2], chosen: &[false, true], group: 1, heads: &[] };
/// let at = |key| At { batch: 0, head: 5, query: 1, key, queries: 2, keys: 6 };
/// assert_eq!([2, 3, 5].map(|key| blocks.sees(at(key))), [false, true, true]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ChosenBlocks<'a> {
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// [batch or 1, heads, key heads or 1, blocks of queries, blocks of keys].
    pub shape: [usize; 4],
    /// Whether each is chosen.
    pub chosen: &'a [bool],
    /// Query heads for each head of the mask, where the mask has fewer; else 0 or 1.
    pub group: usize,
    /// What each head sees; empty: all see the chosen blocks.
    pub heads: &'a [HeadBlocks],
}

impl ChosenBlocks<'_> {
    /// Whether a query sees a key.
    pub fn sees(&self, at: At) -> bool {
        match self.heads.get(at.head).unwrap_or(&HeadBlocks::Listed) {
            HeadBlocks::Dense => true,
            HeadBlocks::Streaming { sink, local } => {
                let place = at.query as i64 + at.keys as i64 - at.queries as i64;
                let distance = place - at.key as i64;
                distance >= 0 && (at.key < *sink || (distance as usize) < *local)
            }
            HeadBlocks::Listed => {
                let [batch, heads, rows, cols] = self.shape;
                let (b, h) = (at.batch.min(batch - 1), (at.head / self.group.max(1)).min(heads - 1));
                let (row, col) = (at.query / self.block[0], at.key / self.block[1]);
                self.chosen[((b * heads + h) * rows + row) * cols + col]
            }
        }
    }
}
