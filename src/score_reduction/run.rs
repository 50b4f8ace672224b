//! From a plan to results.

use super::plan::slots;
use super::steps::Source;
use super::{ReducedScores, ScoreReduction, ScoreReductionInputs, ScoreReductionPlan, ScoreReductionShapes};
use crate::dispatch::{Launch, Scratch, check_device, scratch};
use crate::error::require_set;
use crate::softmax::stage::StagePrepared;
use crate::tensor::Verdict;
use crate::{AttentionInputs, CuSeqlens, Error, Result, Tensor};
use std::sync::Arc;

/// A score reduction compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct ScoreReductionPrepared {
    stage: StagePrepared,
    steps: Vec<Launch>,
    scratch: [Option<Tensor>; 3],
    problem: wgpu::Buffer,
    shapes: ScoreReductionShapes,
    plan: ScoreReductionPlan,
}

impl ScoreReduction {
    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`ScoreReductionPlan::new`].
    pub fn plan(&self, shapes: &ScoreReductionShapes) -> Result<ScoreReductionPlan> {
        ScoreReductionPlan::new(self.caps(), &self.params, shapes)
    }

    /// Compiles and allocates all that these shapes need.
    ///
    /// # Errors
    /// Those of [`ScoreReductionPlan::new`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &ScoreReductionShapes) -> Result<ScoreReductionPrepared> {
        let (gpu, plan) = (&self.gpu, self.plan(shapes)?);
        let stage = StagePrepared::new(gpu, &plan.stage, &Scratch::default()).await?;
        let tables = scratch(gpu, &[("problem", 8 * shapes.values.shape[0] as u64)]).await?;
        let mut steps = vec![];
        for step in &plan.steps {
            steps.push(Launch::prepare(gpu, &step.kernel, &step.slices, &tables).await?);
        }
        let mut scratch = [None, None, None];
        for (tensor, layout) in scratch.iter_mut().zip(&plan.scratch) {
            if let Some(layout) = layout {
                *tensor = Some(Tensor::empty(gpu, layout.clone()).await?);
            }
        }
        let problem = tables[&"problem"].clone();
        Ok(ScoreReductionPrepared { stage, steps, scratch, problem, shapes: shapes.clone(), plan })
    }

    /// The reduction in one call: allocates its results and submits.
    ///
    /// # Errors
    /// Those of [`ScoreReduction::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &ScoreReductionInputs<'_>) -> Result<ReducedScores> {
        let AttentionInputs { q, k, bias, mask, cu_seqlens_q, cu_seqlens_k, .. } = &inputs.attention;
        for (name, tensor) in [
            ("q", Some(*q)),
            ("k", Some(*k)),
            ("lse", Some(inputs.lse)),
            ("bias", *bias),
            ("mask", *mask),
            ("segments", inputs.segments),
            ("cu_seqlens_q", cu_seqlens_q.as_ref().and_then(CuSeqlens::tensor)),
            ("cu_seqlens_k", cu_seqlens_k.as_ref().and_then(CuSeqlens::tensor)),
        ] {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, &self.gpu))?;
        }
        let shapes = ScoreReductionShapes::of_inputs(&self.params, inputs);
        self.plan(&shapes)?;
        let values = Tensor::empty(&self.gpu, shapes.values.clone()).await?;
        let indices = match &shapes.indices {
            Some(layout) => Some(Tensor::empty(&self.gpu, layout.clone()).await?),
            None => None,
        };
        let to = ReducedScores { values, indices };
        let prepared = self.prepare(&ScoreReductionShapes::of(&self.params, inputs, &to)).await?;
        let verdicts = prepared.submit(inputs, &to).await?;
        let judged = |tensor: Tensor| {
            let tensor = verdicts.iter().cloned().fold(tensor, Tensor::under);
            tensor.under_all(inputs.lse)
        };
        Ok(ReducedScores { values: judged(to.values), indices: to.indices.map(judged) })
    }
}

impl ScoreReductionPrepared {
    /// What runs.
    pub fn plan(&self) -> &ScoreReductionPlan {
        &self.plan
    }

    /// Records the whole work. The caller submits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &ScoreReductionInputs,
        to: &ReducedScores,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("score reduction"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, to)
    }

    /// Records the whole work into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`ScoreReductionPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &ScoreReductionInputs,
        to: &ReducedScores,
    ) -> Result<()> {
        self.check(inputs, to)?;
        for part in 0..self.parts() {
            self.encode_part(pass, part, inputs, to)?;
        }
        Ok(())
    }

    /// Records each part into an encoder of its own and submits it, with what was found wrong in numbers on the GPU.
    async fn submit(&self, inputs: &ScoreReductionInputs<'_>, to: &ReducedScores) -> Result<Vec<Verdict>> {
        self.check(inputs, to)?;
        let gpu = self.stage.gpu();
        let mut verdicts = vec![];
        for part in 0..self.parts() {
            let mut encoder = gpu.encoder();
            self.encode_part(&mut encoder.begin_compute_pass(&Default::default()), part, inputs, to)?;
            if verdicts.is_empty() {
                verdicts.extend(self.stage.verdict(&mut encoder, &self.shapes.attention).await?);
            }
            gpu.submit(encoder).await?;
        }
        verdicts.extend(self.segment_verdict());
        Ok(verdicts)
    }

    /// What was wrong with the numbers of segments.
    fn segment_verdict(&self) -> Option<Verdict> {
        let [batch, ..] = self.shapes.values.shape;
        let count = self.plan.segments;
        self.plan.steps.iter().any(|step| step.has_problem).then(|| {
            let judge = move |words: &[u32]| {
                let batches = words.chunks_exact(2).enumerate().take(batch);
                let found = batches.into_iter().find(|(_, words)| words[0] != 0);
                found.map_or(Ok(()), |(b, words)| {
                    let what = format!("segments[{b}][{}]", u32::MAX - words[0]);
                    Err(Error::argument(what, words[1], format!("below {count}, the number of segments")))
                })
            };
            Verdict { words: self.problem.clone(), judge: Arc::new(judge) }
        })
    }

    /// Whether the numbers of segments that the last recorded work found were in range, once it was submitted. (Results of
    /// [`ScoreReduction::forward`] say so when they are read.)
    ///
    /// # Errors
    /// [`Error::Argument`] that names the key; [`Error::DeviceLost`].
    pub async fn check_segments(&self) -> Result<()> {
        match self.segment_verdict() {
            Some(verdict) => verdict.ask(self.stage.gpu()).await,
            None => Ok(()),
        }
    }

    /// Slices of the first kernel, or of batch entries and heads where others follow.
    fn parts(&self) -> usize {
        if self.steps.is_empty() { self.stage.slices().len() } else { self.plan.parts.len() }
    }

    fn encode_part(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        part: usize,
        inputs: &ScoreReductionInputs,
        to: &ReducedScores,
    ) -> Result<()> {
        let slices = self.plan.parts.get(part).cloned().unwrap_or(part..part + 1);
        let offsets = crate::softmax::offsets(&inputs.attention);
        self.stage.encode(pass, &self.tensors(inputs, to), inputs.attention.mask, &offsets, slices)?;
        for (step, launch) in self.plan.steps.iter().zip(&self.steps) {
            launch.encode(pass, &self.step_tensors(&step.sources, inputs, to), step.parts[part].clone())?;
        }
        Ok(())
    }

    /// The tensors of the first kernel.
    fn tensors<'a>(&'a self, inputs: &ScoreReductionInputs<'a>, to: &'a ReducedScores) -> Vec<&'a Tensor> {
        let [q, k, lse, bias, mask, _, values, indices] = slots(inputs, to);
        let [own_values, own_indices, _] = self.scratch.each_ref().map(Option::as_ref);
        let (values, indices) = if own_values.is_some() { (own_values, own_indices) } else { (values, indices) };
        [q, k, lse, bias, mask, values, indices].into_iter().flatten().collect()
    }

    fn step_tensors<'a>(
        &'a self,
        sources: &[Source],
        inputs: &ScoreReductionInputs<'a>,
        to: &'a ReducedScores,
    ) -> Vec<&'a Tensor> {
        let tensor = |source: &Source| match *source {
            Source::Scratch(i) => self.scratch[i].as_ref(),
            Source::Segments => inputs.segments,
            Source::Values => Some(&to.values),
            Source::Indices => to.indices.as_ref(),
        };
        sources.iter().filter_map(tensor).collect()
    }

    /// Checks that the tensors are as prepared.
    fn check(&self, inputs: &ScoreReductionInputs, to: &ReducedScores) -> Result<()> {
        self.stage.gpu().alive()?;
        let attention = AttentionInputs { additional_k: None, additional_v: None, ..inputs.attention };
        self.shapes.attention.check_as_prepared(&attention)?;
        for (name, given, wanted) in [
            ("segments", inputs.segments.is_some(), self.shapes.segments.is_some()),
            ("indices", to.indices.is_some(), self.shapes.indices.is_some()),
        ] {
            require_set(name, given, wanted, "as prepared")?;
        }
        self.stage.check(&self.tensors(inputs, to), &(0..0))?;
        for (step, launch) in self.plan.steps.iter().zip(&self.steps) {
            launch.check(&self.step_tensors(&step.sources, inputs, to), &(0..0))?;
        }
        Ok(())
    }
}
