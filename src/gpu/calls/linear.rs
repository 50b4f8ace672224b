//! Linear attention on a device.

mod gradients;
mod momentum;
mod summary;

pub use gradients::LinearGradients;
pub use momentum::LinearMomentum;
pub use summary::{LinearSummary, LinearSummaryGradients};

use crate::error::require;
use crate::gpu::call::{Call, present};
use crate::gpu::calls::seqlens::{Seqlens, Sequences};
use crate::gpu::forward::{Cache, Found, Planner};
use crate::program::{Name, Program};
#[cfg(doc)]
use crate::{Error, LinearAlgorithm, LinearRule};
use crate::{Gpu, Layout, LinearParams, Prepared, Result, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// What linear attention reads. The state has as many heads as whichever of q, k and v has the most; each of them has that many or a
/// divisor of it (grouped queries, grouped values).
///
/// ```
/// use wgpu_attention::{LinearInputs, Tensor};
/// /// With gates, and continuing from a state.
/// fn inputs<'a>([q, k, v, g, h0]: [&'a Tensor; 5]) -> LinearInputs<'a> {
///     LinearInputs::new(q, k, v).with_gates(g).with_state(h0)
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs<'a> {
    /// Queries [batch, heads of its own, tokens, head_dim].
    pub q: &'a Tensor,
    /// Keys [batch, heads of its own, tokens, head_dim].
    pub k: &'a Tensor,
    /// Values [batch, heads of its own, tokens, value_dim].
    pub v: &'a Tensor,
    /// A gate for each token, [batch, heads or a divisor of that, tokens, 1], or for each channel of its key, [.., head_dim]: the natural
    /// logarithm of a decay factor, at most 0. A positive gate or a NaN counts as 0, and makes reading a result an error.
    pub g: Option<&'a Tensor>,
    /// How much each token corrects the state, by [`crate::LinearRule::Delta`]: within [0, 2], [batch, heads or a divisor of that, tokens,
    /// 1]. Unset: 1. A beta out of range is clamped, a NaN counts as 0, and either makes reading a result an error.
    pub beta: Option<&'a Tensor>,
    /// By how much each token changes memory and momentum, by [`crate::LinearRule::Momentum`], which wants it.
    pub momentum: Option<LinearMomentum<'a>>,
    /// The initial state, [batch or sequences, heads, head_dim, value_dim], f32, or f16 or bf16. Unset: 0.
    pub h0: Option<&'a Tensor>,
    /// The initial sum of keys of a normaliser, f32 [batch or sequences, heads, head_dim, 1]: set where h0 is. With a
    /// [`crate::FeatureMap`], head_dim of states, sums and gates is the number of features.
    pub z0: Option<&'a Tensor>,
    /// The number of tokens in each batch entry; the rest are padding, and their output is left alone.
    pub seqlens: Option<Seqlens<'a>>,
    /// Packed sequences: batch is 1, and sequence i has the rows `[cu_seqlens[i], cu_seqlens[i + 1])` and a state of its own. The first
    /// offset is 0, the offsets ascend, and the last is at most the number of tokens. Rows after the last offset belong to no sequence and
    /// are left alone.
    pub cu_seqlens: Option<Seqlens<'a>>,
    /// The longest packed sequence that offsets on the GPU may have: longer ones are cut there, and reported. Without it, work and memory
    /// between kernels are as if each had all tokens.
    pub max_seqlen: Option<usize>,
}

impl<'a> LinearInputs<'a> {
    /// Without gates, from an empty state, at full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            g: None,
            beta: None,
            momentum: None,
            h0: None,
            z0: None,
            seqlens: None,
            cu_seqlens: None,
            max_seqlen: None,
        }
    }

    /// The same with a gate for each token.
    pub fn with_gates(self, g: &'a Tensor) -> Self {
        Self { g: Some(g), ..self }
    }

    /// The same with a beta for each token, for the delta rule.
    pub fn with_beta(self, beta: &'a Tensor) -> Self {
        Self { beta: Some(beta), ..self }
    }

    /// The same, continuing from the state of a normalised call: with its sum of keys.
    pub fn with_states(self, h0: &'a Tensor, z0: &'a Tensor) -> Self {
        Self { h0: Some(h0), z0: Some(z0), ..self }
    }

    /// The same for padded sequences of so many tokens, one a batch entry.
    pub fn with_lengths(self, lengths: impl Into<Seqlens<'a>>) -> Self {
        Self { seqlens: Some(lengths.into()), ..self }
    }

    /// The same for packed sequences.
    pub fn with_offsets(self, offsets: impl Into<Seqlens<'a>>) -> Self {
        Self { cu_seqlens: Some(offsets.into()), ..self }
    }

    fn sequences(&self) -> Sequences<'a, 2, 1> {
        Sequences::of_tokens([self.seqlens, self.cu_seqlens], self.max_seqlen)
    }

    /// The same, continuing from a state.
    pub fn with_state(self, h0: &'a Tensor) -> Self {
        Self { h0: Some(h0), ..self }
    }
}

impl Call for LinearInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([
            ("q", Some(self.q)),
            ("k", Some(self.k)),
            ("v", Some(self.v)),
            ("g", self.g),
            ("beta", self.beta),
            ("h0", self.h0),
            ("z0", self.z0),
        ]);
        all.extend(self.momentum.iter().flat_map(LinearMomentum::tensors));
        all.extend(self.sequences().tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.sequences().numbers().collect()
    }
}

/// Linear attention on one device: `S ← e^g · S + k vᵀ`, `o = scale · Sᵀ q`, with a state S [head_dim, value_dim] in f32 for each head.
/// The delta rule corrects the state instead of adding to it, and Titans' rule has a momentum besides ([`LinearRule`]). There are no gates, a constant gate for each head
/// ([`LinearParams::slopes`]), or one for each token or each channel of its key; g ≤ 0. Tokens are processed one by one or in chunks
/// ([`LinearAlgorithm`]; Lightning Attention 2, arXiv 2401.04658, and flash-linear-attention have the formulas).
///
/// The state can start from another and be returned at the end, be updated in place, as in decoding, or be kept after every token. A row
/// gets the same bits whatever the batch is. [`LinearAttention::backward`] computes the gradients of all inputs.
///
/// | there | here |
/// |---|---|
/// | Lightning Attention's `s` | `slopes`, `scale: Some(1.0)` |
/// | RetNet's decay | [`LinearParams::retnet_slopes`] |
/// | flash-linear-attention's `initial_state`, `output_final_state`, `cu_seqlens`, `head_first=False` | `h0`, [`LinearAttention::forward_with_state`], `cu_seqlens`, [`crate::Layout::heads_last`] |
/// | simple GLA's `g`, `g_gamma` | `g`, `slopes` = −`g_gamma` |
/// | GLA's `gk`; KDA's `g` | `g` [batch, heads, tokens, head_dim] |
/// | `chunk_delta_rule`, `chunk_gated_delta_rule`, `chunk_kda` | [`LinearRule::Delta`] without gates, with gates per token, per channel |
/// | Titans' α, η, θ; chunks of its training | [`LinearRule::Momentum`] with [`LinearInputs::momentum`]; [`LinearParams::chunk`] |
/// | `use_qk_l2norm_in_kernel` | [`LinearParams::l2_norm`] |
/// | BASED's Taylor map; `normalize` | [`crate::FeatureMap::Taylor2`]; [`LinearParams::normalize`] |
/// | Mamba-2's C, B, x, dt, A | q = C, k = B, v = dt · x, g = dt · A, `scale: Some(1.0)`; D · x is added by the caller |
/// | its gradients | dC = dq, dB = dk, dx = dt · dv + D · dy, ddt = Σ x · dv + A · dg, dA = Σ dt · dg |
///
/// ONNX's `LinearAttention` (opset 27):
///
/// | there | here |
/// |---|---|
/// | `update_rule` "linear", "gated" | [`LinearRule::Linear`] without and with `g` |
/// | "delta", "gated_delta" | [`LinearRule::Delta`] without and with `g` |
/// | `query`, `key`, `value` [B, T, H · D] | a view [B, H, T, D] of it, [`crate::Layout::heads_last`] |
/// | `decay` [B, T, H] or [B, T, H · d_k], `scale` 0.0 | `g` [B, H, T, 1] or [B, H, T, d_k], `scale: None` |
/// | `beta` [B, T, H] or [B, T, 1] | `beta` [B, H, T, 1] or [B, 1, T, 1] |
/// | `past_state`, `present_state` [B, H, d_k, d_v] | `h0`, `ht`; where query heads share a state, each has its own, all alike |
/// | `chunk_size` | [`LinearParams::chunk`] |
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, LinearAttention, LinearInputs, LinearParams, Tensor};
/// let gpu = Gpu::request().await?;
/// let up = async |x: &[f32]| Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, x).await;
/// let (q, k, v, g) = (up(&[1.0, 1.0]).await?, up(&[1.0, 2.0]).await?, up(&[3.0, 5.0]).await?, up(&[0.0, -1.0]).await?);
/// let attention = LinearAttention::new(&gpu, LinearParams::default())?;
/// let inputs = LinearInputs::new(&q, &k, &v).with_gates(&g);
/// let (o, state) = attention.forward_with_state(&inputs).await?;
/// let last = 3.0 * (-1f32).exp() + 10.0;
/// assert!((o.read().await?[1] - last).abs() < 1e-5 && (state.read().await?[0] - last).abs() < 1e-5);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct LinearAttention {
    gpu: Gpu,
    params: LinearParams,
    cache: Arc<Cache>,
}

impl LinearAttention {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a scale or an ε that is not finite, a negative ε or, with the Taylor map, scale, a slope that is not finite or
    /// below 0, slopes or another rule than the linear one where attention is not causal, a normaliser with such a rule, slopes or an algorithm
    /// over chunks with momentum, and a chunk that is not a multiple of 32 up to 256, or within 1 to 256 with momentum.
    pub fn new(gpu: &Gpu, params: LinearParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params, cache: Arc::default() })
    }

    /// The params.
    pub fn params(&self) -> &LinearParams {
        &self.params
    }

    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// The same for gradients.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_backward`].
    pub fn plan_backward(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan_backward(self.gpu.caps(), shapes)
    }

    /// Compiles and allocates all that these shapes need. A call is `(inputs, [("o", &o)])`, with `("ht", …)` where the last state is
    /// wanted, `("state", …)` where it is updated in place, `("snapshots", …)` where it is kept after every token, and with a normaliser
    /// `("zt", …)` or `("z", …)`, or with momentum `("st", …)` or `("s", …)`, beside the first two: see [`LinearParams::plan`].
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &[]).await
    }

    /// The same for gradients. A call is `(inputs, [("dout", &dout)], gradients)`, with `("dht", …)` where the last state has a gradient, and
    /// `("dzt", …)` or `("dst", …)` where a normaliser's last sum of keys, or the last momentum, has one.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_backward`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan_backward(&shapes.into())?, &[]).await
    }

    /// Attention in one call: allocates the output ([batch, heads, tokens, value_dim], of v's type) and submits. What was prepared
    /// for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &LinearInputs<'_>) -> Result<Tensor> {
        Ok(self.submit(inputs, &[]).await?.take("o"))
    }

    /// The same with the last state, f32 [batch or sequences, heads, head_dim, value_dim].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_state(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor)> {
        let mut found = self.submit(inputs, &["ht"]).await?;
        Ok((found.take("o"), found.take("ht")))
    }

    /// The same with a normaliser's sum of keys too, f32 [batch or sequences, heads, head_dim, 1].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_states(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor, Tensor)> {
        let mut found = self.submit(inputs, &["ht", "zt"]).await?;
        Ok((found.take("o"), found.take("ht"), found.take("zt")))
    }

    /// The same with a state that is updated in place, as in decoding: [batch or sequences, heads, head_dim, value_dim], f32, or f16 or bf16,
    /// rounded once a call.
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_in_place(&self, inputs: &LinearInputs<'_>, state: &Tensor) -> Result<Tensor> {
        Ok(self.submit(&(inputs, [("state", state)]), &[]).await?.take("o"))
    }

    /// The same with a normaliser: the state and its sum of keys, f32 [batch or sequences, heads, head_dim, 1], are both updated in place.
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_in_place_with_sums(
        &self,
        inputs: &LinearInputs<'_>,
        state: &Tensor,
        sums: &Tensor,
    ) -> Result<Tensor> {
        Ok(self.submit(&(inputs, [("state", state), ("z", sums)]), &[]).await?.take("o"))
    }

    /// The same with the state after every token, for speculative decoding: f32 [batch or sequences, heads, tokens · head_dim, value_dim].
    /// [`LinearAttention::state_after`] picks one of them.
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_snapshots(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor)> {
        let mut found = self.submit(inputs, &["snapshots"]).await?;
        Ok((found.take("o"), found.take("snapshots")))
    }

    async fn submit(&self, call: &dyn Call, wanted: &[&'static str]) -> Result<Found> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        self.gpu.forward(&self.cache, "forward", plan, &[], call, &["state", "z", "s"], wanted).await
    }

    /// The state after the first `tokens` (at least 1) of the tokens that `snapshots` were taken from: a view, which can be passed on as
    /// [`LinearInputs::h0`]. `head_dim` is the number of rows of a state: with a [`crate::FeatureMap`] that of features.
    ///
    /// # Errors
    /// [`Error::Argument`] for snapshots that are not whole states of `head_dim` rows, or a number of tokens that is out of range.
    pub fn state_after(snapshots: &Tensor, head_dim: usize, tokens: usize) -> Result<Tensor> {
        let layout = snapshots.layout();
        let [entries, heads, rows, value_dim] = layout.shape;
        let bound = format!("a divisor of {rows}, the rows of the snapshots");
        require(head_dim > 0 && rows.is_multiple_of(head_dim), "head_dim", head_dim, bound)?;
        let all = rows / head_dim;
        require((1..=all).contains(&tokens), "tokens", tokens, format!("within 1..={all}"))?;
        let offset = layout.offset + (tokens - 1) * head_dim * layout.strides[2];
        snapshots.view(Layout { shape: [entries, heads, head_dim, value_dim], offset, ..layout.clone() })
    }
}
