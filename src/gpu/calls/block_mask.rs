//! Block masks on a device: bitmaps, and what they are made from.

mod builders;
mod random;

use crate::error::require;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::Planner;
use crate::gpu::prepared::check_device;
use crate::program::{Name, hook};
use crate::{BlockGrid, DType, Error, Gpu, HeadBlocks, Hook, Layout, Result, Tensor};
use std::borrow::Cow;

/// Rows of ascending numbers, one after another. For row r of (batch entry, head, block of queries), the indices at
/// offsets\[r\] to offsets\[r + 1\] − 1 name blocks of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockList {
    /// u32 [1, 1, 1, rows + 1]. Ascends from 0 to at most the number of indices.
    pub offsets: Tensor,
    /// u32 [1, 1, 1, any number]. Ascends within a row.
    pub indices: Tensor,
}

/// A `BlockMask` selects the blocks of queries and keys to compute: see [`crate::BlockSparseAttention`]. It lives on the GPU, and masks
/// that kernels made are used without being read back. Cloning copies no data.
///
/// The *chosen* blocks are a bitmap ([`BlockGrid::shape`]). So are the *full* ones: chosen blocks in which the caller's `mask_mod` hides
/// nothing. Bits beyond the last block are ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMask {
    gpu: Gpu,
    block: [usize; 2],
    blocks: [usize; 2],
    chosen: Option<Tensor>,
    full: Option<Tensor>,
    heads: Vec<HeadBlocks>,
}

impl Call for BlockMask {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("block_mask.chosen", self.chosen.as_ref()), ("block_mask.full", self.full.as_ref())])
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let mut all: Vec<(Name, Cow<'_, [usize]>)> = vec![];
        if self.chosen.is_some() {
            all.push(("block_mask.block".into(), (&self.block[..]).into()));
            all.push(("block_mask.blocks".into(), (&self.blocks[..]).into()));
        }
        if !self.heads.is_empty() {
            all.push(("block_mask.heads".into(), HeadBlocks::numbers(&self.heads).into()));
        }
        all
    }
}

impl BlockGrid {
    /// A grid with a mask for each batch entry and query head of `q` over the keys of `k`, in blocks of [queries, keys].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{BlockGrid, DType, Gpu, Layout, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let q = Tensor::empty(&gpu, Layout::heads_first(DType::F16, [1, 8, 300, 64])).await?;
    /// let grid = BlockGrid::of(&q, &q, [64, 64]);
    /// assert_eq!((grid.heads, grid.blocks()), (8, [5, 5]));
    /// // One mask for all heads:
    /// assert_eq!(BlockGrid { heads: 1, ..grid }.shape(), [1, 1, 5, 1]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub fn of(q: &Tensor, k: &Tensor, block: [usize; 2]) -> Self {
        let [batch, heads, queries, _] = q.shape();
        Self { batch, heads, queries, keys: k.shape()[2], block }
    }
}

impl BlockMask {
    /// A mask without lists: every head sees all keys, or the first and the last ones.
    ///
    /// # Errors
    /// [`Error::Argument`] for a listed head, and for no head at all.
    pub fn from_heads(gpu: &Gpu, heads: Vec<HeadBlocks>) -> Result<Self> {
        require(!heads.is_empty(), "heads.len()", 0, "at least 1")?;
        HeadBlocks::check(&heads, heads.len(), false)?;
        Ok(Self { gpu: gpu.clone(), block: [64; 2], blocks: [0; 2], chosen: None, full: None, heads })
    }

    /// Wraps bitmaps that the caller made, on the host or by kernels of any kind: u32 tensors of the shape [`BlockGrid::shape`]. `full`
    /// goes with a `mask_mod`, which is not evaluated in the blocks that are set there.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for tensors of another shape or type; [`Error::OtherDevice`].
    pub fn from_bits(gpu: &Gpu, grid: BlockGrid, chosen: &Tensor, full: Option<&Tensor>) -> Result<Self> {
        grid.check()?;
        for (name, tensor) in [("chosen", Some(chosen)), ("full", full)] {
            let Some(tensor) = tensor else { continue };
            check_device(name, tensor, gpu)?;
            let (shape, wanted) = (tensor.shape(), grid.shape());
            let bound = format!("{wanted:?}, to match the grid");
            require(shape == wanted, &format!("{name}.shape"), format!("{shape:?}"), bound)?;
            let dtype = tensor.layout().dtype;
            require(dtype == DType::U32, &format!("{name}.dtype"), dtype, "u32")?;
        }
        let (chosen, full) = (Some(chosen.clone()), full.cloned());
        Ok(Self { gpu: gpu.clone(), block: grid.block, blocks: grid.blocks(), chosen, full, heads: vec![] })
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
    async fn from_rows(gpu: &Gpu, grid: BlockGrid, chosen: impl Fn(usize, usize, usize) -> Vec<usize>) -> Result<Self> {
        grid.check_on_host(gpu.caps())?;
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

    /// The blocks that lists on the host name: for row r of (batch entry, head, block of queries), the indices from
    /// offsets\[r\] up to, but not including, offsets\[r + 1\]. `full` names blocks in which masks hide nothing.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for offsets or indices that do not ascend or are out of range.
    pub async fn from_host_lists(
        gpu: &Gpu,
        grid: BlockGrid,
        partial: (&[u32], &[u32]),
        full: Option<(&[u32], &[u32])>,
    ) -> Result<Self> {
        grid.check_on_host(gpu.caps())?;
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

    /// The blocks that lists on the GPU name, as in FlexAttention: `partial` names those in which masks are evaluated, `full` those in
    /// which masks hide nothing, which are chosen too. Nothing is read back. Offsets and indices that do not ascend or are out of range are
    /// clamped or left out; reading the mask, or what attention computed with it, is then an error.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for tensors of another shape or type; [`Error::OtherDevice`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn from_lists(gpu: &Gpu, grid: BlockGrid, partial: &BlockList, full: Option<&BlockList>) -> Result<Self> {
        grid.check()?;
        let full = match full {
            Some(list) => Some(plane(gpu, &grid, "full", list, None).await?),
            None => None,
        };
        let chosen = plane(gpu, &grid, "partial", partial, full.as_ref()).await?;
        Self::from_bits(gpu, grid, &chosen, full.as_ref())
    }

    /// The blocks in which the caller's functions show any key; those in which they hide none are full. Each function is evaluated for
    /// every pair, on the GPU. Give the same functions as `mask_mod`, which is then evaluated only in blocks that are not full.
    ///
    /// The functions see the grid's lengths as those of the sequence, and its batch entries and heads: a mask over one head is evaluated
    /// for head 0.
    ///
    /// # Errors
    /// Those of [`BlockGrid::check`]; [`Error::Argument`] for a hook that cannot be a mask; [`Error::Hook`] for one that does not
    /// compile; [`Error::OtherDevice`], [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{BlockGrid, BlockMask, Gpu, Hook};
    /// let gpu = Gpu::request().await?;
    /// let causal = Hook::new("causal", "fn causal(at: Position) -> bool { return at.key <= at.query; }");
    /// let grid = BlockGrid { batch: 1, heads: 1, queries: 128, keys: 128, block: [64, 64] };
    /// let mask = BlockMask::from_hooks(&gpu, grid, &[causal]).await?;
    /// assert_eq!(mask.read().await?, [true, false, true, true]);
    /// assert_eq!(mask.full().unwrap().read_u32().await?, [0b00, 0b01]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn from_hooks(gpu: &Gpu, grid: BlockGrid, hooks: &[Hook]) -> Result<Self> {
        grid.check()?;
        let placed = hook::place(&[], hooks);
        super::hook::check_devices(gpu, &placed)?;
        let plan: Planner = &|caps, shapes| grid.plan_from_hooks(hooks, caps, shapes);
        let none: [(&str, &Tensor); 0] = [];
        let mut found = gpu.run(plan, &super::hook::defaults(&placed), &none).await?;
        Self::from_bits(gpu, grid, &found.take("chosen"), Some(&found.take("full")))
    }

    /// The same mask where `heads[h]` says what query head h sees. The blocks apply to the heads that are
    /// [`HeadBlocks::Listed`].
    ///
    /// # Errors
    /// [`Error::Argument`] unless there are as many as the mask has heads, or a multiple of that.
    pub fn with_heads(self, heads: Vec<HeadBlocks>) -> Result<Self> {
        let own = self.chosen.as_ref().map_or(heads.len(), |chosen| chosen.shape()[1]);
        let several = own > 0 && !heads.is_empty() && heads.len().is_multiple_of(own);
        HeadBlocks::check(&heads, if several { heads.len() } else { own }, self.chosen.is_some())?;
        Ok(Self { heads, ..self })
    }

    /// The chosen blocks as lists, the partial and the full ones apart, made on the GPU. `capacity` is how many blocks a list may hold: if
    /// there are more, reading the list is an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for a mask without lists; [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    pub async fn to_lists(&self, capacity: usize) -> Result<(BlockList, Option<BlockList>)> {
        let (grid, chosen) = self.listed()?;
        let list = async |name: &'static str, from: &Tensor, without: Option<&Tensor>| -> Result<BlockList> {
            let plan: Planner = &|caps, shapes| grid.plan_to_list(name, capacity, caps, shapes);
            let given = present([("from", Some(from)), ("without", without)]);
            let mut found = self.gpu.run(plan, &[], &given).await?;
            Ok(BlockList { offsets: found.take("offsets"), indices: found.take("indices") })
        };
        let partial = list("partial", chosen, self.full.as_ref()).await?;
        let full = match &self.full {
            Some(full) => Some(list("full", full, None).await?),
            None => None,
        };
        Ok((partial, full))
    }

    /// The same mask seen from the keys: its rows are blocks of keys, its columns blocks of queries. Made on the GPU.
    ///
    /// # Errors
    /// [`Error::Argument`] for a mask without lists; [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    pub async fn transpose(&self) -> Result<Self> {
        let (grid, chosen) = self.listed()?;
        let plan: Planner = &|caps, shapes| grid.plan_transposition(caps, shapes);
        let turned = async |from| Ok::<_, Error>(self.gpu.run(plan, &[], &[("from", from)]).await?.take("to"));
        let full = match &self.full {
            Some(full) => Some(turned(full).await?),
            None => None,
        };
        Self::from_bits(&self.gpu, grid.transposed(), &turned(chosen).await?, full.as_ref())
    }

    fn listed(&self) -> Result<(BlockGrid, &Tensor)> {
        let missing = || Error::argument("block_mask.chosen", "unset", "set: this mask has no lists");
        let chosen = self.chosen.as_ref().ok_or_else(missing)?;
        let ([batch, heads, ..], [rows, cols], block) = (chosen.shape(), self.blocks, self.block);
        Ok((BlockGrid { batch, heads, queries: rows * block[0], keys: cols * block[1], block }, chosen))
    }

    /// The bitmap of the chosen blocks.
    pub fn chosen(&self) -> Option<&Tensor> {
        self.chosen.as_ref()
    }

    /// The bitmap of the blocks in which masks hide nothing, where it is known.
    pub fn full(&self) -> Option<&Tensor> {
        self.full.as_ref()
    }

    /// Whether each block is chosen: [batch, heads, blocks of queries, blocks of keys], with the bitmap's own batch and heads.
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

/// What one list names, and what is set in `with`.
async fn plane(
    gpu: &Gpu,
    grid: &BlockGrid,
    name: &'static str,
    list: &BlockList,
    with: Option<&Tensor>,
) -> Result<Tensor> {
    let BlockList { offsets, indices } = list;
    let rows = grid.rows();
    for (part, tensor, count) in [("offsets", offsets, Some(rows + 1)), ("indices", indices, None)] {
        let what = format!("{name}.{part}");
        check_device(&what, tensor, gpu)?;
        let (shape, dtype) = (tensor.shape(), tensor.layout().dtype);
        let bound = count.map_or("[1, 1, 1, any number]".into(), |n| format!("[1, 1, 1, {n}], the rows + 1"));
        let fits = shape[..3] == [1, 1, 1] && count.is_none_or(|count| shape[3] == count);
        require(fits, &format!("{what}.shape"), format!("{shape:?}"), bound)?;
        require(dtype == DType::U32, &format!("{what}.dtype"), dtype, "u32")?;
    }
    let plan: Planner = &|caps, shapes| grid.plan_from_list(name, caps, shapes);
    let given = present([("offsets", Some(offsets)), ("indices", Some(indices)), ("with", with)]);
    Ok(gpu.run(plan, &[], &given).await?.take("to"))
}

/// The range of indices of each row.
fn check_lists(name: &str, offsets: &[u32], indices: &[u32], grid: BlockGrid) -> Result<Vec<std::ops::Range<usize>>> {
    let [batch, heads, rows, _] = grid.shape();
    let count = batch * heads * rows;
    let bound = format!("{}, one more than the number of rows", count + 1);
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
            let bound = format!("below {cols}, the number of blocks of keys");
            require((j as usize) < cols, &format!("{name}.indices[{at}]"), j, bound)?;
        }
        ranges.push(range);
    }
    Ok(ranges)
}
