//! Gradients of linear attention.

use super::{LinearAttention, LinearInputs};
#[cfg(doc)]
use crate::Error;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::Planner;
use crate::program::Name;
use crate::{Result, Tensor};

/// The gradients of linear attention.
#[derive(Clone, Debug)]
pub struct LinearGradients {
    /// Of q, with its shape: the sum over the heads that use it.
    pub dq: Tensor,
    /// Of k, likewise.
    pub dk: Tensor,
    /// Of v, likewise.
    pub dv: Tensor,
    /// Of the gates, f32, with their shape, where tokens have gates.
    pub dg: Option<Tensor>,
    /// Of the betas, f32, with their shape, where there are betas.
    pub dbeta: Option<Tensor>,
    /// Of the slopes, f32 [1, heads, 1, 1], where heads have slopes: −Σ dg over batch entries and tokens, to within 10⁻⁵ · Σ |dg|. Where the
    /// terms cancel, that may be more than the sum itself.
    pub dslopes: Option<Tensor>,
    /// Of the initial state, with its shape, where there is one.
    pub dh0: Option<Tensor>,
    /// Of the initial sum of keys, with its shape, where there is one.
    pub dz0: Option<Tensor>,
    /// Of α of [`LinearInputs::momentum`], f32, with its shape, where there is one.
    pub dalpha: Option<Tensor>,
    /// Of η, likewise.
    pub deta: Option<Tensor>,
    /// Of θ, likewise.
    pub dtheta: Option<Tensor>,
    /// Of the initial momentum, f32, with its shape, where there is one.
    pub ds0: Option<Tensor>,
}

impl LinearGradients {
    /// Those of plain linear attention, without an initial state.
    pub fn new(dq: Tensor, dk: Tensor, dv: Tensor) -> Self {
        Self {
            dq,
            dk,
            dv,
            dg: None,
            dbeta: None,
            dslopes: None,
            dh0: None,
            dz0: None,
            dalpha: None,
            deta: None,
            dtheta: None,
            ds0: None,
        }
    }
}

impl Call for LinearGradients {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([
            ("dq", Some(&self.dq)),
            ("dk", Some(&self.dk)),
            ("dv", Some(&self.dv)),
            ("dg", self.dg.as_ref()),
            ("dbeta", self.dbeta.as_ref()),
            ("dslopes", self.dslopes.as_ref()),
            ("dh0", self.dh0.as_ref()),
            ("dz0", self.dz0.as_ref()),
            ("dalpha", self.dalpha.as_ref()),
            ("deta", self.deta.as_ref()),
            ("dtheta", self.dtheta.as_ref()),
            ("ds0", self.ds0.as_ref()),
        ])
    }
}

impl LinearAttention {
    /// The gradients in one call, from that of the output and, where there is one, that of the last state: allocates them and submits. Of
    /// the forward pass, only its inputs are needed. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare_backward`]; [`Error::OtherDevice`].
    pub async fn backward(
        &self,
        inputs: &LinearInputs<'_>,
        dout: &Tensor,
        dht: Option<&Tensor>,
    ) -> Result<LinearGradients> {
        self.backward_with_states(inputs, dout, dht, None).await
    }

    /// The same with the gradient of a normaliser's last sum of keys.
    ///
    /// # Errors
    /// Those of [`LinearAttention::backward`].
    pub async fn backward_with_states(
        &self,
        inputs: &LinearInputs<'_>,
        dout: &Tensor,
        dht: Option<&Tensor>,
        dzt: Option<&Tensor>,
    ) -> Result<LinearGradients> {
        self.gradients((inputs, present([("dout", Some(dout)), ("dht", dht), ("dzt", dzt)]))).await
    }

    /// The same with the gradient of the last momentum, by [`crate::LinearRule::Momentum`].
    ///
    /// # Errors
    /// Those of [`LinearAttention::backward`].
    pub async fn backward_with_momentum(
        &self,
        inputs: &LinearInputs<'_>,
        dout: &Tensor,
        dht: Option<&Tensor>,
        dst: Option<&Tensor>,
    ) -> Result<LinearGradients> {
        self.gradients((inputs, present([("dout", Some(dout)), ("dht", dht), ("dst", dst)]))).await
    }

    async fn gradients(&self, call: impl Call) -> Result<LinearGradients> {
        let plan: Planner = &|caps, shapes| self.params.plan_backward(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "backward", plan, &[], &call, &[], &[]).await?;
        let [dq, dk, dv] = ["dq", "dk", "dv"].map(|name| found.take(name));
        Ok(LinearGradients {
            dg: found.take_if("dg"),
            dbeta: found.take_if("dbeta"),
            dslopes: found.take_if("dslopes"),
            dh0: found.take_if("dh0"),
            dz0: found.take_if("dz0"),
            dalpha: found.take_if("dalpha"),
            deta: found.take_if("deta"),
            dtheta: found.take_if("dtheta"),
            ds0: found.take_if("ds0"),
            ..LinearGradients::new(dq, dk, dv)
        })
    }
}
