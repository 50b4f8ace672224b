//! Rotary embeddings on a device.

use crate::gpu::call::Call;
use crate::gpu::forward::Cache;
use crate::program::{Name, Program};
use crate::{Gpu, Prepared, Result, RotaryParams, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// Positions of rows.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Positions<'a> {
    /// Row i is at position start + i · step.
    Counted {
        /// The position of the first row.
        start: u32,
        /// The step from one row to the next.
        step: u32,
    },
    /// u32 [batch or 1, heads or 1, 1, rows].
    Given(&'a Tensor),
}

impl Default for Positions<'_> {
    /// 0, 1, 2 …
    fn default() -> Self {
        Self::Counted { start: 0, step: 1 }
    }
}

impl Call for Positions<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        match self {
            Self::Counted { .. } => vec![],
            Self::Given(tensor) => vec![("positions".into(), tensor)],
        }
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        match *self {
            Self::Counted { start, step } => vec![("positions".into(), vec![start as usize, step as usize].into())],
            Self::Given(_) => vec![],
        }
    }
}

/// Rotary position embeddings on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, Positions, Rotary, RotaryParams, Tensor};
/// let gpu = Gpu::request().await?;
/// let rotary = Rotary::new(&gpu, RotaryParams::default())?;
/// let x = Tensor::upload(&gpu, [1, 1, 3, 2], DType::F32, &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]).await?;
/// let out = rotary.forward(&x, Positions::default()).await?.read().await?;
/// for (p, pair) in out.chunks(2).enumerate() {
///     assert!((pair[0] - (p as f32).cos()).abs() < 1e-6 && (pair[1] - (p as f32).sin()).abs() < 1e-6);
/// }
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Rotary {
    gpu: Gpu,
    params: RotaryParams,
    cache: Arc<Cache>,
}

impl Rotary {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a theta that is not finite or not above 0, and for an odd `dim`.
    pub fn new(gpu: &Gpu, params: RotaryParams) -> Result<Self> {
        params.check()?;
        Ok(Self { gpu: gpu.clone(), params, cache: Arc::default() })
    }

    /// The params.
    pub fn params(&self) -> &RotaryParams {
        &self.params
    }

    /// What would run: see [`RotaryParams::plan`].
    ///
    /// # Errors
    /// Those of [`RotaryParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// Compiles and uploads all that these shapes need.
    ///
    /// # Errors
    /// Those of [`RotaryParams::plan`]; [`crate::Error::OutOfMemory`], [`crate::Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &[]).await
    }

    /// The same for gradients: see [`RotaryParams::plan_backward`].
    ///
    /// # Errors
    /// Those of [`Rotary::prepare`].
    pub async fn prepare_backward(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.params.plan_backward(self.gpu.caps(), &shapes.into())?, &[]).await
    }

    /// The embedding in one call: allocates the result, of x's type, and submits. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`Rotary::prepare`]; [`crate::Error::OtherDevice`].
    pub async fn forward(&self, x: &Tensor, positions: Positions<'_>) -> Result<Tensor> {
        let call = ([("x", x)], positions);
        let plan = |caps: &_, shapes: &_| self.params.plan(caps, shapes);
        Ok(self.gpu.forward(&self.cache, "forward", &plan, &[], &call, &[], &[]).await?.take("out"))
    }

    /// The gradient of x from that of its embedding.
    ///
    /// # Errors
    /// Those of [`Rotary::forward`].
    pub async fn backward(&self, dout: &Tensor, positions: Positions<'_>) -> Result<Tensor> {
        let call = ([("x", dout)], positions);
        let plan = |caps: &_, shapes: &_| self.params.plan_backward(caps, shapes);
        Ok(self.gpu.forward(&self.cache, "backward", &plan, &[], &call, &[], &[]).await?.take("out"))
    }
}
