//! Block masks from one form to another, on the GPU.

use super::tasks::{Mode, Task};
use super::{BlockGrid, BlockList, BlockLists, BlockMask};
use crate::dispatch::{Launch, Scratch, check_device, scratch};
use crate::error::require;
use crate::hook;
use crate::tensor::Verdict;
use crate::{DType, Error, Gpu, Hook, Layout, Result, Tensor};
use std::sync::Arc;

/// Conversions of masks over one grid.
pub(super) struct Conversion {
    gpu: Gpu,
    grid: BlockGrid,
}

impl Conversion {
    pub fn new(gpu: &Gpu, grid: BlockGrid) -> Self {
        Self { gpu: gpu.clone(), grid }
    }

    /// Plans, compiles and submits.
    async fn run(&self, task: Task<'_>, tensors: &[&Tensor], tables: &Scratch) -> Result<()> {
        let (kernel, slices) = task.plan(self.gpu.caps())?;
        if slices.is_empty() {
            return Ok(());
        }
        let launch = Launch::prepare(&self.gpu, &kernel, &slices, tables).await?;
        let mut encoder = self.gpu.encoder();
        launch.encode(&mut encoder.begin_compute_pass(&Default::default()), tensors, 0..slices.len())?;
        self.gpu.submit(encoder).await
    }

    async fn bitmap(&self, grid: BlockGrid) -> Result<Tensor> {
        Tensor::empty(&self.gpu, Layout::heads_first(DType::U32, grid.shape())).await
    }

    async fn numbers(&self, count: usize) -> Result<Tensor> {
        Tensor::empty(&self.gpu, Layout::heads_first(DType::U32, [1, 1, 1, count])).await
    }

    pub async fn transposed(&self, from: &Tensor) -> Result<Tensor> {
        let to = self.bitmap(self.grid.transposed()).await?;
        self.run(self.grid.transposition([from.layout(), to.layout()]), &[from, &to], &Scratch::default()).await?;
        Ok(to.under_all(from))
    }

    /// Chosen and full blocks from lists.
    pub async fn bits(&self, lists: &BlockLists) -> Result<(Tensor, Option<Tensor>)> {
        let full = match &lists.full {
            Some(list) => Some(self.plane("full", list, None).await?),
            None => None,
        };
        Ok((self.plane("partial", &lists.partial, full.as_ref()).await?, full))
    }

    /// What one list names, and what is set in `with`.
    async fn plane(&self, name: &'static str, list: &BlockList, with: Option<&Tensor>) -> Result<Tensor> {
        let BlockList { offsets, indices } = list;
        let rows = self.grid.rows();
        for (part, tensor, count) in [("offsets", offsets, Some(rows + 1)), ("indices", indices, None)] {
            let what = format!("{name}.{part}");
            check_device(&what, tensor, &self.gpu)?;
            let (shape, dtype) = (tensor.shape(), tensor.layout().dtype);
            let bound = count.map_or("[1, 1, 1, any number]".into(), |n| format!("[1, 1, 1, {n}], one more than rows"));
            let fits = shape[..3] == [1, 1, 1] && count.is_none_or(|count| shape[3] == count);
            require(fits, &format!("{what}.shape"), format!("{shape:?}"), bound)?;
            require(dtype == DType::U32, &format!("{what}.dtype"), dtype, "u32")?;
        }
        let to = self.bitmap(self.grid).await?;
        let tables = scratch(&self.gpu, &[("problem", 16)]).await?;
        let tensors = [offsets, indices, with.unwrap_or(offsets), &to];
        let mode = if with.is_some() { Mode::With } else { Mode::One };
        self.run(self.grid.bits(tensors.map(Tensor::layout), mode), &tensors, &tables).await?;
        let lists = [offsets, indices];
        self.run(self.grid.list_problem(lists.map(Tensor::layout)), &lists, &tables).await?;
        let (cols, count) = (self.grid.blocks()[1], indices.shape()[3]);
        let judge = move |words: &[u32]| judge(name, words, cols, count);
        let to = to.under(Verdict { words: tables[&"problem"].clone(), judge: Arc::new(judge) });
        Ok(lists.into_iter().chain(with).fold(to, Tensor::under_all))
    }

    /// The lists of chosen and full blocks.
    pub async fn lists(&self, chosen: &Tensor, full: Option<&Tensor>, capacity: usize) -> Result<BlockLists> {
        let mode = if full.is_some() { Mode::Without } else { Mode::One };
        let partial = self.list("partial", [chosen, full.unwrap_or(chosen)], mode, capacity).await?;
        let full = match full {
            Some(full) => Some(self.list("full", [full, full], Mode::One, capacity).await?),
            None => None,
        };
        Ok(BlockLists { partial, full })
    }

    async fn list(&self, name: &'static str, from: [&Tensor; 2], mode: Mode, capacity: usize) -> Result<BlockList> {
        let [one, other] = from;
        let (offsets, indices) = (self.numbers(self.grid.rows() + 1).await?, self.numbers(capacity).await?);
        let tables = scratch(&self.gpu, &[("problem", 16)]).await?;
        let tensors = [one, other, &offsets];
        self.run(self.grid.list_offsets(tensors.map(Tensor::layout), mode, capacity), &tensors, &tables).await?;
        let tensors = [one, other, &offsets, &indices];
        self.run(self.grid.list_indices(tensors.map(Tensor::layout), mode), &tensors, &tables).await?;
        let judge = move |words: &[u32]| match words[0] {
            0 => Ok(()),
            found => Err(Error::argument("capacity", capacity, format!("at least {found}: the mask's {name} blocks"))),
        };
        let verdict = Verdict { words: tables[&"problem"].clone(), judge: Arc::new(judge) };
        let under = |list: Tensor| from.into_iter().fold(list.under(verdict.clone()), Tensor::under_all);
        Ok(BlockList { offsets: under(offsets), indices: under(indices) })
    }
}

impl BlockMask {
    /// The blocks that the caller's functions show anything of, and as full ones those of which they hide nothing: each is asked
    /// for every pair, on the GPU. Give the same functions as `mask_mod`, which is then asked in the other blocks only.
    ///
    /// The functions see the grid's lengths as those of the sequence, and its batch entries and heads: a mask over one head asks
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
        hook::check(gpu.caps(), &placed)?;
        hook::check_devices(gpu, &placed)?;
        let conversion = Conversion::new(gpu, grid);
        let (chosen, full) = (conversion.bitmap(grid).await?, conversion.bitmap(grid).await?);
        let task = grid.asked([chosen.layout(), full.layout()], placed);
        conversion.run(task, &[&chosen, &full], &Scratch::default()).await?;
        Self::from_bits(gpu, grid, &chosen, Some(&full))
    }
}

/// What `shaders/blocks/from_lists.wgsl` found wrong.
fn judge(name: &str, words: &[u32], cols: usize, count: usize) -> Result<()> {
    let [found, value, before, ..] = *words else { return Ok(()) };
    if found == 0 {
        return Ok(());
    }
    let (place, rule) = ((u32::MAX - found) / 4, (u32::MAX - found) % 4);
    let (part, bound) = match rule {
        0 if place == 0 => ("offsets", "0".to_string()),
        0 => ("offsets", format!("at least the offset before it, {before}")),
        1 => ("offsets", format!("at most {count}, the number of indices")),
        2 => ("indices", format!("above the index before it in its row, {before}: indices ascend")),
        _ => ("indices", format!("below {cols}, the blocks of keys")),
    };
    Err(Error::argument(format!("{name}.{part}[{place}]"), value, bound))
}
