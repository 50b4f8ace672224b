//! Params of linear attention.

use serde::Deserialize;
use tsify::Tsify;

/// How a token changes the state: "linear" adds k vᵀ, "delta" corrects what the state has for k.
#[derive(Clone, Copy, Deserialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub enum LinearRule {
    Linear,
    Delta,
}

/// What makes features of queries and keys: "identity", "elu1" (elu(x) + 1), "relu", "taylor2" (of second order; width at most 21).
#[derive(Clone, Copy, Deserialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub enum FeatureMap {
    Identity,
    Elu1,
    Relu,
    Taylor2,
}

/// What linear attention computes, besides the gates that come with the inputs.
#[derive(Default, Deserialize, Tsify)]
#[serde(rename_all = "camelCase", default)]
pub struct LinearParams {
    /// Default: "linear".
    #[tsify(optional)]
    pub rule: Option<LinearRule>,
    /// Default: "identity".
    #[tsify(optional)]
    pub feature_map: Option<FeatureMap>,
    /// Whether queries and keys get unit length first. Default: no.
    #[tsify(optional)]
    pub l2_norm: bool,
    /// Divides the output by scale · φ(q) · z + this, z the running sum of φ(k). Default: no division.
    #[tsify(optional)]
    pub normalize: Option<f32>,
    /// Whether a token sees only those before it and itself. Default: yes.
    #[tsify(optional)]
    pub causal: Option<bool>,
    /// Whether to go from the last token to the first. Default: no.
    #[tsify(optional)]
    pub reverse: bool,
    /// Factor of Sᵀ q. Default: 1/√width.
    #[tsify(optional)]
    pub scale: Option<f32>,
    /// A constant gate −slope for each head, at least 0.
    #[tsify(optional)]
    pub slopes: Option<Vec<f32>>,
}

impl From<LinearParams> for wgpu_attention::LinearParams {
    fn from(params: LinearParams) -> Self {
        let LinearParams { rule, feature_map, l2_norm, normalize, causal, reverse, scale, slopes } = params;
        let rule = match rule {
            Some(LinearRule::Delta) => wgpu_attention::LinearRule::Delta,
            _ => wgpu_attention::LinearRule::Linear,
        };
        let feature_map = match feature_map {
            None | Some(FeatureMap::Identity) => wgpu_attention::FeatureMap::Identity,
            Some(FeatureMap::Elu1) => wgpu_attention::FeatureMap::Elu1,
            Some(FeatureMap::Relu) => wgpu_attention::FeatureMap::Relu,
            Some(FeatureMap::Taylor2) => wgpu_attention::FeatureMap::Taylor2,
        };
        Self {
            rule,
            feature_map,
            l2_norm,
            normalize,
            causal: causal.unwrap_or(true),
            reverse,
            scale,
            slopes,
            ..Self::default()
        }
    }
}
