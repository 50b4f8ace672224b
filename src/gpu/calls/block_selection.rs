//! Block masks from scores, on a device.

use super::block_mask::BlockMask;
use super::seqlens::{Seqlens, Sequences};
#[cfg(doc)]
use crate::Error;
use crate::gate::BlockSelection;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::Planner;
use crate::program::Name;
use crate::{BlockGrid, Gpu, Prepared, Result, Shapes, Tensor};
use std::borrow::Cow;

/// Scores of blocks, and the lengths of the tokens behind them.
#[derive(Clone, Copy, Debug)]
pub struct BlockScores<'a> {
    /// f32 [batch, heads, blocks of queries, blocks of keys], before any softmax.
    pub scores: &'a Tensor,
    /// The number of queries in each batch entry; the rest are padding. On the host.
    pub seqlens_q: Option<Seqlens<'a>>,
    /// The number of keys in each batch entry. On the host.
    pub seqlens_k: Option<Seqlens<'a>>,
}

impl<'a> BlockScores<'a> {
    /// At full length.
    pub fn new(scores: &'a Tensor) -> Self {
        Self { scores, seqlens_q: None, seqlens_k: None }
    }

    fn sequences(&self) -> Sequences<'a, 4, 2> {
        Sequences::of_sides([self.seqlens_q, self.seqlens_k, None, None], [None; 2])
    }
}

impl Call for BlockScores<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([("scores", Some(self.scores))]);
        all.extend(self.sequences().tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.sequences().numbers().collect()
    }
}

impl BlockMask {
    /// The blocks that rows of scores choose, whatever the scores come from: made on the GPU, unread. Blocks of one query and one key choose
    /// tokens. See [`BlockSelection::plan`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::gate::{BlockScores, BlockSelection, Selector};
    /// use wgpu_attention::{BlockGrid, BlockMask, Causal, DType, Gpu, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let grid = BlockGrid { batch: 1, heads: 1, queries: 4, keys: 6, block: [2, 2] };
    /// let scores = Tensor::upload(&gpu, [1, 1, 2, 3], DType::F32, &[1.0, 3.0, 9.0, 2.0, 2.0, 1.0]).await?;
    /// // The best block of each row; the first row does not see the last block.
    /// let selection = BlockSelection { causal: Some(Causal::BottomRight), ..BlockSelection::new(Selector::Budget(2)) };
    /// let mask = BlockMask::from_scores(&gpu, grid, &selection, &BlockScores::new(&scores)).await?;
    /// assert_eq!(mask.read().await?, [false, true, false, true, false, false]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`BlockSelection::plan`]; [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::OtherDevice`].
    pub async fn from_scores(
        gpu: &Gpu,
        grid: BlockGrid,
        selection: &BlockSelection,
        scores: &BlockScores<'_>,
    ) -> Result<Self> {
        let plan: Planner = &|caps, shapes| selection.plan(&grid, caps, shapes);
        let mut found = gpu.run(plan, &[], scores).await?;
        Self::from_bits(gpu, grid, &found.take("chosen"), None)
    }

    /// Compiles and allocates all that such a choice needs, for encoders of your own. A call is `(scores, [("chosen", &chosen)])`:
    /// [`BlockScores`], and a tensor for [`BlockMask::from_bits`].
    ///
    /// # Errors
    /// Those of [`BlockSelection::plan`]; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare_from_scores(
        gpu: &Gpu,
        grid: BlockGrid,
        selection: &BlockSelection,
        shapes: impl Into<Shapes>,
    ) -> Result<Prepared> {
        Prepared::new(gpu, selection.plan(&grid, gpu.caps(), &shapes.into())?, &[]).await
    }
}
