//! Flash attention: dense softmax attention in one pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691).
//!
//! `out = softmax(score(scale · q kᵀ) + mask) v`, `lse = ln Σ exp(score(scale · q kᵀ) + mask)`, nothing of size queries × keys
//! in memory.

use crate::softmax::{AnyVisibility, AttentionParams, Dense, ScoreParams, SoftmaxParams, score_methods};
use crate::{Causal, Hook, Result, Window};
use std::sync::Arc;

/// What flash attention computes.
///
/// ```
/// use wgpu_attention::{Causal, FlashParams, Window};
/// // Gemma 2: causal, a window of 4096 keys, a soft cap of 50.
/// let params = FlashParams::causal().with_window(4095, None).with_softcap(50.0);
/// let window = Window { left: Some(4095), right: None };
/// let same = FlashParams { causal: Some(Causal::BottomRight), window, softcap: Some(50.0), ..Default::default() };
/// assert_eq!(params, same);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct FlashParams {
    /// Causal mask, by its diagonal.
    pub causal: Option<Causal>,
    /// Sliding window, in addition to the causal mask.
    pub window: Window,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c) (Gemma 2).
    pub softcap: Option<f32>,
    /// ALiBi (arXiv 2108.12409): one slope for each query head; score − slope·|i + keys − queries − j|, after the soft cap.
    pub alibi_slopes: Option<Vec<f32>>,
    /// The caller's functions that change a score, one after another, after everything else that changes it.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which keys are seen, in addition to everything else that hides keys.
    pub mask_mod: Vec<Hook>,
}

score_methods!(FlashParams, causal);

impl FlashParams {
    /// The same with a sliding window: `left` keys before the query's own position and `right` keys after it, inclusive; `None` for all.
    pub fn with_window(self, left: impl Into<Option<usize>>, right: impl Into<Option<usize>>) -> Self {
        Self { window: Window { left: left.into(), right: right.into() }, ..self }
    }

    /// The same with one slope for each query head (ALiBi).
    pub fn with_alibi_slopes(self, slopes: impl Into<Vec<f32>>) -> Self {
        Self { alibi_slopes: Some(slopes.into()), ..self }
    }
}

impl AttentionParams for FlashParams {}

impl SoftmaxParams for FlashParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, softcap, alibi_slopes, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, softcap, alibi_slopes, score_mod, mask_mod }
    }

    fn visibility(&self) -> Result<AnyVisibility> {
        Ok(AnyVisibility(Arc::new(Dense { causal: self.causal, window: self.window })))
    }
}
