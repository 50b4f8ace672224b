//! Sizes of block masks, and what planning looks at.

#[cfg(doc)]
use super::BlockMask;
use super::HeadBlocks;
#[cfg(doc)]
use crate::Error;
use crate::error::require;
use crate::softmax::MAX_SEQUENCE;
use crate::{DType, Layout, Result};

/// What a block mask lies over: queries and keys in blocks, the last of which may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockGrid {
    /// Batch entries (of packed sequences: sequences), or 1 for a mask that holds for all.
    pub batch: usize,
    /// Query heads, or key heads where those that share one choose together, or 1 for a mask that holds for all.
    pub heads: usize,
    /// Queries of a batch entry.
    pub queries: usize,
    /// Its keys.
    pub keys: usize,
    /// Queries and keys of a block: powers of two. Blocks of 64 × 64 or larger cost little besides; smaller ones are computed
    /// by the tile of 64 × 64 that holds any of them.
    pub block: [usize; 2],
}

impl BlockGrid {
    /// Blocks along the queries and along the keys.
    pub fn blocks(&self) -> [usize; 2] {
        [self.queries.div_ceil(self.block[0]), self.keys.div_ceil(self.block[1])]
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

    /// # Errors
    /// [`Error::Argument`] for a size of blocks that is no power of two, or a sequence that is too long.
    pub fn check(&self) -> Result<()> {
        check_block(self.block)?;
        for (name, length) in [("grid.queries", self.queries), ("grid.keys", self.keys)] {
            require(length <= MAX_SEQUENCE, name, length, format!("at most {MAX_SEQUENCE}"))?;
        }
        Layout::heads_first(DType::U32, self.shape()).byte_span().map(|_| ())
    }
}

fn check_block(block: [usize; 2]) -> Result<()> {
    for (i, size) in block.into_iter().enumerate() {
        let bound =
            format!("a power of two, at most {MAX_SEQUENCE}: tiles are, and hold whole blocks or lie within one");
        require(size.is_power_of_two() && size <= MAX_SEQUENCE, &format!("block[{i}]"), size, bound)?;
    }
    Ok(())
}

/// What planning looks at of a [`BlockMask`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockMaskShape {
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// Blocks along the queries and along the keys.
    pub blocks: [usize; 2],
    /// The chosen blocks, u32 [batch or 1, heads, key heads or 1, blocks of queries, words].
    pub chosen: Option<Layout>,
    /// The full ones among them.
    pub full: Option<Layout>,
    /// What each query head sees; empty: all are [`HeadBlocks::Listed`].
    pub heads: Vec<HeadBlocks>,
}

impl BlockMaskShape {
    /// Query heads to a head of the mask.
    pub(crate) fn group(&self, heads: usize) -> usize {
        self.chosen.as_ref().map_or(1, |layout| heads / layout.shape[1].max(1)).max(1)
    }

    /// All but where the bitmaps lie.
    pub(crate) fn sizes(&self) -> impl PartialEq + '_ {
        (self.block, self.blocks, self.chosen.is_some(), self.full.is_some(), &self.heads)
    }

    /// Whether it fits [batch, heads, queries, keys] and so many key heads.
    pub(super) fn check(&self, [batch, heads, queries, keys]: [usize; 4], heads_kv: usize) -> Result<()> {
        check_block(self.block)?;
        HeadBlocks::check(&self.heads, heads, self.chosen.is_some())?;
        let grid = BlockGrid { batch, heads, queries, keys, block: self.block };
        for (name, layout) in [("chosen", &self.chosen), ("full", &self.full)] {
            let Some(layout) = layout else { continue };
            let ([rows, cols], [.., words]) = (grid.blocks(), grid.shape());
            let bound = format!("[{rows}, {cols}], by q and k in blocks of {:?}", self.block);
            require(self.blocks == [rows, cols], "block_mask.blocks", format!("{:?}", self.blocks), bound)?;
            let [of_batch, of_heads, ..] = layout.shape;
            let repeated = [of_batch, of_heads, rows, words];
            let fits =
                layout.shape == repeated && [1, batch].contains(&of_batch) && [1, heads, heads_kv].contains(&of_heads);
            let bound = format!("[{batch} or 1, {heads}, {heads_kv} or 1, {rows}, {words}], by q and k");
            require(fits, &format!("block_mask.{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == DType::U32, &format!("block_mask.{name}.dtype"), layout.dtype, "u32")?;
            layout.byte_span()?;
        }
        let bound = "unset, as the chosen blocks are";
        require(self.full.is_none() || self.chosen.is_some(), "block_mask.full", "set", bound)
    }
}
