//! Gates and betas of linear attention on a device.

use crate::gpu::call::{Call, present};
use crate::gpu::calls::seqlens::{Seqlens, Sequences};
use crate::gpu::forward::{Cache, Planner};
use crate::program::Name;
use crate::{Gpu, LinearGateActivation, Prepared, Result, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// What gates or betas of linear attention are made of.
#[derive(Clone, Copy, Debug)]
pub struct LinearGateInputs<'a> {
    /// What a model computes for each token, of any float type: [batch, heads, tokens, 1], or head_dim wide for gates of channels.
    pub x: &'a Tensor,
    /// With [`LinearGateActivation::Softplus`], the logarithm of each head's rate, f32 [1, heads, 1, 1].
    pub a_log: Option<&'a Tensor>,
    /// Where it is set, what is added to x, f32 [1, heads, 1, width of x].
    pub dt_bias: Option<&'a Tensor>,
    /// As in [`crate::LinearInputs`].
    pub seqlens: Option<Seqlens<'a>>,
    /// As in [`crate::LinearInputs`].
    pub cu_seqlens: Option<Seqlens<'a>>,
    /// As in [`crate::LinearInputs`].
    pub max_seqlen: Option<usize>,
}

impl<'a> LinearGateInputs<'a> {
    /// Of betas, at full length.
    pub fn new(x: &'a Tensor) -> Self {
        Self { x, a_log: None, dt_bias: None, seqlens: None, cu_seqlens: None, max_seqlen: None }
    }

    fn sequences(&self) -> Sequences<'a, 2, 1> {
        Sequences::of_tokens([self.seqlens, self.cu_seqlens], self.max_seqlen)
    }

    /// The same for gates.
    pub fn with_rates(self, a_log: &'a Tensor, dt_bias: Option<&'a Tensor>) -> Self {
        Self { a_log: Some(a_log), dt_bias, ..self }
    }
}

impl Call for LinearGateInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([("x", Some(self.x)), ("a_log", self.a_log), ("dt_bias", self.dt_bias)]);
        all.extend(self.sequences().tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.sequences().numbers().collect()
    }
}

/// The gradients of what gates or betas are made of.
#[derive(Clone, Debug)]
pub struct LinearGateGradients {
    /// Of x, with its shape and type.
    pub dx: Tensor,
    /// Of a_log, with its shape, where it is there: over all tokens.
    pub da_log: Option<Tensor>,
    /// Of dt_bias, with its shape, where it is there: over all tokens.
    pub ddt_bias: Option<Tensor>,
}

/// Makes gates and betas for [`crate::LinearAttention`] from what a model computes.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, LinearGate, LinearGateActivation, LinearGateInputs, Tensor};
/// let gpu = Gpu::request().await?;
/// let up = async |x: &[f32]| Tensor::upload(&gpu, [1, 1, x.len(), 1], DType::F32, x).await;
/// let (x, a_log, dt_bias) = (up(&[0.0, 1.0]).await?, up(&[0.5]).await?, up(&[-1.0]).await?);
/// let gate = LinearGate::new(&gpu, LinearGateActivation::Softplus)?;
/// let g = gate.forward(&LinearGateInputs::new(&x).with_rates(&a_log, Some(&dt_bias))).await?.read().await?;
/// assert!((g[1] + 0.5f32.exp() * 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct LinearGate {
    gpu: Gpu,
    activation: LinearGateActivation,
    cache: Arc<Cache>,
}

impl LinearGate {
    /// Checks the activation; nothing is compiled yet.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a factor that is not within [0, 2].
    pub fn new(gpu: &Gpu, activation: LinearGateActivation) -> Result<Self> {
        activation.check()?;
        Ok(Self { gpu: gpu.clone(), activation, cache: Arc::default() })
    }

    /// Compiles all that these shapes need. A call is `(inputs, [("out", &out)])`.
    ///
    /// # Errors
    /// Those of [`LinearGateActivation::plan`]; [`crate::Error::Shader`], [`crate::Error::OutOfMemory`], [`crate::Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.activation.plan(self.gpu.caps(), &shapes.into())?, &[]).await
    }

    /// The same for gradients: `(inputs, [("dout", &dout), ("dx", &dx), …])`.
    ///
    /// # Errors
    /// Those of [`LinearGate::prepare`].
    pub async fn prepare_backward(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.activation.plan_backward(self.gpu.caps(), &shapes.into())?, &[]).await
    }

    /// Gates or betas in one call, f32, with the shape of x. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearGate::prepare`]; [`crate::Error::OtherDevice`].
    pub async fn forward(&self, inputs: &LinearGateInputs<'_>) -> Result<Tensor> {
        let plan: Planner = &|caps, shapes| self.activation.plan(caps, shapes);
        Ok(self.gpu.forward(&self.cache, "forward", plan, &[], inputs, &[], &[]).await?.take("out"))
    }

    /// The gradients from that of the gates or betas: [`crate::backward::LinearGradients::dg`] or `dbeta`.
    ///
    /// # Errors
    /// Those of [`LinearGate::forward`].
    pub async fn backward(&self, inputs: &LinearGateInputs<'_>, dout: &Tensor) -> Result<LinearGateGradients> {
        let plan: Planner = &|caps, shapes| self.activation.plan_backward(caps, shapes);
        let call = (inputs, [("dout", dout)]);
        let mut found = self.gpu.forward(&self.cache, "backward", plan, &[], &call, &[], &[]).await?;
        Ok(LinearGateGradients {
            dx: found.take("dx"),
            da_log: found.take_if("da_log"),
            ddt_bias: found.take_if("ddt_bias"),
        })
    }
}
