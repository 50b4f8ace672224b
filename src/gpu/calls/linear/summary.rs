//! Summaries of spans of tokens.

use super::{LinearAttention, LinearInputs};
use crate::gpu::call::{Call, present};
use crate::gpu::forward::Planner;
use crate::program::Name;
#[cfg(doc)]
use crate::{Error, LinearParams, LinearRule};
use crate::{Result, Tensor};

/// What a span of tokens does to any state: S_out = M · S_in + ΔS. Spans in a row have M = M₂ · M₁ and ΔS = M₂ · ΔS₁ + ΔS₂, so devices that
/// have a span of a sequence each exchange these instead of tokens, and a cache of prefixes keeps them.
#[derive(Clone, Debug)]
pub struct LinearSummary {
    /// ΔS, f32 [batch or sequences, heads, head_dim, value_dim]: what the tokens leave in an empty state.
    pub added: Tensor,
    /// M, f32: with [`LinearRule::Delta`] [batch or sequences, heads, head_dim, head_dim]; else the diagonal of it, what is left of each row
    /// of the state, [.., head_dim, 1].
    pub transition: Tensor,
}

/// The gradients of a summary: as in [`crate::backward::LinearGradients`].
#[derive(Clone, Debug)]
pub struct LinearSummaryGradients {
    /// Of k, with its shape: the sum over the heads that use it.
    pub dk: Tensor,
    /// Of v, likewise.
    pub dv: Tensor,
    /// Of the gates, f32, with their shape, where tokens have gates.
    pub dg: Option<Tensor>,
    /// Of the betas, f32, with their shape, where there are betas.
    pub dbeta: Option<Tensor>,
    /// Of the slopes, f32 [1, heads, 1, 1], where heads have slopes.
    pub dslopes: Option<Tensor>,
}

impl Call for LinearSummary {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("added", Some(&self.added)), ("transition", Some(&self.transition))])
    }
}

impl LinearAttention {
    /// What the tokens do to a state, in one call: allocates both results and submits. Of q only the shape counts. What was prepared for the
    /// shapes is kept.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, Gpu, LinearAttention, LinearInputs, LinearParams, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let up = async |x: &[f32]| Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, x).await;
    /// let (k, v, g) = (up(&[1.0, 2.0]).await?, up(&[3.0, 5.0]).await?, up(&[-0.5, -1.0]).await?);
    /// let attention = LinearAttention::new(&gpu, LinearParams::default())?;
    /// let summary = attention.summary(&LinearInputs::new(&k, &k, &v).with_gates(&g)).await?;
    /// assert!((summary.transition.read().await?[0] - (-1.5f32).exp()).abs() < 1e-6);
    /// assert!((summary.added.read().await?[0] - (3.0 * (-1f32).exp() + 10.0)).abs() < 1e-5);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_summary`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::OtherDevice`].
    pub async fn summary(&self, inputs: &LinearInputs<'_>) -> Result<LinearSummary> {
        let plan: Planner = &|caps, shapes| self.params.plan_summary(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "summary", plan, &[], inputs, &[], &[]).await?;
        Ok(LinearSummary { added: found.take("added"), transition: found.take("transition") })
    }

    /// The gradients of a summary in one call, from those of both of its parts. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::summary`].
    pub async fn summary_backward(
        &self,
        inputs: &LinearInputs<'_>,
        gradient: &LinearSummary,
    ) -> Result<LinearSummaryGradients> {
        let plan: Planner = &|caps, shapes| self.params.plan_summary_backward(caps, shapes);
        let call = (inputs, [("dadded", &gradient.added), ("dtransition", &gradient.transition)]);
        let mut found = self.gpu.forward(&self.cache, "summary backward", plan, &[], &call, &[], &[]).await?;
        Ok(LinearSummaryGradients {
            dk: found.take("dk"),
            dv: found.take("dv"),
            dg: found.take_if("dg"),
            dbeta: found.take_if("dbeta"),
            dslopes: found.take_if("dslopes"),
        })
    }
}
