//! From a plan to a block mask.

use super::SeerGate;
use super::plan::SeerGatePlan;
use super::shapes::{SeerGateInputs, SeerGateOutputs, SeerGateShapes};
use super::step::{ChainPrepared, prepared};
#[cfg(doc)]
use crate::Error;
use crate::softmax::attention::{self, keep, kept};
use crate::{BlockMask, Gpu, Result, Tensor};

/// What was prepared for [`SeerGate::forward`].
pub(super) type Kept = attention::Kept<SeerGateShapes, SeerGatePrepared>;

/// A gate compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct SeerGatePrepared {
    chain: ChainPrepared,
    shapes: SeerGateShapes,
    plan: SeerGatePlan,
}

/// What [`SeerGate::forward_with_scores`] returns.
#[derive(Clone, Debug)]
pub struct SeerGateOutput {
    /// The chosen blocks.
    pub mask: BlockMask,
    /// The scores before the softmax, f32 [batch, heads_q, rows, blocks of keys]; −∞ where a row does not see a block.
    pub logits: Tensor,
    /// Their softmax, likewise; 0 where a row does not see a block.
    pub scores: Tensor,
}

impl SeerGate {
    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`SeerGatePlan::new`].
    pub fn plan(&self, shapes: &SeerGateShapes) -> Result<SeerGatePlan> {
        SeerGatePlan::new(self.gpu.caps(), &self.params, shapes)
    }

    /// Compiles and allocates all that these shapes need.
    ///
    /// # Errors
    /// Those of [`SeerGatePlan::new`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &SeerGateShapes) -> Result<SeerGatePrepared> {
        let plan = self.plan(shapes)?;
        let chain = prepared(&self.gpu, &plan.chain, plan.angles).await?;
        Ok(SeerGatePrepared { chain, shapes: shapes.clone(), plan })
    }

    /// The block mask in one call: allocates it and submits. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`SeerGate::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &SeerGateInputs<'_>) -> Result<BlockMask> {
        Ok(self.submitted(inputs, false).await?.0)
    }

    /// The same with the scores.
    ///
    /// # Errors
    /// Those of [`SeerGate::forward`].
    pub async fn forward_with_scores(&self, inputs: &SeerGateInputs<'_>) -> Result<SeerGateOutput> {
        let (mask, scores) = self.submitted(inputs, true).await?;
        let [logits, scores] = scores.expect("asked for");
        Ok(SeerGateOutput { mask, logits, scores })
    }

    async fn submitted(&self, inputs: &SeerGateInputs<'_>, scores: bool) -> Result<(BlockMask, Option<[Tensor; 2]>)> {
        self.gpu.alive()?;
        inputs.check_device(&self.gpu)?;
        let shapes = SeerGateShapes::of_inputs(&self.params, inputs, scores);
        let prepared = match kept(&self.kept, &shapes) {
            Some(found) => found,
            None => keep(&self.kept, &shapes, self.prepare(&shapes).await?),
        };
        let chosen = Tensor::empty(&self.gpu, shapes.chosen.clone()).await?;
        let all = match (&shapes.logits, &shapes.scores) {
            (Some(logits), Some(scores)) => {
                Some([Tensor::empty(&self.gpu, logits.clone()).await?, Tensor::empty(&self.gpu, scores.clone()).await?])
            }
            _ => None,
        };
        let [logits, scores] = all.as_ref().map_or([None, None], |all| all.each_ref().map(Some));
        let to = SeerGateOutputs { chosen: &chosen, logits, scores };
        prepared.submit(inputs, &to).await?;
        // What was found wrong with the inputs holds for all that comes of them.
        let judged = |tensor: Tensor| inputs.tensors().values().fold(tensor, |tensor, from| tensor.under_all(from));
        let mask = BlockMask::from_bits(&self.gpu, shapes.grid(&self.params), &judged(chosen.clone()), None)?;
        Ok((mask, all.map(|all| all.map(judged))))
    }
}

impl SeerGatePrepared {
    /// What runs.
    pub fn plan(&self) -> &SeerGatePlan {
        &self.plan
    }

    /// Records the gate. The caller submits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &SeerGateInputs,
        to: &SeerGateOutputs,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("gate"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, to)
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`SeerGatePrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &SeerGateInputs,
        to: &SeerGateOutputs,
    ) -> Result<()> {
        self.shapes.check_as_prepared(inputs, Some(to))?;
        self.chain.encode(pass, &inputs.tensors().into_iter().chain(to.tensors()).collect())
    }

    async fn submit(&self, inputs: &SeerGateInputs<'_>, to: &SeerGateOutputs<'_>) -> Result<()> {
        self.shapes.check_as_prepared(inputs, Some(to))?;
        self.chain.submit(&inputs.tensors().into_iter().chain(to.tensors()).collect()).await
    }
}
