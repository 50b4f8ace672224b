//! Which blocks are computed: a bitmap on the GPU.

use super::convert::Conversion;
use super::{BlockGrid, BlockMaskShape, HeadBlocks};
use crate::dispatch::check_device;
use crate::error::require;
use crate::{DType, Error, Gpu, Layout, Result, Tensor};

/// Rows of ascending numbers one after another: of row r of (batch entry, head, block of queries) those with index
/// offsets\[r\] to offsets\[r + 1\] − 1 name blocks of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockList {
    /// u32 [1, 1, 1, rows + 1]. Ascends from 0 to at most the number of indices.
    pub offsets: Tensor,
    /// u32 [1, 1, 1, any number]. Ascends within a row.
    pub indices: Tensor,
}

/// The chosen blocks in lists, as FlexAttention has them.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockLists {
    /// Blocks in which masks are asked.
    pub partial: BlockList,
    /// Blocks of which masks hide nothing: chosen too.
    pub full: Option<BlockList>,
}

/// Which blocks of queries and keys are computed: see [`super::BlockSparseAttention`]. It lives on the GPU, and masks that
/// kernels made are used without being read back. Cloning copies no data.
///
/// What is *chosen* is a bitmap ([`BlockGrid::shape`]); so is what is *full*: a chosen block of which the caller's `mask_mod`
/// hides nothing. Bits beyond the last block are not looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMask {
    gpu: Gpu,
    shape: BlockMaskShape,
    chosen: Option<Tensor>,
    full: Option<Tensor>,
}

impl BlockMask {
    /// No lists: every head sees all keys, or the first and the last ones.
    ///
    /// # Errors
    /// [`Error::Argument`] for a listed head, and for no head at all.
    pub fn from_heads(gpu: &Gpu, heads: Vec<HeadBlocks>) -> Result<Self> {
        require(!heads.is_empty(), "heads.len()", 0, "at least 1")?;
        HeadBlocks::check(&heads, heads.len(), false)?;
        let shape = BlockMaskShape { block: [64; 2], blocks: [0; 2], chosen: None, full: None, heads };
        Ok(Self { gpu: gpu.clone(), shape, chosen: None, full: None })
    }

    /// Wraps bitmaps that the caller made, on the host or by kernels of any kind: u32 tensors of the shape [`BlockGrid::shape`].
    /// `full` goes with a `mask_mod`, which is not asked in the blocks that are set there.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for tensors of another shape or type; [`Error::OtherDevice`].
    pub fn from_bits(gpu: &Gpu, grid: BlockGrid, chosen: &Tensor, full: Option<&Tensor>) -> Result<Self> {
        grid.check()?;
        for (name, tensor) in [("chosen", Some(chosen)), ("full", full)] {
            let Some(tensor) = tensor else { continue };
            check_device(name, tensor, gpu)?;
            let (shape, wanted) = (tensor.shape(), grid.shape());
            require(
                shape == wanted,
                &format!("{name}.shape"),
                format!("{shape:?}"),
                format!("{wanted:?}, by the grid"),
            )?;
            let dtype = tensor.layout().dtype;
            require(dtype == DType::U32, &format!("{name}.dtype"), dtype, "u32")?;
        }
        let layout = |tensor: &Tensor| tensor.layout().clone();
        let (of_chosen, of_full) = (Some(layout(chosen)), full.map(layout));
        let (block, blocks) = (grid.block, grid.blocks());
        let shape = BlockMaskShape { block, blocks, chosen: of_chosen, full: of_full, heads: vec![] };
        Ok(Self { gpu: gpu.clone(), shape, chosen: Some(chosen.clone()), full: full.cloned() })
    }

    /// The blocks for which `chosen(batch, head, block of queries, block of keys)` holds.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn from_fn(
        gpu: &Gpu,
        grid: BlockGrid,
        chosen: impl Fn(usize, usize, usize, usize) -> bool,
    ) -> Result<Self> {
        Self::from_rows(gpu, grid, |b, h, i| (0..grid.blocks()[1]).filter(|&j| chosen(b, h, i, j)).collect()).await
    }

    /// The blocks of keys that `chosen(batch, head, block of queries)` names, in any order.
    pub(super) async fn from_rows(
        gpu: &Gpu,
        grid: BlockGrid,
        chosen: impl Fn(usize, usize, usize) -> Vec<usize>,
    ) -> Result<Self> {
        grid.check()?;
        let [batch, heads, rows, words] = grid.shape();
        let mut bits = vec![0u32; batch * heads * rows * words];
        for (row, bits) in bits.chunks_mut(words.max(1)).enumerate() {
            for j in chosen(row / rows / heads, row / rows % heads, row % rows) {
                bits[j / 32] |= 1 << (j % 32);
            }
        }
        let tensor = Tensor::upload_u32(gpu, &bits).await?.view(Layout::heads_first(DType::U32, grid.shape()))?;
        Self::from_bits(gpu, grid, &tensor, None)
    }

    /// The blocks that lists on the host name: of row r of (batch entry, head, block of queries), the indices from
    /// offsets\[r\] on, up to offsets\[r + 1\]. `full` names blocks of which masks hide nothing.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for offsets or indices that do not ascend or are out of range.
    pub async fn from_host_lists(
        gpu: &Gpu,
        grid: BlockGrid,
        partial: (&[u32], &[u32]),
        full: Option<(&[u32], &[u32])>,
    ) -> Result<Self> {
        grid.check()?;
        let [batch, heads, rows, words] = grid.shape();
        let mut planes = [vec![0u32; batch * heads * rows * words], vec![0u32; batch * heads * rows * words]];
        for (name, lists, of_full) in [("partial", Some(partial), false), ("full", full, true)] {
            let Some((offsets, indices)) = lists else { continue };
            for (row, range) in check_lists(name, offsets, indices, grid)?.into_iter().enumerate() {
                for &j in &indices[range] {
                    let (word, bit) = (row * words + j as usize / 32, 1 << (j % 32));
                    planes[0][word] |= bit;
                    planes[1][word] |= if of_full { bit } else { 0 };
                }
            }
        }
        let layout = Layout::heads_first(DType::U32, grid.shape());
        let [chosen, of_full] = &planes;
        let chosen = Tensor::upload_u32(gpu, chosen).await?.view(layout.clone())?;
        let full = match full {
            Some(_) => Some(Tensor::upload_u32(gpu, of_full).await?.view(layout)?),
            None => None,
        };
        Self::from_bits(gpu, grid, &chosen, full.as_ref())
    }

    /// The blocks that lists on the GPU name, which nothing here reads back. Offsets and indices that do not ascend or are out
    /// of range are clamped or left out; reading the mask, or what attention made with it, is an error then.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for tensors of another shape or type; [`Error::OtherDevice`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn from_lists(gpu: &Gpu, grid: BlockGrid, lists: &BlockLists) -> Result<Self> {
        grid.check()?;
        let (chosen, full) = Conversion::new(gpu, grid).bits(lists).await?;
        Self::from_bits(gpu, grid, &chosen, full.as_ref())
    }

    /// The same mask where query head h sees what `heads[h]` says; the blocks hold for those that are
    /// [`HeadBlocks::Listed`].
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many as the mask has heads, or a multiple of them.
    pub fn with_heads(mut self, heads: Vec<HeadBlocks>) -> Result<Self> {
        let own = self.shape.chosen.as_ref().map_or(heads.len(), |layout| layout.shape[1]);
        let several = own > 0 && !heads.is_empty() && heads.len().is_multiple_of(own);
        HeadBlocks::check(&heads, if several { heads.len() } else { own }, self.chosen.is_some())?;
        self.shape.heads = heads;
        Ok(self)
    }

    /// The chosen blocks in lists, made on the GPU. `capacity` is how many there may be: where there are more, reading a list is
    /// an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for a mask without lists; [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    pub async fn to_lists(&self, capacity: usize) -> Result<BlockLists> {
        let (grid, chosen) = self.listed()?;
        Conversion::new(&self.gpu, grid).lists(chosen, self.full.as_ref(), capacity).await
    }

    /// The same mask seen from the keys: its rows are blocks of keys, its columns blocks of queries. Made on the GPU.
    ///
    /// # Errors
    /// [`Error::Argument`] for a mask without lists; [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    pub async fn transpose(&self) -> Result<Self> {
        let (grid, chosen) = self.listed()?;
        let conversion = Conversion::new(&self.gpu, grid);
        let turned = conversion.transposed(chosen).await?;
        let full = match &self.full {
            Some(full) => Some(conversion.transposed(full).await?),
            None => None,
        };
        Self::from_bits(&self.gpu, grid.transposed(), &turned, full.as_ref())
    }

    fn listed(&self) -> Result<(BlockGrid, &Tensor)> {
        let missing = || Error::argument("block_mask.chosen", "unset", "set: its heads have other kinds");
        let chosen = self.chosen.as_ref().ok_or_else(missing)?;
        let ([batch, heads, ..], [rows, cols], block) = (chosen.shape(), self.shape.blocks, self.shape.block);
        Ok((BlockGrid { batch, heads, queries: rows * block[0], keys: cols * block[1], block }, chosen))
    }

    /// What planning looks at.
    pub fn shape(&self) -> BlockMaskShape {
        self.shape.clone()
    }

    /// The bitmap of the chosen blocks.
    pub fn chosen(&self) -> Option<&Tensor> {
        self.chosen.as_ref()
    }

    /// The bitmap of those of which masks hide nothing, where it is known.
    pub fn full(&self) -> Option<&Tensor> {
        self.full.as_ref()
    }

    /// Chosen and full blocks.
    pub(crate) fn tensors(&self) -> [Option<&Tensor>; 2] {
        [self.chosen.as_ref(), self.full.as_ref()]
    }

    /// Whether each block is chosen, [batch, heads, blocks of queries, blocks of keys] of the bitmap's own.
    ///
    /// # Errors
    /// Those of [`Tensor::read`]; [`Error::Argument`] for a mask without lists.
    pub async fn read(&self) -> Result<Vec<bool>> {
        let (grid, chosen) = self.listed()?;
        let [.., words] = grid.shape();
        let bits = chosen.read_u32().await?;
        let row = |row: &[u32]| (0..grid.blocks()[1]).map(|j| row[j / 32] >> (j % 32) & 1 == 1).collect::<Vec<_>>();
        Ok(bits.chunks(words.max(1)).flat_map(row).collect())
    }
}

/// The range of indices of each row.
fn check_lists(name: &str, offsets: &[u32], indices: &[u32], grid: BlockGrid) -> Result<Vec<std::ops::Range<usize>>> {
    let [batch, heads, rows, _] = grid.shape();
    let count = batch * heads * rows;
    let bound = format!("{}, one more than rows", count + 1);
    require(offsets.len() == count + 1, &format!("{name}.offsets.len()"), offsets.len(), bound)?;
    require(offsets[0] == 0, &format!("{name}.offsets[0]"), offsets[0], "0")?;
    let most = indices.len();
    let mut ranges = Vec::with_capacity(count);
    for (i, pair) in offsets.windows(2).enumerate() {
        let bound = format!("at least the offset before it, {}, and at most {most}, the number of indices", pair[0]);
        let fits = pair[0] <= pair[1] && pair[1] as usize <= most;
        require(fits, &format!("{name}.offsets[{}]", i + 1), pair[1], bound)?;
        let range = pair[0] as usize..pair[1] as usize;
        for (at, &j) in range.clone().zip(&indices[range.clone()]) {
            let ascends = at == range.start || indices[at - 1] < j;
            let bound = "above the index before it in its row: indices ascend";
            require(ascends, &format!("{name}.indices[{at}]"), j, bound)?;
            let cols = grid.blocks()[1];
            let bound = format!("below {cols}, the blocks of keys");
            require((j as usize) < cols, &format!("{name}.indices[{at}]"), j, bound)?;
        }
        ranges.push(range);
    }
    Ok(ranges)
}
