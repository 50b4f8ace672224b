//! Merging on a device.

use crate::error::require;
use crate::gpu::call::Call;
use crate::gpu::forward::Cache;
use crate::program::Name;
use crate::{AttentionOutputs, Gpu, Prepared, Result, Shapes, Tensor};
use std::sync::Arc;

/// Partial results are `parts[i].out` and `parts[i].lse`.
impl Call for &[AttentionOutputs] {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = vec![];
        for (i, part) in self.iter().enumerate() {
            all.push((format!("parts[{i}].out").into(), &part.out));
            all.push((format!("parts[{i}].lse").into(), &part.lse));
        }
        all
    }
}

/// Merges partial attention results on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, FlashAttention, AttentionInputs, AttentionOutputs, FlashParams, Gpu, Merge, Tensor};
/// let gpu = Gpu::request().await?;
/// let attention = FlashAttention::new(&gpu, FlashParams::default())?;
/// let q = Tensor::upload(&gpu, [1, 1, 1, 4], DType::F32, &[1.0; 4]).await?;
/// let near = Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[0.5; 8]).await?;
/// let far = Tensor::upload(&gpu, [1, 1, 3, 4], DType::F32, &[-1.0; 12]).await?;
/// let mut parts = vec![];
/// for keys in [&near, &far] {
///     let (out, lse) = attention.forward_with_lse(&AttentionInputs::new(&q, keys, keys)).await?;
///     parts.push(AttentionOutputs { out, lse });
/// }
/// let (out, lse) = Merge::new(&gpu).forward(&parts).await?;
/// let sum = 2.0 * 1f32.exp() + 3.0 * (-2f32).exp(); // scores 4 · 0.5 / 2 and 4 · −1 / 2
/// assert!((lse.read().await?[0] - sum.ln()).abs() < 1e-5);
/// assert!((out.read().await?[0] - (2.0 * 1f32.exp() * 0.5 - 3.0 * (-2f32).exp()) / sum).abs() < 1e-5);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Merge {
    gpu: Gpu,
    cache: Arc<Cache>,
}

impl Merge {
    /// Nothing is compiled yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), cache: Arc::default() }
    }

    /// Compiles and allocates all that these shapes need: see [`Shapes::plan_merge`]. A call is the partial results, and the merged one:
    /// `(&parts[..], outputs)`.
    ///
    /// # Errors
    /// Those of [`Shapes::plan_merge`]; [`crate::Error::OutOfMemory`], [`crate::Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, shapes.into().plan_merge(self.gpu.caps())?, &[]).await
    }

    /// Merges in one call: allocates the output, of the first part's type, and submits. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`Merge::prepare`]; [`crate::Error::OtherDevice`].
    pub async fn forward(&self, parts: &[AttentionOutputs]) -> Result<(Tensor, Tensor)> {
        require(!parts.is_empty(), "parts.len()", 0, "at least 1")?;
        let mut found = self
            .gpu
            .forward(&self.cache, "merge", &|caps, shapes| shapes.plan_merge(caps), &[], &parts, &[], &[])
            .await?;
        Ok((found.take("out"), found.take("lse")))
    }
}
