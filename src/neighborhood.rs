//! Neighborhood attention in one to three dimensions, fused (Hassani et al., arXiv 2204.07143 and 2403.04690; strides:
//! Generalized Neighborhood Attention, arXiv 2504.16922).

mod boxes;

use crate::error::require;
use crate::softmax::{Attention, AttentionParams, AttentionShapes, MAX_SEQUENCE, Order, ScoreParams, Sees};
use crate::{Hook, Result};
use boxes::Boxes;
use std::sync::Arc;

/// Neighborhood attention with fixed params on one device: each query sees the window of its nearest keys on every axis,
/// shifted inwards at a border so that it keeps its size. Tokens are the positions of a grid, row-major: [batch, heads,
/// tokens, head_dim]. Takes q, k, v and no lengths, packed sequences, bias or mask; see [`NeighborhoodParams`].
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor};
/// let gpu = Gpu::request().await?;
/// // A picture of 3 × 5 positions, windows of 3 × 3. With all scores 0 the output is the mean of the window.
/// let axes = vec![NeighborhoodAxis::new(3, 3), NeighborhoodAxis::new(5, 3)];
/// let params = NeighborhoodParams { axes, scale: Some(0.0), ..Default::default() };
/// let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
/// let x = Tensor::upload(&gpu, [1, 1, 15, 1], DType::F32, &values).await?;
/// let out = NeighborhoodAttention::new(&gpu, params)?.forward(&x, &x, &x).await?.read().await?;
/// let expected = [6.0, 6.0, 7.0, 8.0, 8.0]; // columns 0 to 2, 0 to 2, 1 to 3, 2 to 4, 2 to 4 of all three rows
/// assert!(out.iter().zip(expected.iter().cycle()).all(|(x, y)| (x - y).abs() < 1e-5));
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
///
/// For users of NATTEN: `na1d`, `na2d` and `na3d` are one, two and three axes.
///
/// | NATTEN | here |
/// |---|---|
/// | `query`, `key`, `value` [batch, *space, heads, dim] | the same memory as a tensor of [`crate::Layout::heads_last`], [batch, heads, tokens, dim] |
/// | `kernel_size` | `window` of each axis |
/// | `stride`, `dilation`, `is_causal` | `stride`, `dilation`, `causal` of each axis |
/// | `scale` | `scale` |
/// | `additional_keys`, `additional_values` | `additional_k`, `additional_v` of [`crate::AttentionInputs`] |
/// | `return_lse` | [`Attention::forward_with_lse`] |
/// | `q_tile_shape`, `kv_tile_shape`, `backend` | chosen by the plan, which says what it chose |
pub type NeighborhoodAttention = Attention<NeighborhoodParams>;

/// One axis of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborhoodAxis {
    /// Positions, at least 2.
    pub length: usize,
    /// Keys that a query sees along this axis: at least 2, window · dilation at most `length`. Of an even number, one more
    /// lies before the query than behind it.
    pub window: usize,
    /// Neighbouring queries that share their window: 1 to `window`. The window is that of the middle one (of two, the later), or
    /// of the last where the axis is causal. With stride = window, attention is blocked.
    pub stride: usize,
    /// Distance of neighbouring keys of a window; at least 1.
    pub dilation: usize,
    /// Whether no query sees keys behind it.
    pub causal: bool,
}

impl NeighborhoodAxis {
    /// Stride and dilation 1, not causal.
    pub fn new(length: usize, window: usize) -> Self {
        Self { length, window, stride: 1, dilation: 1, causal: false }
    }
}

/// What neighborhood attention computes. On an axis of length L with window k, stride s and dilation d, position x stands at
/// i = ⌊x/d⌋ of the n positions that equal it modulo d, and sees of those:
///
/// - not causal: k keys from clamp(c − ⌊k/2⌋, 0, n − k) on, c = min(⌊i/s⌋·s + ⌊s/2⌋, n − 1);
/// - causal: those from max(c − k + 1, 0) to i, c = min(⌊i/s⌋·s + s − 1, n − 1).
///
/// The neighborhood is the product over the axes, and one softmax runs over it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NeighborhoodParams {
    /// One to three axes; tokens are their positions in row-major order, the last axis fastest.
    pub axes: Vec<NeighborhoodAxis>,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// The caller's functions that change a score, one after another. Their `Position` also has the coordinates `query_at` and
    /// `key_at`, a vec3u each, the first axis in x.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which keys of the neighborhood are seen.
    pub mask_mod: Vec<Hook>,
}

impl NeighborhoodParams {
    /// Whether there are one to three axes, and every one's numbers go together.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] that names the axis, the number and the bound.
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

impl AttentionParams for NeighborhoodParams {}

impl Sees for NeighborhoodParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, score_mod, mask_mod, ..ScoreParams::default() }
    }

    fn tiles(&self) -> Result<Order> {
        self.check()?;
        Ok(Order(Arc::new(Boxes::new(&self.axes))))
    }
}

/// Tokens of a space, and what does not go with one.
fn check(axes: &[NeighborhoodAxis], shapes: &AttentionShapes) -> Result<()> {
    let tokens = axes.iter().fold(1usize, |n, axis| n.saturating_mul(axis.length));
    let lengths: Vec<usize> = axes.iter().map(|axis| axis.length).collect();
    for (name, given) in [("q.shape[2] (tokens)", shapes.q.shape[2]), ("k.shape[2] (tokens)", shapes.k.shape[2])] {
        require(given == tokens, name, given, format!("{tokens}, the product of the axes' lengths {lengths:?}"))?;
    }
    let AttentionShapes { seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k, bias, mask, block_mask, .. } = shapes;
    for (name, is_set) in [
        ("seqlens_q", seqlens_q.is_some()),
        ("seqlens_k", seqlens_k.is_some()),
        ("cu_seqlens_q", cu_seqlens_q.is_some()),
        ("cu_seqlens_k", cu_seqlens_k.is_some()),
        ("bias", bias.is_some()),
        ("mask", mask.is_some()),
        ("block_mask", block_mask.is_some()),
    ] {
        require(!is_set, name, "set", "unset: a neighborhood is a whole space (score_mod and mask_mod change scores)")?;
    }
    Ok(())
}
