//! From a plan to gradients, in the caller's encoders.

use super::plan::{Names, OF_DELTA, Over};
use super::{AttentionGradients, BLOCKS_BY_KEYS, BackwardPlan, BackwardShapes, NAMES, OutputGradients, slots};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::{Launch, Scratch, scratch};
use crate::error::require_set;
use crate::packed::Side;
use crate::softmax::run::offsets;
use crate::softmax::stage::StagePrepared;
use crate::softmax::{Attention, AttentionInputs, AttentionOutputs, AttentionParams};
use crate::tensor::Verdict;
use crate::{BlockMask, Result, Tensor};

/// Gradients compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct BackwardPrepared {
    delta: Launch,
    stages: Vec<StagePrepared>,
    share_of_dq: Option<Tensor>,
    transpositions: Vec<Launch>,
    /// The chosen and the full blocks seen from the keys.
    by_keys: [Option<Tensor>; 2],
    shapes: BackwardShapes,
    plan: BackwardPlan,
}

impl BackwardPrepared {
    /// What runs.
    pub fn plan(&self) -> &BackwardPlan {
        &self.plan
    }

    /// Records the whole work. The caller submits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        from: &OutputGradients,
        to: &AttentionGradients,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("attention backward"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, outputs, from, to)
    }

    /// Records the whole work into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`BackwardPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        from: &OutputGradients,
        to: &AttentionGradients,
    ) -> Result<()> {
        let work = Work::new(self, inputs, outputs, from, to)?;
        self.encode_first(pass, &work)?;
        for (stage, tensors) in self.stages.iter().zip(&work.stages) {
            stage.encode(pass, tensors, inputs.mask, &work.offsets, 0..stage.slices().len())?;
        }
        Ok(())
    }

    /// What the stages need.
    fn encode_first(&self, pass: &mut wgpu::ComputePass<'_>, work: &Work) -> Result<()> {
        for (launch, tensors) in self.transpositions.iter().zip(&work.transpositions) {
            launch.encode(pass, tensors, 0..launch.slices().len())?;
        }
        self.delta.encode(pass, &work.delta, 0..self.delta.slices().len())
    }

    /// Records each slice into an encoder of its own and submits it.
    ///
    /// # Errors
    /// Those of [`BackwardPrepared::encode`]; [`Error::DeviceLost`].
    pub async fn submit(
        &self,
        inputs: &AttentionInputs<'_>,
        outputs: &AttentionOutputs<'_>,
        from: &OutputGradients<'_>,
        to: &AttentionGradients,
    ) -> Result<()> {
        self.submit_slices(inputs, outputs, from, to).await.map(|_| ())
    }

    /// The same, with what was found wrong in offsets on the GPU.
    pub(super) async fn submit_slices(
        &self,
        inputs: &AttentionInputs<'_>,
        outputs: &AttentionOutputs<'_>,
        from: &OutputGradients<'_>,
        to: &AttentionGradients,
    ) -> Result<Option<Verdict>> {
        let work = Work::new(self, inputs, outputs, from, to)?;
        let gpu = self.delta.gpu();
        let mut verdict = None;
        for (stage, tensors) in self.stages.iter().zip(&work.stages) {
            for slice in 0..stage.slices().len() {
                let mut encoder = gpu.encoder();
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                // Little work, and made anew in every command buffer, because others may use its tables in between.
                self.encode_first(&mut pass, &work)?;
                stage.encode(&mut pass, tensors, inputs.mask, &work.offsets, slice..slice + 1)?;
                drop(pass);
                if verdict.is_none() {
                    verdict = stage.verdict(&mut encoder, &self.shapes.forward).await?;
                }
                gpu.submit(encoder).await?;
            }
        }
        Ok(verdict)
    }
}

/// The tensors of each kernel, checked.
struct Work<'a> {
    transpositions: Vec<[&'a Tensor; 2]>,
    delta: Vec<&'a Tensor>,
    stages: Vec<Vec<&'a Tensor>>,
    offsets: Vec<&'a Tensor>,
}

impl<'a> Work<'a> {
    fn new(
        prepared: &'a BackwardPrepared,
        inputs: &'a AttentionInputs<'a>,
        outputs: &AttentionOutputs<'a>,
        from: &OutputGradients<'a>,
        to: &'a AttentionGradients,
    ) -> Result<Self> {
        prepared.delta.gpu().alive()?;
        prepared.shapes.forward.check_as_prepared(inputs)?;
        let BackwardShapes { dlse, dq_so_far, dbias, d_additional_k, d_additional_v, .. } = &prepared.shapes;
        for (name, given, wanted) in [
            ("dlse", from.dlse.is_some(), dlse.is_some()),
            ("dq_so_far", from.dq_so_far.is_some(), dq_so_far.is_some()),
            ("dbias", to.dbias.is_some(), dbias.is_some()),
            ("d_additional_k", to.d_additional_k.is_some(), d_additional_k.is_some()),
            ("d_additional_v", to.d_additional_v.is_some(), d_additional_v.is_some()),
        ] {
            require_set(name, given, wanted, "as prepared")?;
        }
        let all = slots(inputs, outputs, from, to);
        let tensor = |name: &'static str, side: Side, over: Over| {
            let name = prepared.shapes.tensor_of(name, side, over)?;
            let own = BLOCKS_BY_KEYS.iter().position(|other| *other == name);
            let own = own.map_or(&prepared.share_of_dq, |i| &prepared.by_keys[i]);
            NAMES.iter().position(|other| *other == name).map_or(own.as_ref(), |i| all[i])
        };
        let of = |names: Names, side, over| -> Vec<&'a Tensor> {
            names.iter().filter_map(|name| tensor(name, side, over)).collect()
        };
        let stages = &prepared.plan.stages;
        let stages = stages.iter().map(|(stage, names, over)| of(names, stage.pass.side(), *over)).collect();
        let from = inputs.block_mask.map_or([None, None], BlockMask::tensors);
        let pairs = from.into_iter().zip(&prepared.by_keys).filter_map(|(from, to)| Some([from?, to.as_ref()?]));
        let delta = of(OF_DELTA, Side::Queries, Over::Own);
        let work = Self { transpositions: pairs.collect(), delta, stages, offsets: offsets(inputs) };
        for (launch, tensors) in prepared.transpositions.iter().zip(&work.transpositions) {
            launch.check(tensors, &(0..launch.slices().len()))?;
        }
        prepared.delta.check(&work.delta, &(0..prepared.delta.slices().len()))?;
        for (stage, tensors) in prepared.stages.iter().zip(&work.stages) {
            stage.check(tensors, &(0..stage.slices().len()))?;
        }
        Ok(work)
    }
}

impl<P: AttentionParams> Attention<P> {
    /// Compiles and allocates all that the gradients of these shapes need.
    ///
    /// # Errors
    /// Those of [`BackwardPlan::new`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: &BackwardShapes) -> Result<BackwardPrepared> {
        let gpu = self.gpu();
        let plan = BackwardPlan::of(gpu.caps(), self.tiles(), &self.params().scores(), shapes)?;
        let tables = scratch(gpu, &[("stats", plan.stats_bytes)]).await?;
        let delta = Launch::prepare(gpu, &plan.delta, &plan.delta_slices, &tables).await?;
        let mut stages = Vec::new();
        for (stage, ..) in &plan.stages {
            stages.push(StagePrepared::new(gpu, stage, &tables).await?);
        }
        let share_of_dq = match shapes.share_of_dq() {
            Some(layout) => Some(Tensor::empty(gpu, layout).await?),
            None => None,
        };
        let mut transpositions = Vec::new();
        for (kernel, slices) in &plan.transpositions {
            transpositions.push(Launch::prepare(gpu, kernel, slices, &Scratch::default()).await?);
        }
        let mut by_keys = [None, None];
        for (name, tensor) in BLOCKS_BY_KEYS.into_iter().zip(&mut by_keys) {
            if let Some(layout) = shapes.layout(name) {
                *tensor = Some(Tensor::empty(gpu, layout).await?);
            }
        }
        let shapes = shapes.clone();
        Ok(BackwardPrepared { delta, stages, share_of_dq, transpositions, by_keys, shapes, plan })
    }
}
