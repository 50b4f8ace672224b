//! Memory with momentum.

use super::{LinearAttention, LinearInputs};
use crate::program::Name;
#[cfg(doc)]
use crate::{Error, LinearRule};
use crate::{Result, Tensor};

/// By how much each token changes memory and momentum, by [`LinearRule::Momentum`]: [batch, heads or a divisor of that, tokens, 1] each, of any float type.
/// One that is out of range is clamped, a NaN or an infinite θ counts as 0, and either makes reading a result an error.
#[derive(Clone, Copy, Debug)]
pub struct LinearMomentum<'a> {
    /// α: how much of the memory is forgotten, within [0, 1].
    pub alpha: &'a Tensor,
    /// η: how much of the momentum is kept, within [0, 1].
    pub eta: &'a Tensor,
    /// θ: the step size, at least 0.
    pub theta: &'a Tensor,
    /// The initial momentum, [batch or sequences, heads, head_dim, value_dim], f32, or f16 or bf16. Unset: 0. That of the memory is
    /// [`LinearInputs::h0`].
    pub s0: Option<&'a Tensor>,
}

impl<'a> LinearMomentum<'a> {
    /// From an empty momentum.
    pub fn new(alpha: &'a Tensor, eta: &'a Tensor, theta: &'a Tensor) -> Self {
        Self { alpha, eta, theta, s0: None }
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (Name, &'a Tensor)> {
        let steps = [("alpha", self.alpha), ("eta", self.eta), ("theta", self.theta)];
        let all = steps.into_iter().chain(self.s0.map(|s0| ("s0", s0)));
        all.map(|(name, tensor)| (name.into(), tensor))
    }
}

impl<'a> LinearInputs<'a> {
    /// The same with steps for memory and momentum, by [`LinearRule::Momentum`].
    pub fn with_momentum(self, momentum: LinearMomentum<'a>) -> Self {
        Self { momentum: Some(momentum), ..self }
    }
}

impl LinearAttention {
    /// The output, the last memory and the last momentum, by [`LinearRule::Momentum`]; both states f32 [batch or sequences, heads, head_dim,
    /// value_dim]. With a [`crate::LinearParams::chunk`], a call begins a chunk.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, Gpu, LinearAttention, LinearInputs, LinearMomentum, LinearParams, LinearRule, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let up = async |x: &[f32]| Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, x).await;
    /// let (q, v) = (up(&[1.0, 1.0]).await?, up(&[4.0, 6.0]).await?);
    /// let (alpha, eta, theta) = (up(&[0.0, 0.5]).await?, up(&[0.0, 1.0]).await?, up(&[0.5, 0.5]).await?);
    /// let params = LinearParams { rule: LinearRule::Momentum, ..LinearParams::default() };
    /// let inputs = LinearInputs::new(&q, &q, &v).with_momentum(LinearMomentum::new(&alpha, &eta, &theta));
    /// let (o, memory, momentum) = LinearAttention::new(&gpu, params)?.forward_with_momentum(&inputs).await?;
    /// // Halfway to 4; then half of that, the same step again, and halfway from 2 to 6.
    /// assert_eq!(o.read().await?, [2.0, 5.0]);
    /// assert_eq!((memory.read().await?, momentum.read().await?), (vec![5.0], vec![4.0]));
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_momentum(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor, Tensor)> {
        let mut found = self.submit(inputs, &["ht", "st"]).await?;
        Ok((found.take("o"), found.take("ht"), found.take("st")))
    }

    /// The same with memory and momentum updated in place, as in decoding: f32, or f16 or bf16, rounded once a call.
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_in_place_with_momentum(
        &self,
        inputs: &LinearInputs<'_>,
        memory: &Tensor,
        momentum: &Tensor,
    ) -> Result<Tensor> {
        Ok(self.submit(&(inputs, [("state", memory), ("s", momentum)]), &[]).await?.take("o"))
    }
}
