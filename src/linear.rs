//! Linear attention: a state instead of scores.

mod backward;
mod chunking;
mod gradients;
mod parts;
mod plan;
mod run;
mod shapes;
mod task;
mod walk;

pub use backward::{LinearBackwardPlan, LinearBackwardPrepared};
pub use gradients::{LinearBackwardShapes, LinearGradients, LinearOutputGradients};
pub use plan::LinearPlan;
pub use run::LinearPrepared;
pub use shapes::{LinearInputs, LinearOutputs, LinearShapes, LinearState};

use crate::error::require;
use crate::softmax::attention::Kept;
use crate::{Error, Gpu, Result};
use std::sync::Arc;

/// What linear attention computes, besides the gates that come with the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearParams {
    /// Whether a token sees only those before it and itself. Default: yes. If not, every token reads the state after the last one,
    /// and there are no gates.
    pub causal: bool,
    /// From the last token to the first. Default: no.
    pub reverse: bool,
    /// Factor of Sᵀ q. Default: 1/√head_dim; Lightning Attention and Mamba-2 have 1.
    pub scale: Option<f32>,
    /// A constant gate g = −slope for each head, at least 0: Lightning Attention, RetNet.
    pub slopes: Option<Vec<f32>>,
    /// How the tokens are gone through. Default: by their number, the heads and the device, as the plan says.
    pub way: Option<LinearWay>,
    /// Tokens of a chunk, a multiple of 32 up to 256 (beyond 64 if the device has the workgroup memory): where set, they are not gone
    /// through one by one. Default: 64.
    pub chunk: Option<usize>,
}

/// How linear attention goes through the tokens. The result is the same, but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearWay {
    /// Token by token: for a few of them, as in decoding.
    Recurrent,
    /// In one pass over chunks of tokens, with the state in registers: for many heads and batch entries.
    OnePass,
    /// In three passes over segments of several chunks: what each leaves in a state, a scan over these, outputs. All segments of a
    /// long sequence at once.
    ThreePass,
}

impl Default for LinearParams {
    fn default() -> Self {
        Self { causal: true, reverse: false, scale: None, slopes: None, way: None, chunk: None }
    }
}

impl LinearParams {
    /// TransNormerLLM's slopes for layer `layer` of `layers`: 2^(−8(h+1)/heads) · (1 − layer/(layers − 1) + 1e-5) (Lightning
    /// Attention, arXiv 2401.04658).
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not below `layers`, or fewer than two of them.
    pub fn lightning_slopes(heads: usize, layer: usize, layers: usize) -> Result<Vec<f32>> {
        require(layers >= 2, "layers", layers, "at least 2")?;
        require(layer < layers, "layer", layer, format!("below {layers}, the layers"))?;
        let depth = 1.0 - layer as f64 / (layers - 1) as f64 + 1e-5;
        let slope = |h: usize| (-8.0 * (h + 1) as f64 / heads as f64).exp2() * depth;
        Ok((0..heads).map(|h| slope(h) as f32).collect())
    }

    /// The other schedule in use for Lightning Attention: (8/heads) · (1 − layer/layers) · h.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not below `layers`.
    pub fn lightning_linear_slopes(heads: usize, layer: usize, layers: usize) -> Result<Vec<f32>> {
        require(layer < layers, "layer", layer, format!("below {layers}, the layers"))?;
        let slope = |h: usize| 8.0 / heads as f64 * (1.0 - layer as f64 / layers as f64) * h as f64;
        Ok((0..heads).map(|h| slope(h) as f32).collect())
    }

    /// RetNet's decay γ = 1 − 2^(−5−h) as slopes −ln γ (arXiv 2307.08621).
    pub fn retnet_slopes(heads: usize) -> Vec<f32> {
        (0..heads).map(|h| -(-(-5.0 - h as f64).exp2()).ln_1p() as f32).collect()
    }

    /// The factor that holds where none is set.
    pub(crate) fn scale_for(&self, head_dim: usize) -> f32 {
        self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt())
    }

    fn check(&self) -> Result<()> {
        if let Some(scale) = self.scale {
            require(scale.is_finite(), "scale", scale, "finite")?;
        }
        if let Some(chunk) = self.chunk {
            let fits = (1..=256).contains(&chunk) && chunk.is_multiple_of(32);
            require(fits, "chunk", chunk, "a multiple of 32 tokens, at most 256")?;
        }
        for (h, &slope) in self.slopes.iter().flatten().enumerate() {
            let bound = "finite, at least 0: a head forgets at the rate exp(−slope)";
            require(slope.is_finite() && slope >= 0.0, &format!("slopes[{h}]"), slope, bound)?;
        }
        let gated = self.slopes.is_some() && !self.causal;
        if gated {
            return Err(Error::argument(
                "slopes",
                "set",
                "unset where attention is not causal: all tokens read one state",
            ));
        }
        Ok(())
    }
}

/// Linear attention on one device: `S ← e^g · S + k vᵀ`, `o = scale · Sᵀ q`, with a state S [head_dim, value_dim] in f32 for each
/// head. Gates g ≤ 0 are none, a constant of each head ([`LinearParams::slopes`]), or one for each token. Tokens are gone through one
/// by one or in chunks ([`LinearWay`]; Lightning Attention 2, arXiv 2401.04658, and flash-linear-attention have the formulas).
///
/// The state can begin with another and come out at the end, go on in place, as decoding does, or be kept after every token. The
/// same row gets the same bits whatever the batch is. [`LinearAttention::backward`] has the gradients of all inputs.
///
/// | there | here |
/// |---|---|
/// | Lightning Attention's `s` | `slopes`, `scale: Some(1.0)` |
/// | RetNet's decay | [`LinearParams::retnet_slopes`] |
/// | flash-linear-attention's `initial_state`, `output_final_state`, `cu_seqlens`, `head_first=False` | `h0`, [`LinearAttention::forward_with_state`], `cu_seqlens`, [`crate::Layout::heads_last`] |
/// | simple GLA's `g`, `g_gamma` | `g`, `slopes` = −`g_gamma` |
/// | Mamba-2's C, B, x, dt, A | q = C, k = B, v = dt · x, g = dt · A, `scale: Some(1.0)`; D · x is added by the caller |
/// | its gradients | dC = dq, dB = dk, dx = dt · dv + D · dy, ddt = Σ x · dv + A · dg, dA = Σ dt · dg |
///
/// ONNX's `LinearAttention` (opset 27):
///
/// | there | here |
/// |---|---|
/// | `update_rule` "linear", "gated" | without and with `g` |
/// | `query`, `key`, `value` [B, T, H · D] | a view [B, H, T, D] of it, [`crate::Layout::heads_last`] |
/// | `decay` [B, T, H], `scale` 0.0 | `g` [B, H, T, 1], `scale: None` |
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
/// let inputs = LinearInputs { g: Some(&g), ..LinearInputs::new(&q, &k, &v) };
/// let (o, state) = attention.forward_with_state(&inputs).await?;
/// let last = 3.0 * (-1f32).exp() + 10.0;
/// assert!((o.read().await?[1] - last).abs() < 1e-5 && (state.read().await?[0] - last).abs() < 1e-5);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct LinearAttention {
    gpu: Gpu,
    params: LinearParams,
    kept: Arc<Kept<LinearShapes, LinearPrepared>>,
    kept_backward: Arc<Kept<LinearBackwardShapes, LinearBackwardPrepared>>,
}

impl LinearAttention {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a scale that is not finite, a slope that is not finite or below 0, slopes without causality, and a
    /// chunk that is no multiple of 32 up to 256.
    pub fn new(gpu: &Gpu, params: LinearParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params, kept: Arc::default(), kept_backward: Arc::default() })
    }

    /// The params.
    pub fn params(&self) -> &LinearParams {
        &self.params
    }
}
