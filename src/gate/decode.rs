//! The gate for decoding (SeerAttention-R, arXiv 2506.08889): every query chooses blocks for the heads that share a key head.

mod choose;
mod compress;
#[cfg(feature = "catalogue")]
mod texts;
mod training;

#[cfg(feature = "catalogue")]
pub(crate) use texts::decode_texts;

use super::frame::{Frame, SideFrame};
use super::step::{Chain, ChainPrepared, Part, Places, Task, Tensors, prepared};
use super::{Pool, Selector, check_block, check_pools, check_theta};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::error::require;
use crate::few::Few;
use crate::softmax::MAX_HEAD_DIM;
use crate::{Causal, Gpu, Layout, Result, Tensor};

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
    tensors: Few<Part, Tensor>,
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
        let chain = prepared(&self.gpu, &Chain { steps, between }, frame.angles()).await?;
        let tensors = given.into_iter().map(|(part, tensor)| (part, tensor.clone())).collect();
        Ok(SeerDecodeStep { chain, tensors })
    }
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
