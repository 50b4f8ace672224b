//! Linear attention: a state instead of scores.

mod activation;
mod backward;
mod checks;
mod chunking;
mod chunks;
mod delta;
mod ends;
mod features;
mod joint;
mod momentum;
mod names;
mod normalizer;
mod passes;
mod plan;
mod recurrent;
mod sequences;
mod shapes;
mod steps;
mod summary;
mod sums;
mod task;
mod walk;

pub use activation::LinearGateActivation;
pub use features::FeatureMap;

use crate::error::require;
use crate::layout::{MAX_HEADS, MAX_SLOPE};
use crate::{Error, Result};

/// What linear attention computes, apart from the gates, which come with the inputs.
///
/// ```
/// use wgpu_attention::LinearParams;
/// // RetNet: a constant decay for each of 8 heads, and no factor.
/// let params = LinearParams { slopes: Some(LinearParams::retnet_slopes(8)), scale: Some(1.0), ..LinearParams::default() };
/// assert!(params.causal && (params.slopes.unwrap()[0] - 0.03175).abs() < 1e-4);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct LinearParams {
    /// How a token changes the state. Default: [`LinearRule::Linear`].
    pub rule: LinearRule,
    /// Whether a token sees only itself and those before it. Default: yes. Otherwise every token reads the state after the last one, and
    /// there are no gates.
    pub causal: bool,
    /// Whether tokens are processed from the last to the first. Default: no.
    pub reverse: bool,
    /// Factor of Sᵀ q. Default: 1/√head_dim, or, with [`LinearRule::Momentum`], 1; Lightning Attention and Mamba-2 use 1.
    pub scale: Option<f32>,
    /// What makes features of queries and keys. Default: [`FeatureMap::Identity`].
    pub feature_map: FeatureMap,
    /// Whether each query and key is divided by √(Σ x² + 10⁻⁶), its length, before the feature map. Default: no.
    pub l2_norm: bool,
    /// Divides each row of the output by what the same attention gives for values of 1, plus this ε. The state has another part for it: z, the
    /// running sum of φ(k), which fades as the state does. Only with [`LinearRule::Linear`]. Default: unset, no division.
    pub normalize: Option<f32>,
    /// A constant gate g = −slope for each head, at least 0: Lightning Attention, RetNet.
    pub slopes: Option<Vec<f32>>,
    /// How the tokens are processed. Default: chosen by their number, the heads and the device, as the plan says; with
    /// [`LinearRule::Momentum`], token by token.
    pub algorithm: Option<LinearAlgorithm>,
    /// Tokens of a chunk, a multiple of 32 up to 256 (beyond 64 if the device has the workgroup memory). If set, outputs are not computed
    /// token by token. Default: 64. With [`LinearRule::Momentum`] it is something else: how many tokens, 1 to 256, have errors of the
    /// same memory. Default: 1. Algorithms over chunks take the smallest multiple of 32 from 64 to 256 that is also a multiple of it.
    pub chunk: Option<usize>,
}

/// How a token changes the state, after the gate has made it fade: S̃ = e^g · S.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LinearRule {
    /// S = S̃ + k vᵀ: linear attention; with gates Lightning Attention, RetNet, Mamba-2, simple GLA, GLA.
    #[default]
    Linear,
    /// S = S̃ + β k (v − S̃ᵀ k)ᵀ: DeltaNet (arXiv 2406.06484); with a gate per token, Gated DeltaNet (arXiv 2412.06464); with a gate
    /// per channel, Kimi Delta Attention (arXiv 2510.26692). β is [`crate::LinearInputs::beta`]. Give keys unit length: then, with β
    /// up to 2, no token magnifies what the state has.
    Delta,
    /// M = (1 − α) M + S with the momentum S = η S − θ k eᵀ and the error e = M'ᵀ k − v; o = scale · Mᵀ q: Titans' linear memory (arXiv
    /// 2501.00663). α, η and θ are [`crate::LinearInputs::momentum`]. M' is the memory that the token's chunk begins with, of
    /// [`LinearParams::chunk`] tokens, counted in the order of processing: part of what is computed. It is 1 by default: M' is the memory
    /// before the token. There are two states, M and S.
    ///
    /// Algorithms over chunks serve many heads and long sequences on a GPU, if asked for. They are less exact, by an order of magnitude where keys are
    /// alike and η is near 1: large terms cancel. And they want θ ‖k‖² below 2 (1 + η), about what a memory stays bounded with; beyond it they may
    /// overflow where token by token does not.
    Momentum,
}

/// How linear attention processes the tokens. The result is the same, except for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LinearAlgorithm {
    /// Token by token: for a few tokens, as in decoding, and where shaders run on a CPU.
    Recurrent,
    /// In one pass over chunks of tokens, with the state in registers: for many heads and batch entries. With the delta rule, a pass over
    /// the chunks for what tokens correct the state by comes first.
    OnePass,
    /// In three passes over segments of several chunks: the state that each segment leaves, a scan over these states, and the outputs. All
    /// segments of a long sequence are processed at once. With the delta rule, corrections go from one chunk to the next, and leave the
    /// states; the outputs of all segments come at once.
    ThreePass,
}

impl Default for LinearParams {
    fn default() -> Self {
        Self {
            rule: LinearRule::Linear,
            causal: true,
            reverse: false,
            scale: None,
            feature_map: FeatureMap::Identity,
            l2_norm: false,
            normalize: None,
            slopes: None,
            algorithm: None,
            chunk: None,
        }
    }
}

impl LinearParams {
    /// TransNormerLLM's slopes for layer `layer` of `layers`: 2^(−8(h+1)/heads) · (1 − layer/(layers − 1) + 1e-5) (Lightning
    /// Attention, arXiv 2401.04658).
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not below `layers`, or fewer than two layers.
    pub fn lightning_slopes(heads: usize, layer: usize, layers: usize) -> Result<Vec<f32>> {
        require(layers >= 2, "layers", layers, "at least 2")?;
        require(layer < layers, "layer", layer, format!("below {layers}, the number of layers"))?;
        require(heads <= MAX_HEADS, "heads", heads, format!("at most {MAX_HEADS}"))?;
        let depth = 1.0 - layer as f64 / (layers - 1) as f64 + 1e-5;
        let slope = |h: usize| (-8.0 * (h + 1) as f64 / heads as f64).exp2() * depth;
        Ok((0..heads).map(|h| slope(h) as f32).collect())
    }

    /// The other schedule in use for Lightning Attention: (8/heads) · (1 − layer/layers) · h.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not below `layers`.
    pub fn lightning_linear_slopes(heads: usize, layer: usize, layers: usize) -> Result<Vec<f32>> {
        require(layer < layers, "layer", layer, format!("below {layers}, the number of layers"))?;
        require(heads <= MAX_HEADS, "heads", heads, format!("at most {MAX_HEADS}"))?;
        let slope = |h: usize| 8.0 / heads as f64 * (1.0 - layer as f64 / layers as f64) * h as f64;
        Ok((0..heads).map(|h| slope(h) as f32).collect())
    }

    /// RetNet's decay γ = 1 − 2^(−5−h) as slopes −ln γ (arXiv 2307.08621). More heads than any call takes (2^20) are cut off.
    pub fn retnet_slopes(heads: usize) -> Vec<f32> {
        (0..heads.min(MAX_HEADS + 1)).map(|h| -(-(-5.0 - h as f64).exp2()).ln_1p() as f32).collect()
    }

    /// The factor that holds where none is set.
    pub(crate) fn scale_for(&self, head_dim: usize) -> f32 {
        let default = if self.rule == LinearRule::Momentum { 1.0 } else { 1.0 / (head_dim as f32).sqrt() };
        self.scale.unwrap_or(default)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(scale) = self.scale {
            require(scale.is_finite(), "scale", scale, "finite")?;
            let fits = scale >= 0.0 || self.feature_map != FeatureMap::Taylor2;
            require(fits, "scale", scale, "at least 0 with the Taylor map, which takes its root")?;
        }
        if let Some(epsilon) = self.normalize {
            let fits = epsilon.is_finite() && epsilon >= 0.0;
            require(fits, "normalize", epsilon, "finite and at least 0: what is added to the divisor")?;
            let linear = self.rule == LinearRule::Linear;
            let bound = "unset with the delta rule and with momentum, which have no sum of keys";
            require(linear, "normalize", epsilon, bound)?;
        }
        if self.rule == LinearRule::Momentum {
            momentum::check(self)?;
        } else if let Some(chunk) = self.chunk {
            let fits = (1..=256).contains(&chunk) && chunk.is_multiple_of(32);
            require(fits, "chunk", chunk, "a multiple of 32 tokens, at most 256")?;
            let chunked = self.algorithm != Some(LinearAlgorithm::Recurrent);
            require(chunked, "chunk", chunk, "unset where the algorithm is recurrent")?;
        }
        for (h, &slope) in self.slopes.iter().flatten().enumerate() {
            let bound = "at least 0 and at most 1e28: a head's decay factor is exp(−slope)";
            require((0.0..=MAX_SLOPE).contains(&slope), &format!("slopes[{h}]"), slope, bound)?;
        }
        if self.rule != LinearRule::Linear {
            let bound = "true with the delta rule and with momentum: what a token changes depends on those before it";
            require(self.causal, "causal", false, bound)?;
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
