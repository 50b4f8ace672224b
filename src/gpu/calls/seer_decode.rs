//! SeerAttention's gate for decoding on a device.

use super::attention::AttentionInputs;
use super::block_mask::BlockMask;
use super::seer_training::{SeerGateGradients, SeerGateSaved};
use super::seqlens::{Seqlens, Sequences};
#[cfg(doc)]
use crate::Error;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::{Cache, Planner};
use crate::program::{Name, Program};
use crate::{BlockGrid, FlashParams, Gpu, HeadGroups, Prepared, Result, SeerDecodeGateParams, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// The weights of a gate for decoding.
#[derive(Clone, Copy, Debug)]
pub struct SeerDecodeWeights<'a> {
    /// Linear map of the queries of the heads that share a key head, concatenated: [1, heads_kv, heads_q / heads_kv · head_dim, gate_dim].
    pub wq: &'a Tensor,
    /// Linear map of pooled keys, [1, heads_kv, kinds of `pool_k` · head_dim, gate_dim].
    pub wk: &'a Tensor,
    /// Weights of an RMS norm of the mapped queries, [1, 1, 1, gate_dim]. Unset: no norm.
    pub norm_q: Option<&'a Tensor>,
    /// The same for the mapped keys.
    pub norm_k: Option<&'a Tensor>,
}

impl Call for SeerDecodeWeights<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("wq", Some(self.wq)), ("wk", Some(self.wk)), ("norm_q", self.norm_q), ("norm_k", self.norm_k)])
    }
}

/// What a step of decoding reads.
#[derive(Clone, Copy, Debug)]
pub struct SeerDecodeInputs<'a> {
    /// Queries before their rotary embedding, [batch, heads_q, queries, head_dim]: the last tokens of each sequence.
    pub q: &'a Tensor,
    /// A vector for each full block of keys, [batch, heads_kv, blocks, gate_dim]: see [`SeerDecodeGate::compress`].
    pub compressed: &'a Tensor,
    /// Keys of each batch entry, including the queries' own tokens. On the GPU they may grow without another `prepare`.
    pub seqlens_k: Seqlens<'a>,
    /// Rows of the key tensor that attention reads: the mask has blocks for all of them.
    pub keys: usize,
}

impl<'a> SeerDecodeInputs<'a> {
    fn sequences(&self) -> Sequences<'a, 4, 2> {
        Sequences::of_sides([None, Some(self.seqlens_k), None, None], [None; 2])
    }
}

impl Call for SeerDecodeInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([("q", Some(self.q)), ("compressed", Some(self.compressed))]);
        all.extend(self.sequences().tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.sequences().numbers().chain([("keys".into(), vec![self.keys].into())]).collect()
    }
}

/// What becomes full: the keys of each batch entry before and after.
struct Growth<'a> {
    k: &'a Tensor,
    compressed: &'a Tensor,
    lengths: [&'a [usize]; 2],
}

impl Call for Growth<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("k", Some(self.k)), ("compressed", Some(self.compressed))])
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let [before, after] = self.lengths;
        vec![("before".into(), before.into()), ("after".into(), after.into())]
    }
}

/// SeerAttention-R's gate on one device. It caches a vector for each full block of keys ([`SeerDecodeGate::compress`]). A step of decoding
/// ([`SeerDecodeGate::forward`]) chooses blocks from the queries of all heads that share a key head:
///
/// `Qg = Σ_h q_h · Wq[h]`, `Kg = [max, min, mean](k) · Wk`, `z = turn(norm(Qg)) · turn(norm(Kg)) / √gate_dim`
///
/// The block that a query's own token is filling has z = 0 until it is full, and is always chosen. The mask has a row for each query and a
/// head for each key head. [`crate::BlockSparseAttention`] takes it without its being read back.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::gate::*;
/// use wgpu_attention::*;
/// let gpu = Gpu::request().await?;
/// let params = SeerDecodeGateParams {
///     block: 2,
///     pool_k: vec![Pool::Avg],
///     rope_theta: None,
///     selector: Selector::Budget(2),
///     ..Default::default()
/// };
/// let gate = SeerDecodeGate::new(&gpu, params)?;
/// let one = Tensor::upload(&gpu, [1, 1, 1, 1], DType::F32, &[1.0]).await?;
/// let weights = SeerDecodeWeights { wq: &one, wk: &one, norm_q: None, norm_k: None };
/// // Seven keys: three full blocks, with means 1, 5 and 3, and one that is being filled.
/// let k = Tensor::upload(&gpu, [1, 1, 8, 1], DType::F32, &[1.0, 1.0, 5.0, 5.0, 3.0, 3.0, 9.0, 0.0]).await?;
/// let compressed = Tensor::upload(&gpu, [1, 1, 4, 1], DType::F32, &[0.0; 4]).await?;
/// gate.compress(&weights, &k, &compressed, &[0], &[7]).await?;
/// assert_eq!(compressed.read().await?, [1.0, 5.0, 3.0, 0.0]);
/// let inputs = SeerDecodeInputs { q: &one, compressed: &compressed, seqlens_k: Seqlens::Host(&[7]), keys: 8 };
/// let mask = gate.forward(&weights, &inputs).await?;
/// assert_eq!(mask.read().await?, [false, true, false, true]); // the best, and its own
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct SeerDecodeGate {
    gpu: Gpu,
    params: SeerDecodeGateParams,
    cache: Arc<Cache>,
}

impl SeerDecodeGate {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGateParams::check`].
    pub fn new(gpu: &Gpu, params: SeerDecodeGateParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params, cache: Arc::default() })
    }

    /// The params.
    pub fn params(&self) -> &SeerDecodeGateParams {
        &self.params
    }

    /// What would run for a step of decoding.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGateParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// Compiles a step of decoding. A call is `(weights, inputs, [("chosen", &chosen)])`, with `("logits", …)` and `("scores", …)` where
    /// those are wanted; [`SeerDecodeGate::grid`] and [`BlockMask::from_bits`] make a mask from `chosen`.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGateParams::plan`]; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &[]).await
    }

    /// The grid of the mask that a step chooses.
    pub fn grid(&self, inputs: &SeerDecodeInputs<'_>) -> BlockGrid {
        self.params.grid(inputs.q.shape(), inputs.compressed.shape()[1], inputs.keys)
    }

    /// The block mask in one call: [batch, heads_kv, queries, blocks of keys]. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit together and lengths beyond `compressed` or `keys`; [`Error::OtherDevice`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn forward(&self, weights: &SeerDecodeWeights<'_>, inputs: &SeerDecodeInputs<'_>) -> Result<BlockMask> {
        Ok(self.submit(weights, inputs, &[]).await?.0)
    }

    /// The same, with the scores before the softmax, f32 [batch, heads_kv, queries, blocks of keys], and their softmax.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_with_scores(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
    ) -> Result<(BlockMask, Tensor, Tensor)> {
        let (mask, scores) = self.submit(weights, inputs, &["logits", "scores"]).await?;
        let [logits, scores] = scores.expect("asked for");
        Ok((mask, logits, scores))
    }

    async fn submit(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
        wanted: &[&'static str],
    ) -> Result<(BlockMask, Option<[Tensor; 2]>)> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        let call = (weights, inputs);
        let mut found = self.gpu.forward(&self.cache, "step", plan, &[], &call, &[], wanted).await?;
        let mask = BlockMask::from_bits(&self.gpu, self.grid(inputs), &found.take("chosen"), None)?;
        let scores = (!wanted.is_empty()).then(|| [found.take("logits"), found.take("scores")]);
        Ok((mask, scores))
    }

    /// Writes the vectors of the blocks that become full when batch entry b grows from `before[b]` to `after[b]` keys into `compressed`
    /// [batch, heads_kv, blocks, gate_dim]: block j into row j. The keys, before their rotary embedding, are [batch, heads_kv, rows,
    /// head_dim], with token t in row t mod rows, and rows a multiple of the block. They are a whole cache, or a ring that need only hold
    /// the block that is being filled and the new keys.
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit together, lengths that shrink, keys that are no longer in the ring, and
    /// blocks beyond `compressed`; [`Error::OtherDevice`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn compress(
        &self,
        weights: &SeerDecodeWeights<'_>,
        k: &Tensor,
        compressed: &Tensor,
        before: &[usize],
        after: &[usize],
    ) -> Result<()> {
        let plan: Planner = &|caps, shapes| self.params.plan_compression(caps, shapes);
        let call = (weights, Growth { k, compressed, lengths: [before, after] });
        self.gpu.forward(&self.cache, "compression", plan, &[], &call, &["compressed"], &[]).await.map(|_| ())
    }

    /// The same, for the caller to record: see [`SeerDecodeGateParams::plan_compression`]. A call is `(weights, [("k", &k), ("compressed",
    /// &compressed)])` and the numbers of the shapes.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::compress`].
    pub async fn prepare_compression(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.params.plan_compression(self.gpu.caps(), &shapes.into())?, &[]).await
    }

    /// Computes the logits [batch, heads_kv, queries, blocks of keys] from the tokens of whole sequences, before their rotary embedding,
    /// and returns them with what the gradients need. A query sees the blocks before its own.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_for_training(
        &self,
        weights: &SeerDecodeWeights<'_>,
        q: &Tensor,
        k: &Tensor,
    ) -> Result<SeerGateSaved> {
        let call = (weights, [("q", q), ("k", k)]);
        let training = self.params.training(self.gpu.caps(), &Shapes::of(call))?;
        SeerGateSaved::new(&self.gpu, training, &call).await
    }

    /// The target: for each query and each block of keys before its own, the largest probability that attention gives to any key of the
    /// block in any head that shares the key head. Each row is divided by its sum (+ 1e-9). f32 [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// Those of [`crate::ScoreReduction::forward`] and [`SeerDecodeGate::forward`].
    pub async fn target(
        &self,
        weights: &SeerDecodeWeights<'_>,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let call = (weights, [("q", inputs.q), ("k", inputs.k)]);
        let training = self.params.training(self.gpu.caps(), &Shapes::of(call))?;
        training.target_of(&self.gpu, HeadGroups::PerKvHead, attention, inputs, lse).await
    }

    /// The divergence from the target and its gradient with respect to the logits: see [`crate::SeerGate::loss`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::loss`].
    pub async fn loss(
        &self,
        saved: &SeerGateSaved,
        target: &Tensor,
        weight: f32,
        from_row: usize,
    ) -> Result<(Tensor, Tensor)> {
        saved.loss(&self.gpu, target, weight, from_row).await
    }

    /// Gradients of the weights from that of the logits: see [`crate::SeerGate::backward`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::backward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        saved.backward(&self.gpu, dlogits).await
    }
}
