//! Flash attention: dense softmax attention in one pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691).
//!
//! `out = softmax(score(scale · q kᵀ) + mask) v`, `lse = ln Σ exp(score(scale · q kᵀ) + mask)`, nothing of size queries × keys
//! in memory.

use crate::error::require;
use crate::packed::Side;
use crate::shader::{Binding, file};
use crate::softmax::tiles::{Extent, Tiles, small_table};
use crate::softmax::{Attention, AttentionParams, AttentionShapes, MAX_SEQUENCE, Order, Portable, ScoreParams, Sees};
use crate::{Caps, Hook, Result};
use std::sync::Arc;

/// Flash attention with fixed params on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Tensor};
/// let gpu = Gpu::request().await?;
/// // Two sequences in one batch, of 5 and 2 tokens: the second is padded, and padding is not seen.
/// let x = Tensor::upload(&gpu, [2, 1, 5, 8], DType::F32, &[1.0; 80]).await?;
/// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(0.0), ..Default::default() })?;
/// let inputs = AttentionInputs { seqlens_k: Some(&[5, 2]), ..AttentionInputs::new(&x, &x, &x) };
/// let (_, lse) = attention.forward_with_lse(&inputs).await?;
/// let lse = lse.read().await?; // with all scores 0: the logarithm of the number of keys
/// assert!((lse[0] - 5f32.ln()).abs() < 1e-6 && (lse[5] - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type FlashAttention = Attention<FlashParams>;

/// Which diagonal a causal mask follows. With lengths, the numbers of queries and keys are each batch entry's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Causal {
    /// Query i sees key j when j ≤ i + keys − queries: the last query sees every key (FlashAttention).
    BottomRight,
    /// Query i sees key j when j ≤ i: the first query sees one key (PyTorch's `is_causal`).
    TopLeft,
}

/// Sliding window: query i sees key j when p − left ≤ j ≤ p + right, p = i + keys − queries. Both bounds inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the query's own position; unset: all.
    pub left: Option<usize>,
    /// Keys after it; unset: all.
    pub right: Option<usize>,
}

/// What flash attention computes.
#[derive(Clone, Debug, Default, PartialEq)]
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

impl Sees for FlashParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, softcap, alibi_slopes, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, softcap, alibi_slopes, score_mod, mask_mod }
    }

    fn tiles(&self) -> Result<Order> {
        Ok(Order(Arc::new(Dense { causal: self.causal, window: self.window })))
    }
}

/// `NONE` of the shaders.
const NONE: u32 = u32::MAX;

/// Everyone sees everyone, less what a causal mask, a window and the lengths take away.
#[derive(Debug, Default)]
pub(crate) struct Dense {
    pub causal: Option<Causal>,
    pub window: Window,
}

impl Tiles for Dense {
    fn family(&self) -> &'static str {
        "flash"
    }

    fn check(&self, shapes: &AttentionShapes) -> Result<()> {
        require(shapes.block_mask.is_none(), "block_mask", "set", "unset: `BlockSparseAttention` takes one")
    }

    fn engine(&self, caps: &Caps, what: &str, head_dim: usize, value_dim: usize) -> Result<Portable> {
        Portable::plan(caps, what, head_dim, value_dim, 0)
    }

    fn takes_few_rows(&self) -> bool {
        true
    }

    /// The last query sees every key.
    fn grouped(&self, _: &AttentionShapes) -> Option<Box<dyn Tiles>> {
        let open = self.window == Window::default() && self.causal != Some(Causal::TopLeft);
        open.then(|| Box::new(Self::default()) as _)
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        match side {
            Side::Queries => vec![file::TILES_RANGES, file::TILES_POSITION, file::TILES_DENSE],
            Side::Keys => vec![file::TILES_RANGES, file::TILES_POSITION, file::TILES_DENSE_KEYS],
        }
    }

    fn constants(&self, _: Side, _: &AttentionShapes, _: &Portable) -> Vec<(&'static str, u32)> {
        vec![]
    }

    fn tables(&self, _: Side, _: &AttentionShapes, _: &Portable) -> Vec<(Binding, Option<Vec<u8>>)> {
        // A bound as long as any sequence is an open one.
        let bound = |bound: Option<usize>| bound.filter(|&n| n < MAX_SEQUENCE).map_or(NONE, |n| n as u32);
        let Window { left, right } = self.window;
        vec![small_table("dense", &[[causal_code(self.causal), bound(left), bound(right), 0]])]
    }

    fn extent(&self, _: Side, rows: usize, cols: usize, engine: &Portable) -> Extent {
        let visited = cols.div_ceil(engine.cols as usize);
        Extent { tiles: rows.div_ceil(engine.rows as usize), cols, visited }
    }

    fn describe(&self, _: &AttentionShapes, _: &Portable) -> Option<String> {
        None
    }
}

/// `CAUSAL_…` of the shaders.
fn causal_code(causal: Option<Causal>) -> u32 {
    match causal {
        None => 0,
        Some(Causal::BottomRight) => 1,
        Some(Causal::TopLeft) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::{Causal, causal_code};

    #[test]
    fn causal_codes_are_the_shaders() {
        for (causal, name) in [(Causal::BottomRight, "CAUSAL_BOTTOM_RIGHT"), (Causal::TopLeft, "CAUSAL_TOP_LEFT")] {
            let line = format!("const {name}: u32 = {}u;", causal_code(Some(causal)));
            assert!(crate::shader::file::TILES_RANGES.contains(&line), "{line}");
        }
    }
}
