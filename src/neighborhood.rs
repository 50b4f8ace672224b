//! Neighborhood attention in one to three dimensions, fused (Hassani et al., arXiv 2204.07143 and 2403.04690; strides:
//! Generalized Neighborhood Attention, arXiv 2504.16922).

mod boxes;

use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::softmax::{AnyVisibility, AttentionParams, AttentionShapes, ScoreParams, SoftmaxParams, score_methods};
use crate::{Hook, Result};
use boxes::Boxes;
use std::sync::Arc;

/// One axis of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct NeighborhoodAxis {
    /// Positions, at least 2.
    pub length: usize,
    /// Keys that a query sees along this axis: at least 2, window · dilation at most `length`. If the number is even, one more key is
    /// before the query than after it.
    pub window: usize,
    /// Neighbouring queries that share one window: 1 to `window`. The window is that of the middle query (of two middle ones, the later),
    /// or of the last where the axis is causal. With stride = window, attention is blocked.
    #[cfg_attr(feature = "serde", serde(default = "one"))]
    pub stride: usize,
    /// Distance between neighbouring keys of a window, at least 1.
    #[cfg_attr(feature = "serde", serde(default = "one"))]
    pub dilation: usize,
    /// Whether no query sees keys after its own position.
    #[cfg_attr(feature = "serde", serde(default))]
    pub causal: bool,
}

#[cfg(feature = "serde")]
fn one() -> usize {
    1
}

impl NeighborhoodAxis {
    /// Stride and dilation 1, not causal.
    pub fn new(length: usize, window: usize) -> Self {
        Self { length, window, stride: 1, dilation: 1, causal: false }
    }

    /// The same with another stride.
    pub fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same with another dilation.
    pub fn with_dilation(self, dilation: usize) -> Self {
        Self { dilation, ..self }
    }

    /// The same where no query sees keys after its own position.
    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }
}

/// What neighborhood attention computes. On an axis of length L with window k, stride s and dilation d, position x is at index i = ⌊x/d⌋ of
/// the n positions that equal it modulo d, and sees of those:
///
/// - not causal: k keys from clamp(c − ⌊k/2⌋, 0, n − k) on, c = min(⌊i/s⌋·s + ⌊s/2⌋, n − 1);
/// - causal: those from max(c − k + 1, 0) to i, c = min(⌊i/s⌋·s + s − 1, n − 1).
///
/// The neighborhood is the product over the axes, and one softmax runs over it.
///
/// ```
/// use wgpu_attention::{NeighborhoodAxis, NeighborhoodParams};
/// // A picture of 56 × 56 pixels: each sees 7 × 7 of every second row, and columns up to its own.
/// let params = NeighborhoodParams::new([NeighborhoodAxis::new(56, 7).with_dilation(2), NeighborhoodAxis::new(56, 7).causal()]);
/// assert!(params.check().is_ok());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct NeighborhoodParams {
    /// One to three axes; tokens are their positions in row-major order, the last axis fastest.
    pub axes: Vec<NeighborhoodAxis>,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// The caller's functions that change a score, one after another. Their `Position` also has the coordinates `query_at` and `key_at`,
    /// each a vec3u with the first axis in x.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which keys of the neighborhood are seen.
    pub mask_mod: Vec<Hook>,
}

impl NeighborhoodParams {
    /// Nothing but the axes.
    pub fn new(axes: impl Into<Vec<NeighborhoodAxis>>) -> Self {
        Self { axes: axes.into(), ..Self::default() }
    }

    /// Checks that there are one to three axes, and that the numbers of each fit together.
    ///
    /// # Errors
    /// [`crate::Error::Argument`], which names the axis, the number and the bound.
    pub fn check(&self) -> Result<()> {
        require((1..=3).contains(&self.axes.len()), "axes.len()", self.axes.len(), "within 1..=3")?;
        for (i, axis) in self.axes.iter().enumerate() {
            let NeighborhoodAxis { length, window, stride, dilation, .. } = *axis;
            let name = |field: &str| format!("axes[{i}].{field}");
            let bound = format!("within 2..={MAX_SEQUENCE}");
            require((2..=MAX_SEQUENCE).contains(&length), &name("length"), length, bound)?;
            require(dilation >= 1, &name("dilation"), dilation, "at least 1")?;
            let most = length / dilation;
            let bound = format!("within 2..={most}: window · dilation ({dilation}) is at most the length ({length})");
            require(window >= 2 && window <= most, &name("window"), window, bound)?;
            let bound = format!("within 1..={window}, the window");
            require((1..=window).contains(&stride), &name("stride"), stride, bound)?;
        }
        Ok(())
    }
}

score_methods!(NeighborhoodParams);

impl AttentionParams for NeighborhoodParams {}

impl SoftmaxParams for NeighborhoodParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, score_mod, mask_mod, ..ScoreParams::default() }
    }

    fn visibility(&self) -> Result<AnyVisibility> {
        self.check()?;
        Ok(AnyVisibility(Arc::new(Boxes::new(&self.axes))))
    }
}

/// Tokens of a space, and what does not go with one.
fn check(axes: &[NeighborhoodAxis], shapes: &AttentionShapes) -> Result<()> {
    let tokens = axes.iter().fold(1usize, |n, axis| n.saturating_mul(axis.length));
    let lengths: Vec<usize> = axes.iter().map(|axis| axis.length).collect();
    for (name, given) in [("q.shape[2] (tokens)", shapes.q.shape()[2]), ("k.shape[2] (tokens)", shapes.k.shape()[2])] {
        require(given == tokens, name, given, format!("{tokens}, the product of the axes' lengths {lengths:?}"))?;
    }
    let AttentionShapes { seqlens_q, seqlens_k, packed, bias, mask, block_mask, token_lists, .. } = shapes;
    for (name, is_set) in [
        ("seqlens_q", seqlens_q.is_some()),
        ("seqlens_k", seqlens_k.is_some()),
        ("cu_seqlens_q", packed.is_some()),
        ("bias", bias.is_some()),
        ("mask", mask.is_some()),
        ("block_mask", block_mask.is_some()),
        ("token_lists", token_lists.is_some()),
    ] {
        require(!is_set, name, "set", "unset: neighborhood attention takes none (see score_mod and mask_mod)")?;
    }
    Ok(())
}
