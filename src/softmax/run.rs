//! From a plan to results.

use super::additional::Additional;
use super::stage::StagePrepared;
use super::{AttentionInputs, AttentionOutputs, AttentionPlan, AttentionShapes, slots};
use crate::dispatch::Scratch;
use crate::error::require;
use crate::tensor::Verdict;
use crate::{BlockMask, BlockMaskShape, CuSeqlens, CuSeqlensShape, Error, Gpu, Result, Tensor};
use std::ops::Range;

/// Attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct AttentionPrepared {
    stage: StagePrepared,
    additional: Option<Additional>,
    shapes: AttentionShapes,
    plan: AttentionPlan,
}

impl AttentionPrepared {
    pub(super) async fn new(gpu: &Gpu, plan: AttentionPlan, shapes: &AttentionShapes) -> Result<Self> {
        let stage = StagePrepared::new(gpu, &plan.stage, &Scratch::new()).await?;
        let additional = match &plan.additional {
            Some(additional) => Additional::new(gpu, additional, shapes).await?,
            None => None,
        };
        Ok(Self { stage, additional, shapes: shapes.clone(), plan })
    }

    /// What runs and why.
    pub fn plan(&self) -> &AttentionPlan {
        &self.plan
    }

    /// Records the whole work. The caller submits; for long work see [`AttentionPrepared::encode_slice`].
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
    ) -> Result<()> {
        self.record(encoder, inputs, outputs, 0..self.plan.slices().len())
    }

    /// Records one of [`AttentionPlan::slices`], so that the caller can submit long work in parts of 50 to 100 ms.
    ///
    /// # Errors
    /// Those of [`AttentionPrepared::encode`]; [`Error::Argument`] for a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slice: usize,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
    ) -> Result<()> {
        self.record(encoder, inputs, outputs, slice..slice.saturating_add(1))
    }

    /// Records the whole work into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`AttentionPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
    ) -> Result<()> {
        self.encode_range(pass, inputs, outputs, 0..self.plan.slices().len())
    }

    /// Records each slice into an encoder of its own and submits it.
    ///
    /// # Errors
    /// Those of [`AttentionPrepared::encode`]; [`Error::DeviceLost`].
    pub async fn submit(&self, inputs: &AttentionInputs<'_>, outputs: &AttentionOutputs<'_>) -> Result<()> {
        self.submit_slices(inputs, outputs).await.map(|_| ())
    }

    /// The same, with what was found wrong in offsets on the GPU.
    pub(super) async fn submit_slices(
        &self,
        inputs: &AttentionInputs<'_>,
        outputs: &AttentionOutputs<'_>,
    ) -> Result<Option<Verdict>> {
        let gpu = self.stage.gpu();
        let mut verdict = None;
        for slice in 0..self.plan.slices().len() {
            let mut encoder = gpu.encoder();
            self.encode_slice(&mut encoder, slice, inputs, outputs)?;
            if verdict.is_none() {
                verdict = self.stage.verdict(&mut encoder, &self.shapes).await?;
            }
            gpu.submit(encoder).await?;
        }
        Ok(verdict)
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        which: Range<usize>,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None };
        self.encode_range(&mut encoder.begin_compute_pass(&descriptor), inputs, outputs, which)
    }

    /// Whether the offsets that the last recorded work found on the GPU were in order and in range, once it was submitted.
    /// (Results of [`crate::Attention::forward_with_lse`] say so when they are read.)
    ///
    /// # Errors
    /// [`Error::Argument`] that names the offset; [`Error::DeviceLost`].
    pub async fn check_offsets(&self) -> Result<()> {
        let gpu = self.stage.gpu();
        let mut encoder = gpu.encoder();
        let Some(verdict) = self.stage.verdict(&mut encoder, &self.shapes).await? else { return Ok(()) };
        gpu.submit(encoder).await?;
        verdict.ask(gpu).await
    }

    pub(super) fn encode_range(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        which: Range<usize>,
    ) -> Result<()> {
        self.check(inputs, outputs, &which)?;
        let first = self.stage.slices().len();
        let own = which.start.min(first)..which.end.min(first);
        let to = self.additional.as_ref().map_or(*outputs, |additional| additional.parts()[0]);
        let (tensors, offsets) = (tensors(inputs, &to), offsets(inputs));
        self.stage.encode(pass, &tensors, inputs.mask, &offsets, own)?;
        match &self.additional {
            Some(additional) => {
                additional.encode(pass, inputs, outputs, which.start.max(first) - first..which.end.max(first) - first)
            }
            None => Ok(()),
        }
    }

    /// Checks that the tensors are as prepared, and that the slices are there.
    pub(super) fn check(
        &self,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        which: &Range<usize>,
    ) -> Result<()> {
        self.stage.gpu().alive()?;
        self.shapes.check_as_prepared(inputs)?;
        let known = self.plan.slices().len();
        let bound = format!("within 0..{known}");
        require(which.end <= known && which.start <= which.end, "slice", format!("{which:?}"), bound)?;
        let to = self.additional.as_ref().map_or(*outputs, |additional| additional.parts()[0]);
        self.stage.check(&tensors(inputs, &to), &(0..0))?;
        self.additional.as_ref().map_or(Ok(()), |additional| additional.check(inputs, outputs))
    }
}

/// The tensors of the first attention.
fn tensors<'a>(inputs: &AttentionInputs<'a>, outputs: &AttentionOutputs<'a>) -> Vec<&'a Tensor> {
    slots(&inputs.own_part(), outputs).into_iter().flatten().collect()
}

/// Those of packed sequences on the GPU.
pub(crate) fn offsets<'a>(inputs: &'a AttentionInputs<'a>) -> Vec<&'a Tensor> {
    [&inputs.cu_seqlens_q, &inputs.cu_seqlens_k].into_iter().flatten().filter_map(CuSeqlens::tensor).collect()
}

impl AttentionShapes {
    /// Inputs that are not tensors, and whether the others are there.
    pub(crate) fn check_as_prepared(&self, inputs: &AttentionInputs) -> Result<()> {
        for (name, given, prepared) in
            [("seqlens_q", inputs.seqlens_q, &self.seqlens_q), ("seqlens_k", inputs.seqlens_k, &self.seqlens_k)]
        {
            if given != prepared.as_deref() {
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        for (name, given, prepared) in [
            ("cu_seqlens_q", inputs.cu_seqlens_q, &self.cu_seqlens_q),
            ("cu_seqlens_k", inputs.cu_seqlens_k, &self.cu_seqlens_k),
        ] {
            let given = given.as_ref().map(CuSeqlens::shape);
            // Where a tensor of offsets lies is checked with the other tensors.
            let same = match (&given, prepared) {
                (Some(CuSeqlensShape::Gpu { max_seqlen: a, .. }), Some(CuSeqlensShape::Gpu { max_seqlen: b, .. })) => {
                    a == b
                }
                (given, prepared) => given == prepared,
            };
            if !same {
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        let given = inputs.block_mask.map(BlockMask::shape);
        let same = given.as_ref().map(BlockMaskShape::sizes) == self.block_mask.as_ref().map(BlockMaskShape::sizes);
        let bound = format!("as prepared: {:?}", self.block_mask);
        require(same, "block_mask", format!("{given:?}"), bound)?;
        for (name, given, prepared) in [
            ("bias", inputs.bias, &self.bias),
            ("mask", inputs.mask, &self.mask),
            ("additional_k", inputs.additional_k, &self.additional_k),
            ("additional_v", inputs.additional_v, &self.additional_v),
        ] {
            if given.is_some() != prepared.is_some() {
                let (given, prepared) = (given.map(Tensor::layout), prepared.as_ref());
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        Ok(())
    }
}
