//! SeerAttention's gate for prompts on a device.

use super::attention::AttentionInputs;
use super::block_mask::BlockMask;
use super::seer_training::{SeerGateGradients, SeerGateSaved};
use super::seqlens::{Seqlens, Sequences};
#[cfg(doc)]
use crate::Selector;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::{Cache, Planner};
use crate::program::{Name, Program};
#[cfg(doc)]
use crate::{BlockSparseAttention, Error, ScoreReduction};
use crate::{FlashParams, Gpu, HeadGroups, Prepared, Result, SeerGateParams, Shapes, Tensor};
use std::borrow::Cow;

/// What a prefill gate reads.
#[derive(Clone, Copy, Debug)]
pub struct SeerGateInputs<'a> {
    /// Queries before their rotary embedding, [batch, heads_q, queries, head_dim].
    pub q: &'a Tensor,
    /// Keys before theirs, [batch, heads_kv, keys, head_dim].
    pub k: &'a Tensor,
    /// Linear map of pooled queries, [1, heads_q, kinds of `pool_q` · head_dim, gate_dim]. Unset: pooled queries are used as they are; then
    /// there is one kind of pooling, and gate_dim is head_dim.
    pub wq: Option<&'a Tensor>,
    /// Linear map of pooled keys, [1, heads_q or heads_kv, kinds of `pool_k` · head_dim, gate_dim].
    pub wk: &'a Tensor,
    /// The number of queries in each batch entry; the rest are padding. On the host.
    pub seqlens_q: Option<Seqlens<'a>>,
    /// The number of keys in each batch entry. On the host.
    pub seqlens_k: Option<Seqlens<'a>>,
    /// Packed queries: q is [1, heads_q, all queries, head_dim]. On the host.
    pub cu_seqlens_q: Option<Seqlens<'a>>,
    /// Packed keys.
    pub cu_seqlens_k: Option<Seqlens<'a>>,
}

impl<'a> SeerGateInputs<'a> {
    /// Without a map of queries, at full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, wk: &'a Tensor) -> Self {
        let (wq, seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k) = (None, None, None, None, None);
        Self { q, k, wq, wk, seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k }
    }

    fn sequences(&self) -> Sequences<'a, 4, 2> {
        let seqlens = [self.seqlens_q, self.seqlens_k, self.cu_seqlens_q, self.cu_seqlens_k];
        Sequences::of_sides(seqlens, [None; 2])
    }
}

impl Call for SeerGateInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([("q", Some(self.q)), ("k", Some(self.k)), ("wq", self.wq), ("wk", Some(self.wk))]);
        all.extend(self.sequences().tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.sequences().numbers().collect()
    }
}

/// SeerAttention's gate for a prompt, on one device. Queries and keys, before their rotary embedding, are pooled over blocks, pass through
/// a linear map for each head, and are rotated by the gate's own rotary embedding:
///
/// `z = Qg Kgᵀ / √gate_dim`, `P = softmax(z)` over the blocks that a row sees, and a [`Selector`] turns them into a block mask.
/// Nothing is read back: the mask goes straight into [`crate::BlockSparseAttention`].
///
/// A row whose scores are NaN chooses all that it sees, so that the fault shows in attention's result.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::gate::{Pool, SeerGate, SeerGateInputs, SeerGateParams, Selector};
/// use wgpu_attention::{DType, Gpu, Tensor};
/// let gpu = Gpu::request().await?;
/// // Blocks of two tokens, of width 2; queries prefer the keys that point their way.
/// let q = Tensor::upload(&gpu, [1, 1, 4, 2], DType::F32, &[0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0, 0.0]).await?;
/// let k = Tensor::upload(&gpu, [1, 1, 4, 2], DType::F32, &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]).await?;
/// let wk = Tensor::upload(&gpu, [1, 1, 2, 2], DType::F32, &[1.0, 0.0, 0.0, 1.0]).await?;
/// let params = SeerGateParams {
///     block: [2, 2],
///     pool_k: vec![Pool::Avg],
///     rope_theta: None,
///     causal: None,
///     selector: Selector::Budget(2),
///     last_rows_dense: false,
///     ..SeerGateParams::default()
/// };
/// let mask = SeerGate::new(&gpu, params)?.forward(&SeerGateInputs::new(&q, &k, &wk)).await?;
/// assert_eq!(mask.read().await?, [false, true, true, false]);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct SeerGate {
    gpu: Gpu,
    params: SeerGateParams,
    cache: Cache,
}

impl SeerGate {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a block size that is not a power of two, a list of poolings that is empty or names a kind twice, a selector
    /// whose bound is out of range, or a budget smaller than a block.
    pub fn new(gpu: &Gpu, params: SeerGateParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params, cache: Cache::default() })
    }

    /// The params.
    pub fn params(&self) -> &SeerGateParams {
        &self.params
    }

    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`SeerGateParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// Compiles and allocates all that these shapes need. A call is `(inputs, [("chosen", &chosen)])`, with `("logits", …)` and
    /// `("scores", …)` where those are wanted: see [`SeerGateParams::plan`].
    ///
    /// # Errors
    /// Those of [`SeerGateParams::plan`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &[]).await
    }

    /// The block mask in one call: allocates it and submits. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`SeerGate::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &SeerGateInputs<'_>) -> Result<BlockMask> {
        Ok(self.submit(inputs, &[]).await?.0)
    }

    /// The same, with the scores before the softmax, f32 [batch, heads_q, rows, blocks of keys], −∞ where a row does not see a block, and
    /// their softmax, which is 0 there.
    ///
    /// # Errors
    /// Those of [`SeerGate::forward`].
    pub async fn forward_with_scores(&self, inputs: &SeerGateInputs<'_>) -> Result<(BlockMask, Tensor, Tensor)> {
        let (mask, scores) = self.submit(inputs, &["logits", "scores"]).await?;
        let [logits, scores] = scores.expect("asked for");
        Ok((mask, logits, scores))
    }

    async fn submit(
        &self,
        inputs: &SeerGateInputs<'_>,
        wanted: &[&'static str],
    ) -> Result<(BlockMask, Option<[Tensor; 2]>)> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "forward", plan, &[], inputs, &[], wanted).await?;
        let (_, grid) = self.params.training(self.gpu.caps(), &Shapes::of(inputs))?;
        let mask = BlockMask::from_bits(&self.gpu, grid, &found.take("chosen"), None)?;
        let scores = (!wanted.is_empty()).then(|| [found.take("logits"), found.take("scores")]);
        Ok((mask, scores))
    }

    /// Computes the logits, and returns them with what the gradients need.
    ///
    /// # Errors
    /// Those of [`SeerGate::forward`].
    pub async fn forward_for_training(&self, inputs: &SeerGateInputs<'_>) -> Result<SeerGateSaved> {
        let (training, _) = self.params.training(self.gpu.caps(), &Shapes::of(inputs))?;
        SeerGateSaved::new(&self.gpu, training, inputs).await
    }

    /// The target: for each block, the largest probability that attention gives to any pair in it. Each row is divided by its sum. f32
    /// [batch, heads_q, rows, blocks of keys]. `attention`, its inputs and the log-sum-exp are those of the dense attention whose blocks
    /// the gate learns; `gate` is what the gate reads.
    ///
    /// # Errors
    /// Those of [`ScoreReduction::forward`] and [`SeerGate::forward`].
    pub async fn target(
        &self,
        gate: &SeerGateInputs<'_>,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let (training, _) = self.params.training(self.gpu.caps(), &Shapes::of(gate))?;
        training.target_of(&self.gpu, HeadGroups::Each, attention, inputs, lse).await
    }

    /// A target from any numbers that are not negative, f32 [batch, heads_q, rows, blocks of keys]: each row is divided by its sum (+ 1e-9)
    /// over the blocks that it sees, and is 0 elsewhere.
    ///
    /// # Errors
    /// [`Error::Argument`] for another shape or type; those of [`SeerGate::forward`].
    pub async fn normalize(&self, gate: &SeerGateInputs<'_>, wanted: &Tensor) -> Result<Tensor> {
        let (training, _) = self.params.training(self.gpu.caps(), &Shapes::of(gate))?;
        training.normalized(&self.gpu, wanted).await
    }

    /// The Kullback-Leibler divergence of softmax(logits) from the target: its mean over all elements of the rows from `from_row` on, times
    /// `weight` (10 in SeerAttention), f32 [1, 1, 1, 1]. Also returns its gradient with respect to the logits, `weight · (softmax(z) · Σ T
    /// − T) / elements`. The target is f32, not negative, [batch, heads_q, rows, blocks of keys]; what a row does not see is ignored.
    ///
    /// # Errors
    /// [`Error::Argument`] for a target of another shape or type, a weight that is not finite, a first row beyond the last; those of
    /// [`SeerGate::forward`].
    pub async fn loss(
        &self,
        saved: &SeerGateSaved,
        target: &Tensor,
        weight: f32,
        from_row: usize,
    ) -> Result<(Tensor, Tensor)> {
        saved.loss(&self.gpu, target, weight, from_row).await
    }

    /// Gradients of the weights from that of the logits, f32 [batch, heads_q, rows, blocks of keys]; what a row does not see is ignored.
    /// Queries and keys get no gradients.
    ///
    /// # Errors
    /// [`Error::Argument`] for a gradient of another shape or type; those of [`SeerGate::forward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        saved.backward(&self.gpu, dlogits).await
    }
}
