//! What planning looks at of a block mask.

use super::grid::check_block;
use super::{BlockGrid, HeadBlocks};
use crate::error::require;
use crate::program::{Builder, Operand};
use crate::{DType, Result, Shapes};

/// What planning looks at of a [`crate::BlockMask`].
#[derive(Clone, Debug)]
pub(crate) struct BlockMaskShape {
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// Blocks along the queries and along the keys.
    pub blocks: [usize; 2],
    /// The chosen blocks, u32 [batch or 1, heads, key heads or 1, blocks of queries, words].
    pub chosen: Option<Operand>,
    /// The full ones among them.
    pub full: Option<Operand>,
    /// What each query head sees; empty: all are listed.
    pub heads: Vec<HeadBlocks>,
}

impl BlockMaskShape {
    pub fn new(builder: &Builder, shapes: &Shapes) -> Result<Option<Self>> {
        let (chosen, full) = (builder.tensor("block_mask.chosen"), builder.tensor("block_mask.full"));
        let pair = |name: &str| -> Result<Option<[usize; 2]>> {
            let Some(numbers) = shapes.get_numbers(name) else { return Ok(None) };
            let pair = <[usize; 2]>::try_from(numbers).ok();
            require(pair.is_some(), name, format!("{numbers:?}"), "two numbers: queries and keys").map(|()| pair)
        };
        let (block, blocks) = (pair("block_mask.block")?, pair("block_mask.blocks")?);
        let heads = shapes.get_numbers("block_mask.heads").map(HeadBlocks::from_numbers).transpose()?;
        if block.is_none() && chosen.is_none() && full.is_none() && heads.is_none() {
            return Ok(None);
        }
        let (block, blocks) = (block.unwrap_or([64; 2]), blocks.unwrap_or_default());
        Ok(Some(Self { block, blocks, chosen, full, heads: heads.unwrap_or_default() }))
    }

    /// Query heads to a head of the mask.
    pub fn group(&self, heads: usize) -> usize {
        self.chosen.as_ref().map_or(1, |chosen| heads / chosen.shape()[1].max(1)).max(1)
    }

    /// Whether a mask fits [batch, heads, queries, keys] and so many key heads.
    pub fn check(&self, [batch, heads, queries, keys]: [usize; 4], heads_kv: usize) -> Result<()> {
        check_block(self.block)?;
        HeadBlocks::check(&self.heads, heads, self.chosen.is_some())?;
        let grid = BlockGrid { batch, heads, queries, keys, block: self.block };
        for (name, operand) in [("chosen", &self.chosen), ("full", &self.full)] {
            let Some(Operand { layout, .. }) = operand else { continue };
            let ([rows, cols], [.., words]) = (grid.blocks(), grid.shape());
            let bound = format!("[{rows}, {cols}], to match q and k in blocks of {:?}", self.block);
            require(self.blocks == [rows, cols], "block_mask.blocks", format!("{:?}", self.blocks), bound)?;
            let [of_batch, of_heads, ..] = layout.shape;
            let repeated = [of_batch, of_heads, rows, words];
            let fits =
                layout.shape == repeated && [1, batch].contains(&of_batch) && [1, heads, heads_kv].contains(&of_heads);
            let bound = format!("[{batch} or 1, {heads}, {heads_kv} or 1, {rows}, {words}], to match q and k");
            require(fits, &format!("block_mask.{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == DType::U32, &format!("block_mask.{name}.dtype"), layout.dtype, "u32")?;
            layout.byte_span()?;
        }
        let bound = "unset, as the chosen blocks are";
        require(self.full.is_none() || self.chosen.is_some(), "block_mask.full", "set", bound)
    }
}
