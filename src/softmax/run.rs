//! From a plan to results.

use super::additional::Additional;
use super::decode::{Split, group_layout};
use super::stage::StagePrepared;
use super::{AttentionInputs, AttentionOutputs, AttentionPlan, AttentionShapes, slots};
use crate::dispatch::Scratch;
use crate::error::require;
use crate::tensor::Verdict;
use crate::{BlockMask, BlockMaskShape, CuSeqlens, CuSeqlensShape, Error, Gpu, Result, Tensor};
use std::borrow::Cow;
use std::ops::Range;

/// Attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct AttentionPrepared {
    stage: StagePrepared,
    split: Option<Split>,
    additional: Option<Additional>,
    shapes: AttentionShapes,
    plan: AttentionPlan,
}

impl AttentionPrepared {
    pub(super) async fn new(gpu: &Gpu, plan: AttentionPlan, shapes: &AttentionShapes) -> Result<Self> {
        let stage = StagePrepared::new(gpu, &plan.stage, &Scratch::default()).await?;
        let split = match &plan.split {
            Some(split) => Some(Split::new(gpu, split).await?),
            None => None,
        };
        let additional = match &plan.additional {
            Some(additional) => Additional::new(gpu, additional, shapes).await?,
            None => None,
        };
        Ok(Self { stage, split, additional, shapes: shapes.clone(), plan })
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

    /// Output and log-sum-exp in buffers of their own.
    pub(super) async fn forward(&self, inputs: &AttentionInputs<'_>) -> Result<(Tensor, Tensor)> {
        let out = Tensor::empty(self.stage.gpu(), self.shapes.out.clone()).await?;
        let lse = Tensor::empty(self.stage.gpu(), self.shapes.lse.clone()).await?;
        let verdict = self.submit_slices(inputs, &AttentionOutputs { out: &out, lse: &lse }).await?;
        let blocks = inputs.block_mask.map_or([None, None], BlockMask::tensors);
        let judged = |tensor: Tensor| {
            let tensor = verdict.iter().cloned().fold(tensor, Tensor::under);
            blocks.into_iter().flatten().fold(tensor, Tensor::under_all)
        };
        Ok((judged(out), judged(lse)))
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
        let merges = self.plan.split.as_ref().map_or(0, |split| split.slices.len());
        let own = self.stage.slices().len();
        let first = own + merges;
        let clamped = |range: Range<usize>| {
            which.start.clamp(range.start, range.end) - range.start
                ..which.end.clamp(range.start, range.end) - range.start
        };
        let to = self.additional.as_ref().map_or(*outputs, |additional| additional.parts()[0]);
        let (tensors, offsets) = (self.tensors(inputs, &to)?, offsets(inputs));
        self.stage.encode(pass, &tensors.of_stage(self.split.as_ref()), tensors.mask(), &offsets, clamped(0..own))?;
        if let Some(split) = &self.split {
            split.encode(pass, tensors.outputs(), clamped(own..first))?;
        }
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
        let tensors = self.tensors(inputs, &to)?;
        self.stage.check(&tensors.of_stage(self.split.as_ref()), &(0..0))?;
        self.split.as_ref().map_or(Ok(()), |split| split.check(tensors.outputs()))?;
        self.additional.as_ref().map_or(Ok(()), |additional| additional.check(inputs, outputs))
    }
}

/// The tensors of the first attention, in the order of [`AttentionShapes::buffers`].
struct Tensors<'a>([Option<Cow<'a, Tensor>>; 11]);

/// Their places that are needed by name, and which have a row for each query.
const OUT: usize = 3;
const LSE: usize = 4;
const MASK: usize = 6;
const BY_QUERY: [usize; 5] = [0, OUT, LSE, 5, MASK];

impl Tensors<'_> {
    fn mask(&self) -> Option<&Tensor> {
        self.0[MASK].as_deref()
    }

    fn outputs(&self) -> [&Tensor; 2] {
        [OUT, LSE].map(|i| self.0[i].as_deref().expect("attention has outputs"))
    }

    /// Those that are there, with the parts of the outputs where there are parts.
    fn of_stage<'b>(&'b self, split: Option<&'b Split>) -> Vec<&'b Tensor> {
        let all = self.0.iter().enumerate().filter_map(|(i, tensor)| {
            let part = |split: &'b Split| i.checked_sub(OUT).and_then(|i| split.partial().get(i));
            split.and_then(part).or(tensor.as_deref())
        });
        all.collect()
    }
}

impl AttentionPrepared {
    fn tensors<'a>(&self, inputs: &AttentionInputs<'a>, to: &AttentionOutputs<'a>) -> Result<Tensors<'a>> {
        let grouped = self.plan.few.is_some_and(|few| few.grouped);
        let mut all = slots(&inputs.own_part(), to).map(|tensor| tensor.map(Cow::Borrowed));
        for i in BY_QUERY.into_iter().filter(|_| grouped) {
            if let Some(tensor) = &all[i] {
                all[i] = Some(Cow::Owned(tensor.view(group_layout(tensor.layout(), inputs.k.shape()[1]))?));
            }
        }
        Ok(Tensors(all))
    }
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
