//! The gate for decoding (SeerAttention-R, arXiv 2506.08889): every query chooses blocks for the heads that share a key head.

use super::frame::{Frame, SideFrame};
use super::kernels::SideParts;
use super::run::SeerGateOutput;
use super::step::{Chain, ChainPrepared, Part, Places, Task, Tensors};
use super::training::{SeerGateGradients, SeerGateSaved, SeerLoss};
use super::{Pool, Selector, check_block, check_pools, check_theta};
#[cfg(feature = "catalogue")]
use crate::Caps;
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::error::require;
use crate::packed::Side;
use crate::softmax::{MAX_HEAD_DIM, check_shapes};
use crate::{
    AttentionInputs, AttentionShapes, BlockGrid, BlockMask, Causal, DType, FlashParams, Gpu, HeadGroups, Layout,
    Result, Tensor,
};
use std::collections::BTreeMap;

/// What a gate for decoding computes.
#[derive(Clone, Debug, PartialEq)]
pub struct SeerDecodeGateParams {
    /// Keys of a block, a power of two. Default: 64.
    pub block: usize,
    /// How keys are pooled. Default: maximum, minimum, mean.
    pub pool_k: Vec<Pool>,
    /// The model's base of rotary angles: a query turns by its own position, a block of keys by that of its first token. Unset: no
    /// embedding. Default: 10000.
    pub rope_theta: Option<f32>,
    /// Added to the mean square in the RMS norms. Default: 10⁻⁶.
    pub norm_epsilon: f32,
    /// How blocks are chosen; the block that the query's own token lies in always is, besides. A density is ⌊r · M⌋ of M blocks here,
    /// at least one. Default: a budget of 4096 keys.
    pub selector: Selector,
    /// The first block is always chosen too. Default: no.
    pub sink: bool,
}

impl Default for SeerDecodeGateParams {
    fn default() -> Self {
        Self {
            block: 64,
            pool_k: vec![Pool::Max, Pool::Min, Pool::Avg],
            rope_theta: Some(10_000.0),
            norm_epsilon: 1e-6,
            selector: Selector::Budget(4096),
            sink: false,
        }
    }
}

impl SeerDecodeGateParams {
    /// Whether they make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] for a size of blocks that is no power of two, an empty set of poolings or one with a kind twice, a bound
    /// of the selector that is out of its range, a budget smaller than a block.
    pub fn check(&self) -> Result<()> {
        check_block("block", self.block)?;
        check_pools("pool_k", &self.pool_k)?;
        check_theta(self.rope_theta)?;
        let epsilon = self.norm_epsilon;
        require(epsilon.is_finite() && epsilon >= 0.0, "norm_epsilon", epsilon, "finite, at least 0")?;
        self.selector.check(self.block)
    }

    fn frame(&self, sequences: Vec<[u32; 4]>, rows: [usize; 2], normed: [bool; 2], sizes: &Sizes) -> Frame {
        let SeerDecodeGateParams { block, pool_k, rope_theta, norm_epsilon, selector, sink } = self.clone();
        let side = |rows, joined, pools, normed| SideFrame {
            heads: sizes.heads_kv,
            share: 1,
            joined,
            rows,
            pools,
            head_dim: sizes.head_dim,
            weighted: true,
            normed,
        };
        Frame {
            sequences,
            heads: sizes.heads_kv,
            gate_dim: sizes.gate_dim,
            sides: [side(rows[0], sizes.group, None, normed[0]), side(rows[1], 1, Some(pool_k), normed[1])],
            block: [1, block],
            causal: Some(Causal::BottomRight),
            triangle: false,
            past: false,
            complete: true,
            ring: 0,
            theta: rope_theta,
            epsilon: norm_epsilon,
            selector,
            // Its own block always.
            forced: u32::from(sink) | 2,
        }
    }
}

/// What a gate for decoding has learned.
#[derive(Clone, Copy, Debug)]
pub struct SeerDecodeWeights<'a> {
    /// Linear map of the queries of the heads that share a key head, one after another: [1, heads_kv, heads_q / heads_kv · head_dim,
    /// gate_dim].
    pub wq: &'a Tensor,
    /// Linear map of pooled keys, [1, heads_kv, kinds of `pool_k` · head_dim, gate_dim].
    pub wk: &'a Tensor,
    /// Weights of an RMS norm of mapped queries, [1, 1, 1, gate_dim]. Unset: no norm.
    pub norm_q: Option<&'a Tensor>,
    /// Of mapped keys.
    pub norm_k: Option<&'a Tensor>,
}

impl<'a> SeerDecodeWeights<'a> {
    fn named(&self) -> [(&'static str, Part, Option<&'a Tensor>); 4] {
        [
            ("wq", Part::Wq, Some(self.wq)),
            ("wk", Part::Wk, Some(self.wk)),
            ("norm_q", Part::NormQ, self.norm_q),
            ("norm_k", Part::NormK, self.norm_k),
        ]
    }

    fn normed(&self) -> [bool; 2] {
        [self.norm_q.is_some(), self.norm_k.is_some()]
    }

    fn tensors(&self) -> Tensors<'a> {
        self.named().into_iter().filter_map(|(_, part, tensor)| Some((part, tensor?))).collect()
    }

    /// Checks shapes and types, for tokens of these heads and this width. Returns the gate's width.
    fn check(&self, gpu: &Gpu, kinds: usize, [heads_q, heads_kv, head_dim]: [usize; 3], turns: bool) -> Result<usize> {
        let gate_dim = self.wk.shape()[3];
        let most = format!("within 1..={MAX_HEAD_DIM}");
        require((1..=MAX_HEAD_DIM).contains(&gate_dim), "wk.shape[3] (gate_dim)", gate_dim, most)?;
        let even = gate_dim.is_multiple_of(2) || !turns;
        require(even, "wk.shape[3] (gate_dim)", gate_dim, "even: a rotary embedding turns pairs")?;
        let of_q = [1, heads_kv, heads_q / heads_kv * head_dim, gate_dim];
        let of_k = [1, heads_kv, kinds * head_dim, gate_dim];
        let norm = [1, 1, 1, gate_dim];
        for ((name, _, tensor), shape) in self.named().into_iter().zip([of_q, of_k, norm, norm]) {
            let Some(tensor) = tensor else { continue };
            check_device(name, tensor, gpu)?;
            let bound = format!("{shape:?}, by the heads of q and k, {kinds} kinds of pool_k and gate_dim");
            require(tensor.shape() == shape, &format!("{name}.shape"), format!("{:?}", tensor.shape()), bound)?;
            let dtype = tensor.layout().dtype;
            require(dtype.is_float(), &format!("{name}.dtype"), dtype, "f32, f16 or bf16")?;
        }
        Ok(gate_dim)
    }
}

/// What a step of decoding reads.
#[derive(Clone, Copy, Debug)]
pub struct SeerDecodeInputs<'a> {
    /// Queries before their rotary embedding, [batch, heads_q, queries, head_dim]: the last tokens of each sequence.
    pub q: &'a Tensor,
    /// A vector for each full block of keys, [batch, heads_kv, blocks, gate_dim]: see [`SeerDecodeGate::compress`].
    pub compressed: &'a Tensor,
    /// Keys of each batch entry, the queries' own tokens among them.
    pub seqlens_k: &'a [usize],
    /// Rows of the key tensor that attention reads: the mask has blocks for all of them.
    pub keys: usize,
}

/// SeerAttention-R's gate on one device. A vector for each full block of keys is cached ([`SeerDecodeGate::compress`]); a step of
/// decoding ([`SeerDecodeGate::forward`]) chooses blocks by the queries of all heads that share a key head together:
///
/// `Qg = Σ_h q_h · Wq[h]`, `Kg = [max, min, mean](k) · Wk`, `z = turn(norm(Qg)) · turn(norm(Kg)) / √gate_dim`
///
/// The block that a query's own token is filling has z = 0 until it is full, and is always chosen. The mask has a row for each
/// query and a head for each key head, and goes unread into [`crate::BlockSparseAttention`].
///
/// ```
/// # pollster::block_on(async {
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
/// let inputs = SeerDecodeInputs { q: &one, compressed: &compressed, seqlens_k: &[7], keys: 8 };
/// let mask = gate.forward(&weights, &inputs).await?;
/// assert_eq!(mask.read().await?, [false, true, false, true]); // the best, and its own
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct SeerDecodeGate {
    gpu: Gpu,
    params: SeerDecodeGateParams,
}

/// A step compiled for its tensors and lengths: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct SeerDecodeStep {
    chain: ChainPrepared,
    tensors: BTreeMap<Part, Tensor>,
}

impl SeerDecodeStep {
    /// Records the step. The caller submits.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("gate"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor))
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`SeerDecodeStep::encode`].
    pub fn encode_in(&self, pass: &mut wgpu::ComputePass<'_>) -> Result<()> {
        self.chain.encode(pass, &self.given())
    }

    fn given(&self) -> Tensors<'_> {
        self.tensors.iter().map(|(part, tensor)| (*part, tensor)).collect()
    }

    async fn submit(&self) -> Result<()> {
        self.chain.submit(&self.given()).await
    }
}

/// What the sides of a frame are made of.
struct Sizes {
    heads_kv: usize,
    group: usize,
    head_dim: usize,
    gate_dim: usize,
}

impl SeerDecodeGate {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGateParams::check`].
    pub fn new(gpu: &Gpu, params: SeerDecodeGateParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params })
    }

    /// The params.
    pub fn params(&self) -> &SeerDecodeGateParams {
        &self.params
    }

    async fn step(
        &self,
        frame: &Frame,
        tasks: Vec<Task>,
        given: Tensors<'_>,
        between: Vec<(Part, Layout)>,
    ) -> Result<SeerDecodeStep> {
        let mut places = Places::default();
        let all = given.iter().map(|(part, tensor)| (*part, tensor.layout().clone()));
        for (part, layout) in all.chain(between.clone()) {
            places.own(part, layout);
        }
        let plan = |task: Task| task.plan(self.gpu.caps(), frame, &places);
        let steps = tasks.into_iter().map(plan).collect::<Result<_>>()?;
        let chain = ChainPrepared::new(&self.gpu, &Chain { steps, between, angles: frame.angles() }).await?;
        let tensors = given.into_iter().map(|(part, tensor)| (part, tensor.clone())).collect();
        Ok(SeerDecodeStep { chain, tensors })
    }

    /// Writes the vectors of the blocks that become full when batch entry b grows from `before[b]` to `after[b]` keys into
    /// `compressed` [batch, heads_kv, blocks, gate_dim]: block j into row j. Keys, before their rotary embedding, are [batch,
    /// heads_kv, rows, head_dim], token t in row t mod rows, rows a multiple of a block: a whole cache, or a ring that holds no more
    /// than the block that is being filled and what is new.
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
        self.prepare_compression(weights, k, compressed, before, after).await?.submit().await
    }

    /// The same to be recorded by the caller.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::compress`].
    pub async fn prepare_compression(
        &self,
        weights: &SeerDecodeWeights<'_>,
        k: &Tensor,
        compressed: &Tensor,
        before: &[usize],
        after: &[usize],
    ) -> Result<SeerDecodeStep> {
        let block = self.params.block;
        check_device("k", k, &self.gpu)?;
        let [batch, heads_kv, ring, head_dim] = k.shape();
        let group = self.check_tokens(weights, heads_kv, head_dim)?;
        let gate_dim = weights.check(
            &self.gpu,
            self.params.pool_k.len(),
            [group * heads_kv, heads_kv, head_dim],
            self.params.rope_theta.is_some(),
        )?;
        check_shapes(&AttentionShapes::new(k.layout().clone(), k.layout().clone(), k.layout().clone()))?;
        let bound = format!("a multiple of {block}, the keys of a block");
        require(ring > 0 && ring.is_multiple_of(block), "k.shape[2] (rows)", ring, bound)?;
        let blocks = check_compressed(&self.gpu, compressed, [batch, heads_kv, gate_dim])?;
        for (name, lengths) in [("before", before), ("after", after)] {
            let bound = format!("{batch}, one a batch entry");
            require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), bound)?;
        }
        let (mut sequences, mut rows) = (vec![], 0);
        for (b, (&before, &after)) in before.iter().zip(after).enumerate() {
            let what = format!("after[{b}]");
            require(after >= before, &what, after, format!("at least {before}, before[{b}]"))?;
            let (first, end) = (before / block, after / block);
            require(
                end <= blocks,
                &what,
                after,
                format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block),
            )?;
            // Keys of the first block that becomes full are still there.
            let bound = format!(
                "at most {}: the ring of {ring} rows holds keys from {} on",
                first * block + ring,
                first * block
            );
            require(first == end || after - first * block <= ring, &what, after, bound)?;
            sequences.push([first as u32, 0, 0, after as u32]);
            rows = rows.max(end - first);
        }
        let sizes = Sizes { heads_kv, group, head_dim, gate_dim };
        let frame = Frame { ring, ..self.params.frame(sequences, [0, rows], weights.normed(), &sizes) };
        let parts = SideParts::of(Side::Keys);
        let between = vec![(parts.pooled, frame.pooled(Side::Keys))];
        let mut given = weights.tensors();
        given.extend([(Part::K, k), (parts.vectors, compressed)]);
        self.step(&frame, compression(&frame), given, between).await
    }

    /// Query heads to a key head, by the map of queries.
    fn check_tokens(&self, weights: &SeerDecodeWeights, heads_kv: usize, head_dim: usize) -> Result<usize> {
        require(heads_kv > 0, "k.shape[1] (heads_kv)", heads_kv, "at least 1")?;
        let features = weights.wq.shape()[2];
        let bound = format!("a multiple of head_dim = {head_dim}, at least once");
        require(features > 0 && features.is_multiple_of(head_dim.max(1)), "wq.shape[2]", features, bound)?;
        Ok(features / head_dim)
    }

    /// The block mask in one call: [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit together and lengths beyond `compressed` or `keys`; [`Error::OtherDevice`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn forward(&self, weights: &SeerDecodeWeights<'_>, inputs: &SeerDecodeInputs<'_>) -> Result<BlockMask> {
        let (step, mask, _) = self.selection(weights, inputs, false).await?;
        step.submit().await?;
        Ok(mask)
    }

    /// The same with the scores, f32 [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_with_scores(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
    ) -> Result<SeerGateOutput> {
        let (step, mask, scores) = self.selection(weights, inputs, true).await?;
        step.submit().await?;
        let [logits, scores] = scores.expect("asked for");
        Ok(SeerGateOutput { mask, logits, scores })
    }

    /// The same to be recorded by the caller, with the mask that it will write.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn prepare(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
    ) -> Result<(SeerDecodeStep, BlockMask)> {
        let (step, mask, _) = self.selection(weights, inputs, false).await?;
        Ok((step, mask))
    }

    async fn selection(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
        scores: bool,
    ) -> Result<(SeerDecodeStep, BlockMask, Option<[Tensor; 2]>)> {
        let SeerDecodeInputs { q, compressed, seqlens_k, keys } = *inputs;
        let block = self.params.block;
        check_device("q", q, &self.gpu)?;
        let [batch, heads_q, queries, head_dim] = q.shape();
        let heads_kv = compressed.shape()[1];
        let kv = Layout::heads_first(DType::F32, [batch, heads_kv, keys, head_dim]);
        let shapes = AttentionShapes::new(q.layout().clone(), kv.clone(), kv);
        check_shapes(&AttentionShapes { seqlens_k: Some(seqlens_k.to_vec()), ..shapes })?;
        let dims = [heads_q, heads_kv, head_dim];
        let gate_dim = weights.check(&self.gpu, self.params.pool_k.len(), dims, self.params.rope_theta.is_some())?;
        let blocks = check_compressed(&self.gpu, compressed, [batch, heads_kv, gate_dim])?;
        for (b, &length) in seqlens_k.iter().enumerate() {
            let bound = format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block);
            require(length / block <= blocks, &format!("seqlens_k[{b}]"), length, bound)?;
        }
        let sequences = seqlens_k.iter().map(|&length| [0, queries as u32, 0, length as u32]).collect();
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let frame = self.params.frame(sequences, [queries, keys.div_ceil(block)], weights.normed(), &sizes);
        let grid = BlockGrid { batch, heads: heads_kv, queries, keys, block: [1, block] };
        grid.check()?;
        let empty = async |layout: Layout| Tensor::empty(&self.gpu, layout).await;
        let chosen = empty(Layout::heads_first(DType::U32, grid.shape())).await?;
        let wanted = if scores { Some([empty(frame.logits()).await?, empty(frame.logits()).await?]) } else { None };
        let parts = SideParts::of(Side::Queries);
        let mut between = vec![(parts.vectors, frame.vectors(Side::Queries))];
        let mut given = weights.tensors();
        given.extend([(Part::Q, q), (Part::VectorsK, compressed), (Part::Chosen, &chosen)]);
        match &wanted {
            Some([logits, scores]) => given.extend([(Part::Logits, logits), (Part::Scores, scores)]),
            None => between.push((Part::Logits, frame.logits())),
        }
        let tasks = selection(&frame, scores);
        let judged = |tensor: &Tensor| tensor.clone().under_all(q).under_all(compressed);
        let mask = BlockMask::from_bits(&self.gpu, grid, &judged(&chosen), None)?;
        let wanted_out = wanted.as_ref().map(|all| all.each_ref().map(judged));
        Ok((self.step(&frame, tasks, given, between).await?, mask, wanted_out))
    }

    /// From the tokens of whole sequences, before their rotary embedding, to logits [batch, heads_kv, queries, blocks of keys], with
    /// what gradients need. A query sees the blocks before its own.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_for_training(
        &self,
        weights: &SeerDecodeWeights<'_>,
        q: &Tensor,
        k: &Tensor,
    ) -> Result<SeerGateSaved> {
        let frame = self.training_frame(weights, q, k)?;
        let mut given = weights.tensors();
        given.extend([(Part::Q, q), (Part::K, k)]);
        frame.forward(&self.gpu, given).await
    }

    fn training_frame(&self, weights: &SeerDecodeWeights, q: &Tensor, k: &Tensor) -> Result<Frame> {
        for (name, tensor) in [("q", q), ("k", k)] {
            check_device(name, tensor, &self.gpu)?;
        }
        check_shapes(&AttentionShapes::new(q.layout().clone(), k.layout().clone(), k.layout().clone()))?;
        let ([batch, heads_q, queries, head_dim], [_, heads_kv, keys, _]) = (q.shape(), k.shape());
        let dims = [heads_q, heads_kv, head_dim];
        let gate_dim = weights.check(&self.gpu, self.params.pool_k.len(), dims, self.params.rope_theta.is_some())?;
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let sequences = vec![[0, queries as u32, 0, keys as u32]; batch];
        let frame = self.params.frame(sequences, [queries, keys.div_ceil(self.params.block)], weights.normed(), &sizes);
        Ok(Frame { past: true, complete: false, forced: 0, ..frame })
    }

    /// The target: of each query and block of keys before its own the largest probability that attention gives to any of its keys
    /// in any head that shares the key head, each row divided by its sum (+ 1e-9). f32 [batch, heads_kv, queries, blocks of keys].
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
        let frame = self.training_frame(weights, inputs.q, inputs.k)?;
        frame.target_of(&self.gpu, HeadGroups::OfKeyHead, attention, inputs, lse).await
    }

    /// The divergence from the target and its gradient in the logits: see [`crate::SeerGate::loss`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::loss`].
    pub async fn loss(&self, saved: &SeerGateSaved, target: &Tensor, loss: SeerLoss) -> Result<(Tensor, Tensor)> {
        saved.loss(&self.gpu, target, loss).await
    }

    /// Gradients of the weights from that of the logits: see [`crate::SeerGate::backward`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::backward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        saved.backward(&self.gpu, dlogits).await
    }
}

/// The text of every kernel of these params, with or without norms, with its name.
#[cfg(feature = "catalogue")]
pub(crate) fn decode_texts(
    caps: &Caps,
    params: &SeerDecodeGateParams,
    normed: [bool; 2],
    dtype: DType,
) -> Result<Vec<(String, String)>> {
    let sizes = Sizes { heads_kv: 2, group: 3, head_dim: 20, gate_dim: 12 };
    let blocks = 5;
    let frame = params.frame(vec![[0, 2, 0, 70]], [2, blocks], normed, &sizes);
    let [q, k] = [6, 2].map(|heads| Layout::heads_first(dtype, [1, heads, blocks * params.block, sizes.head_dim]));
    let mut places = Places::default();
    let norm = Layout::heads_first(dtype, [1, 1, 1, sizes.gate_dim]);
    let grid = BlockGrid { batch: 1, heads: 2, queries: 2, keys: blocks * params.block, block: frame.block };
    let given = [
        (Part::Q, q),
        (Part::K, k),
        (Part::Wq, frame.weights(Side::Queries)),
        (Part::Wk, frame.weights(Side::Keys)),
        (Part::NormQ, norm.clone()),
        (Part::NormK, norm),
        (Part::PooledK, frame.pooled(Side::Keys)),
        (Part::VectorsQ, frame.vectors(Side::Queries)),
        (Part::VectorsK, frame.vectors(Side::Keys)),
        (Part::Logits, frame.logits()),
        (Part::Scores, frame.logits()),
        (Part::Chosen, Layout::heads_first(DType::U32, grid.shape())),
    ];
    for (part, layout) in given {
        places.own(part, layout);
    }
    let tasks = [compression(&frame), selection(&frame, true), selection(&frame, false)].into_iter().flatten();
    let steps = tasks.map(|task| task.plan(caps, &frame, &places)).collect::<Result<_>>()?;
    let chain = Chain { steps, between: vec![], angles: None };
    let mut texts: Vec<_> = chain.wgsl().into_iter().map(|(name, text)| (name.to_string(), text)).collect();
    let frame = Frame { past: true, complete: false, forced: 0, ..frame };
    texts.extend(frame.texts(caps, &places)?);
    Ok(texts)
}

/// From keys to the vectors of blocks.
fn compression(frame: &Frame) -> Vec<Task> {
    vec![frame.pool(Side::Keys), frame.project(Side::Keys)]
}

/// From queries to a mask.
fn selection(frame: &Frame, scores: bool) -> Vec<Task> {
    vec![frame.project(Side::Queries), frame.logits_task(), frame.select(scores)]
}

/// The blocks that the cache has room for.
fn check_compressed(gpu: &Gpu, compressed: &Tensor, [batch, heads_kv, gate_dim]: [usize; 3]) -> Result<usize> {
    check_device("compressed", compressed, gpu)?;
    let [b, h, blocks, d] = compressed.shape();
    let bound = format!("[{batch}, {heads_kv}, any number, {gate_dim}], by the tokens and wk");
    let fits = [b, h, d] == [batch, heads_kv, gate_dim];
    require(fits, "compressed.shape", format!("{:?}", compressed.shape()), bound)?;
    let dtype = compressed.layout().dtype;
    require(dtype.is_float(), "compressed.dtype", dtype, "f32, f16 or bf16")?;
    compressed.layout().check_output("compressed")?;
    Ok(blocks)
}
