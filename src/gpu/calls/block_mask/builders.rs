//! Masks by name. The position of a block of queries is counted from the bottom right: query i is at i + keys − queries, as under a causal
//! mask. "Up to its own" means up to the block of keys that holds the position of the block's last query.

use super::BlockMask;
use super::random::SplitMix;
use crate::error::require;
use crate::{BlockGrid, Gpu, Result};

impl BlockMask {
    /// Every block in which a causal mask leaves anything visible.
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`].
    pub async fn causal(gpu: &Gpu, grid: BlockGrid) -> Result<Self> {
        Self::from_rows(gpu, grid, |_, _, i| (0..grid.own(i).end).collect()).await
    }

    /// Each block of queries sees the first `sink` blocks of keys and the `local` ones up to its own: LongGen's window (arXiv 2410.01485).
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`].
    pub async fn sliding_window(gpu: &Gpu, grid: BlockGrid, sink: usize, local: usize) -> Result<Self> {
        Self::from_rows(gpu, grid, |_, _, i| (0..grid.own(i).end).filter(near(&grid, i, sink, local)).collect()).await
    }

    /// Each block of queries sees the first `sink` blocks of keys, its own, and every `stride`-th one counted back from its own: LongGen's
    /// strided blocks (arXiv 2410.01485). They are staggered by head: head h takes the blocks that are h mod `stride` farther back.
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`]; [`crate::Error::Argument`] for a stride of 0.
    pub async fn long_gen(gpu: &Gpu, grid: BlockGrid, sink: usize, stride: usize) -> Result<Self> {
        require(stride > 0, "stride", stride, "at least 1")?;
        let row = |_, h: usize, i| {
            let own = grid.own(i);
            let strided = |j: usize| own.contains(&j) || j < sink || (own.end - 1 - j) % stride == h % stride;
            (0..own.end).filter(|&j| strided(j)).collect()
        };
        Self::from_rows(gpu, grid, row).await
    }

    /// S2-Attention (arXiv 2407.17678): each block of queries sees the `local` blocks of keys up to its own and, of those before them,
    /// every `stride`-th. Each head takes another shard: block j where (j + h · max(1, ⌊stride / heads⌋) + 1) mod stride = 0.
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`]; [`crate::Error::Argument`] for a stride of 0.
    pub async fn s2_attention(gpu: &Gpu, grid: BlockGrid, local: usize, stride: usize) -> Result<Self> {
        require(stride > 0, "stride", stride, "at least 1")?;
        let step = (stride / grid.heads.max(1)).max(1);
        let row = |_, h: usize, i| {
            let near = near(&grid, i, 0, local);
            let shard = |j: usize| (j as u128 + h as u128 * step as u128 + 1).is_multiple_of(stride as u128);
            (0..grid.own(i).end).filter(|j| near(j) || shard(*j)).collect()
        };
        Self::from_rows(gpu, grid, row).await
    }

    /// BigBird (arXiv 2007.14062): the first `global` blocks of queries see all and are seen by all. Each block also sees `window` blocks
    /// on either side of its own and `random` others, which are the same for the same seed.
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`].
    pub async fn big_bird(
        gpu: &Gpu,
        grid: BlockGrid,
        global: usize,
        window: usize,
        random: usize,
        seed: u64,
    ) -> Result<Self> {
        let cols = grid.blocks()[1];
        let row = |b, h, i| {
            let own = grid.own(i);
            let near = own.start.saturating_sub(window)..own.end.saturating_add(window).min(cols);
            let known = |j: &usize| i < global || *j < global || near.contains(j);
            let rest: Vec<usize> = (0..cols).filter(|j| !known(j)).collect();
            let others = SplitMix::new(seed, [b, h, i]).sample(random, rest.len());
            (0..cols).filter(known).chain(others.into_iter().map(|n| rest[n])).collect()
        };
        Self::from_rows(gpu, grid, row).await
    }

    /// Each block of queries sees the share `density` of the blocks up to its own (`causal`) or of all, at random: rounded down, but at
    /// least one, and none at all for a density of 0. The mask is the same for the same seed.
    ///
    /// # Errors
    /// Those of [`BlockMask::from_fn`]; [`crate::Error::Argument`] for a density outside of [0, 1].
    pub async fn random(gpu: &Gpu, grid: BlockGrid, density: f32, causal: bool, seed: u64) -> Result<Self> {
        require((0.0..=1.0).contains(&density), "density", density, "within 0..=1")?;
        let row = |b, h, i| {
            let cols = if causal { grid.own(i).end } else { grid.blocks()[1] };
            let count = ((f64::from(density) * cols as f64) as usize).max(usize::from(density > 0.0));
            SplitMix::new(seed, [b, h, i]).sample(count, cols)
        };
        Self::from_rows(gpu, grid, row).await
    }
}

/// Of the blocks up to its own, the first `sink` and the last `local` ones.
fn near(grid: &BlockGrid, row: usize, sink: usize, local: usize) -> impl Fn(&usize) -> bool {
    let own = grid.own(row);
    // The last `local` blocks of the first query, too.
    let first = (own.start + 1).saturating_sub(local.max(1));
    let from = if local == 0 { own.end } else { first };
    move |&j| j < sink || j >= from
}
