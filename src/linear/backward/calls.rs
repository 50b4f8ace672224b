//! From a plan of gradients to results.

use super::LinearBackwardPlan;
use crate::dispatch::{Scratch, check_device, check_tensors, leaders};
use crate::linear::gradients::{LinearBackwardShapes, LinearGradients, LinearOutputGradients, SLOTS, tensors};
use crate::linear::parts::Part;
use crate::linear::run::verdict;
use crate::linear::{LinearAttention, LinearInputs, LinearShapes};
use crate::softmax::attention::{keep, kept};
use crate::steps::StepsPrepared;
use crate::{Layout, Result, Tensor};

/// Gradients of linear attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct LinearBackwardPrepared {
    steps: StepsPrepared<Part>,
    shapes: LinearBackwardShapes,
    plan: LinearBackwardPlan,
}

impl LinearAttention {
    /// What would run for gradients of these shapes.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPlan::new`].
    pub fn plan_backward(&self, shapes: &LinearBackwardShapes) -> Result<LinearBackwardPlan> {
        LinearBackwardPlan::new(self.gpu.caps(), &self.params, shapes)
    }

    /// Compiles and allocates all that gradients of these shapes need.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPlan::new`]; [`crate::Error::Shader`], [`crate::Error::OutOfMemory`],
    /// [`crate::Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: &LinearBackwardShapes) -> Result<LinearBackwardPrepared> {
        let plan = self.plan_backward(shapes)?;
        let steps = StepsPrepared::new(&self.gpu, &plan.steps, &Scratch::default()).await?;
        Ok(LinearBackwardPrepared { steps, shapes: shapes.clone(), plan })
    }

    /// The gradients in one call: allocates them and submits. Nothing of the forward pass is needed but its inputs. What was
    /// prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare_backward`]; [`crate::Error::OtherDevice`].
    pub async fn backward(
        &self,
        inputs: &LinearInputs<'_>,
        from: &LinearOutputGradients<'_>,
    ) -> Result<LinearGradients> {
        let gradients = [("dout", from.dout)].into_iter().chain(from.dht.map(|dht| ("dht", dht)));
        let given = inputs.given().into_iter().chain(gradients);
        given.clone().try_for_each(|(name, tensor)| check_device(name, tensor, &self.gpu))?;
        let forward = LinearShapes::of_inputs(inputs, false);
        let (dout, dht) = (from.dout.layout().clone(), from.dht.map(|dht| dht.layout().clone()));
        let shapes = LinearBackwardShapes::new(&self.params, forward, dout, dht);
        self.plan_backward(&shapes)?;
        let new = async |layout: &Layout| Tensor::empty(&self.gpu, layout.clone()).await;
        let some = async |layout: &Option<Layout>| Tensor::empty_if(&self.gpu, layout.as_ref()).await;
        let to = LinearGradients {
            dq: new(&shapes.dq).await?,
            dk: new(&shapes.dk).await?,
            dv: new(&shapes.dv).await?,
            dg: some(&shapes.dg).await?,
            dslopes: some(&shapes.dslopes).await?,
            dh0: some(&shapes.dh0).await?,
        };
        let shapes = LinearBackwardShapes::of(inputs, from, &to);
        let prepared = match kept(&self.kept_backward, &shapes) {
            Some(found) => found,
            None => keep(&self.kept_backward, &shapes, self.prepare_backward(&shapes).await?),
        };
        let mut all = tensors(inputs, from, &to);
        let problem = Tensor::empty_if(&self.gpu, prepared.plan.steps.layout(Part::Problem)).await?;
        all.extend(problem.as_ref().map(|problem| (Part::Problem, problem)));
        prepared.steps.submit(&all).await?;
        let verdict = problem.map(|problem| verdict(&problem, inputs.cu_seqlens.is_some()));
        // What was found wrong with what came in holds for all that comes of it.
        let judged = |tensor: Tensor| {
            let tensor = verdict.clone().into_iter().fold(tensor, Tensor::under);
            given.clone().fold(tensor, |tensor, (_, from)| tensor.under_all(from))
        };
        let LinearGradients { dq, dk, dv, dg, dslopes, dh0 } = to;
        let [dg, dslopes, dh0] = [dg, dslopes, dh0].map(|tensor| tensor.map(&judged));
        Ok(LinearGradients { dq: judged(dq), dk: judged(dk), dv: judged(dv), dg, dslopes, dh0 })
    }
}

impl LinearBackwardPrepared {
    /// What runs.
    pub fn plan(&self) -> &LinearBackwardPlan {
        &self.plan
    }

    /// Records the work. The caller submits.
    ///
    /// # Errors
    /// [`crate::Error::Argument`], [`crate::Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded
    /// then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &LinearInputs,
        from: &LinearOutputGradients,
        to: &LinearGradients,
    ) -> Result<()> {
        let label = Some("gradients of linear attention");
        let descriptor = wgpu::ComputePassDescriptor { label, timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, from, to)
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &LinearInputs,
        from: &LinearOutputGradients,
        to: &LinearGradients,
    ) -> Result<()> {
        let given = LinearBackwardShapes::of(inputs, from, to);
        self.shapes.forward.check_as_prepared(&given.forward)?;
        let tensors = tensors(inputs, from, to);
        self.shapes.check_as_prepared(&given)?;
        let named: Vec<&Tensor> = SLOTS.iter().filter_map(|(part, _)| tensors.get(part).copied()).collect();
        let leaders = leaders(self.steps.gpu().caps(), &self.plan.arguments);
        check_tensors(self.steps.gpu(), &self.plan.arguments, &leaders, &named)?;
        self.steps.encode(pass, &tensors)
    }
}
