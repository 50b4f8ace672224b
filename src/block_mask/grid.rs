//! Sizes of block masks.

use super::HeadBlocks;
#[cfg(feature = "wgpu")]
use crate::Caps;
#[cfg(doc)]
use crate::Error;
use crate::error::require;
use crate::layout::{MAX_BATCH, MAX_HEADS, MAX_SEQUENCE};
use crate::{DType, Layout, Result, Shapes};
use std::ops::Range;

/// Most blocks of a mask that the host makes.
#[cfg(feature = "wgpu")]
const MAX_HOST_BLOCKS: usize = 1 << 30;

/// What a block mask covers: queries and keys in blocks, the last of which may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct BlockGrid {
    /// Batch entries (for packed sequences: sequences), or 1 for a mask that applies to all.
    pub batch: usize,
    /// Query heads, or key heads where the query heads that share one choose together, or 1 for a mask that applies to all.
    pub heads: usize,
    /// Queries of a batch entry.
    pub queries: usize,
    /// Keys of a batch entry.
    pub keys: usize,
    /// Queries and keys of a block: powers of two. Blocks of 64 × 64 or larger have little overhead; smaller ones are computed in tiles of
    /// 64 × 64, each of them whole if any of its blocks is chosen.
    pub block: [usize; 2],
}

impl BlockGrid {
    /// Blocks along the queries and along the keys; no blocks for a size of 0, which [`BlockGrid::check`] rejects.
    pub fn blocks(&self) -> [usize; 2] {
        let count = |length: usize, block: usize| if block == 0 { 0 } else { length.div_ceil(block) };
        [count(self.queries, self.block[0]), count(self.keys, self.block[1])]
    }

    /// [batch, heads, blocks of queries, words] of the bitmap: bit j % 32 of word j / 32 is block j of the keys.
    pub fn shape(&self) -> [usize; 4] {
        let [rows, cols] = self.blocks();
        [self.batch, self.heads, rows, cols.div_ceil(32)]
    }

    /// The same with queries and keys exchanged.
    pub(crate) fn transposed(&self) -> Self {
        Self { queries: self.keys, keys: self.queries, block: [self.block[1], self.block[0]], ..*self }
    }

    /// The blocks of keys at the positions of a block of queries: from that of its first query to that of its last. Empty where these
    /// positions are before the first key, and for a row that does not exist.
    pub fn own(&self, row: usize) -> Range<usize> {
        let [rows, cols] = self.blocks();
        if row >= rows || cols == 0 {
            return 0..0;
        }
        let place = |query: usize| self.keys.checked_add(query)?.checked_sub(self.queries);
        let first = row * self.block[0];
        let last = first + (self.queries - first).min(self.block[0]) - 1;
        let first = place(first).unwrap_or(0) / self.block[1];
        place(last).map_or(0..0, |last| first..last / self.block[1] + 1)
    }

    /// # Errors
    /// [`Error::Argument`] for a block size that is not a power of two, a sequence that is too long, too many batch entries or heads.
    pub fn check(&self) -> Result<()> {
        check_block(self.block)?;
        for (name, count, most) in [("grid.batch", self.batch, MAX_BATCH), ("grid.heads", self.heads, MAX_HEADS)] {
            require(count <= most, name, count, format!("at most {most}"))?;
        }
        for (name, length) in [("grid.queries", self.queries), ("grid.keys", self.keys)] {
            require(length <= MAX_SEQUENCE, name, length, format!("at most {MAX_SEQUENCE}"))?;
        }
        let [batch, heads, rows, words] = self.shape();
        let all = batch.checked_mul(heads).and_then(|n| n.checked_mul(rows)?.checked_mul(words.max(1))?.checked_mul(4));
        require(all.is_some(), "grid", format!("{self:?}"), "smaller: its bitmap has too many bytes to count")
    }

    /// The same for a mask that the host makes, block by block.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Limit`].
    #[cfg(feature = "wgpu")]
    pub(crate) fn check_on_host(&self, caps: &Caps) -> Result<()> {
        self.check()?;
        let [batch, heads, rows, words] = self.shape();
        let words = batch * heads * rows * words.max(1);
        caps.within("block mask", "maxBufferSize", 4 * words as u64, caps.buffer_bytes)?;
        let bound = format!(
            "at most {MAX_HOST_BLOCKS} for a mask that the host makes; hooks and lists on the GPU can make larger ones"
        );
        require(
            words <= MAX_HOST_BLOCKS / 32,
            "grid: number of blocks, rows padded to whole words",
            words.saturating_mul(32),
            bound,
        )
    }
}

pub(super) fn check_block(block: [usize; 2]) -> Result<()> {
    for (i, size) in block.into_iter().enumerate() {
        let bound =
            format!("a power of two, at most {MAX_SEQUENCE}: each tile holds whole blocks or lies within one block");
        require(size.is_power_of_two() && size <= MAX_SEQUENCE, &format!("block[{i}]"), size, bound)?;
    }
    Ok(())
}

impl Shapes {
    /// The same with a block mask over a grid: its chosen blocks, and the full ones if they are known. `heads` says what each query
    /// head sees; if it is empty, all see the chosen blocks.
    pub fn block_mask(self, grid: &BlockGrid, full: bool, heads: &[HeadBlocks]) -> Self {
        let layout = Layout::heads_first(DType::U32, grid.shape());
        self.tensor("block_mask.chosen", layout.clone())
            .tensor_if("block_mask.full", full.then_some(layout))
            .numbers("block_mask.block", grid.block)
            .numbers("block_mask.blocks", grid.blocks())
            .heads(heads)
    }

    /// The same with no blocks: every head sees all keys, or the first and the last ones.
    pub fn heads(self, heads: &[HeadBlocks]) -> Self {
        self.numbers_if("block_mask.heads", (!heads.is_empty()).then(|| HeadBlocks::numbers(heads)))
    }
}
