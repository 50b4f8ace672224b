//! Flash attention: dense softmax attention in one pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691).
//!
//! `out = softmax(score(scale · q kᵀ) + mask) v`, `lse = ln Σ exp(score(scale · q kᵀ) + mask)`, nothing of size queries × keys
//! in memory.

use crate::softmax::{AnyVisibility, AttentionParams, Dense, ScoreParams, SoftmaxParams};
use crate::{Causal, Hook, Result, Window};
use std::sync::Arc;

/// What flash attention computes.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct FlashParams {
    /// Causal mask, by its diagonal.
    pub causal: Option<Causal>,
    /// Sliding window, besides the causal mask.
    pub window: Window,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c) (Gemma 2).
    pub softcap: Option<f32>,
    /// ALiBi (arXiv 2108.12409): one slope a query head; score − slope·|i + keys − queries − j|, after the soft cap.
    pub alibi_slopes: Option<Vec<f32>>,
    /// The caller's functions that change a score, one after another, after all else that does.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which keys are seen, besides all else.
    pub mask_mod: Vec<Hook>,
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
