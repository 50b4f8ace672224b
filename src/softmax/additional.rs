//! Keys and values that every query sees besides its own: a second attention, dense, merged by log-sum-exp.

use super::{AttentionInputs, AttentionOutputs, AttentionPlan, AttentionPrepared, AttentionShapes, ScoreParams};
use crate::error::require;
use crate::flash::Dense;
use crate::{Caps, DType, Gpu, Layout, Merge, MergePrepared, MergeShapes, Result, Slice, Tensor};

/// Numbers of buffers that no tensor of the caller's has.
const OWN: usize = usize::MAX / 2;

/// The second attention and the merge, as planned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AdditionalPlan {
    pub plan: Box<AttentionPlan>,
    merge: MergeShapes,
}

impl AttentionShapes {
    fn partial(&self) -> [Layout; 2] {
        [&self.out, &self.lse].map(|layout| Layout::heads_first(DType::F32, layout.shape))
    }

    pub(super) fn check_additional(&self) -> Result<()> {
        let (k, v) = (self.additional_k.as_ref(), self.additional_v.as_ref());
        for (name, given, other) in [("additional_k", k, "additional_v"), ("additional_v", v, "additional_k")] {
            require(given.is_some() || (k.is_none() && v.is_none()), name, "unset", format!("set, as {other} is"))?;
        }
        let (Some(k), Some(v)) = (k, v) else { return Ok(()) };
        let bound = "unset with packed sequences";
        require(self.packed().is_none(), "additional_k", "set", bound)?;
        for (name, layout, like) in [("additional_k", k, &self.k), ("additional_v", v, &self.v)] {
            let [batch, heads, _, width] = like.shape;
            let shape = [batch, heads, k.shape[2], width];
            let bound = format!("[{batch}, {heads}, {}, {width}], by k and v", k.shape[2]);
            require(layout.shape == shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
        }
        Ok(())
    }

    /// The same without additional keys; with them, a partial result.
    pub(super) fn own_part(&self) -> Self {
        if self.additional_k.is_none() {
            return self.clone();
        }
        let [out, lse] = self.partial();
        let mut part = Self { out, lse, additional_k: None, additional_v: None, ..self.clone() };
        part.buffers[3..5].copy_from_slice(&[OWN, OWN + 1]);
        part
    }

    /// The additional keys, seen by every query: another partial result.
    pub(super) fn additional_part(&self) -> Option<Self> {
        let (k, v) = (self.additional_k.clone()?, self.additional_v.clone()?);
        let [out, lse] = self.partial();
        let seqlens_q = self.seqlens_q.clone();
        let mut part = Self { out, lse, seqlens_q, ..Self::new(self.q.clone(), k, v) };
        part.buffers[..5].copy_from_slice(&[self.buffers[0], self.buffers[7], self.buffers[8], OWN + 2, OWN + 3]);
        Some(part)
    }
}

impl ScoreParams {
    /// What holds for keys that have no place.
    pub(super) fn without_places(&self) -> Self {
        Self { scale: self.scale, softcap: self.softcap, ..Self::default() }
    }
}

impl AdditionalPlan {
    pub fn new(caps: &Caps, scores: &ScoreParams, shapes: &AttentionShapes) -> Result<Option<Self>> {
        let Some(part) = shapes.additional_part() else { return Ok(None) };
        let plan = AttentionPlan::of(caps, &Dense::default(), &scores.without_places(), &part)?;
        let [out, lse] = shapes.partial();
        let merge = MergeShapes {
            parts: vec![(out, lse); 2],
            out: shapes.out.clone(),
            lse: shapes.lse.clone(),
            buffers: vec![OWN, OWN + 1, OWN + 2, OWN + 3, shapes.buffers[3], shapes.buffers[4]],
        };
        Ok(Some(Self { plan: Box::new(plan), merge }))
    }

    /// The slices after those of the first attention: those of the second, and the merge.
    pub fn slices(&self) -> Vec<Slice> {
        let [batches, heads, ..] = self.merge.out.shape;
        let merge = (batches * heads > 0).then_some(Slice { batches: 0..batches, heads: 0..heads, tiles: 0..1 });
        self.plan.slices().iter().cloned().chain(merge).collect()
    }
}

/// The second attention and the merge, compiled.
#[derive(Debug)]
pub(super) struct Additional {
    prepared: Box<AttentionPrepared>,
    merge: MergePrepared,
    /// Out and LSE of the first attention, and of the second.
    parts: [Tensor; 4],
}

impl Additional {
    pub async fn new(gpu: &Gpu, plan: &AdditionalPlan, shapes: &AttentionShapes) -> Result<Option<Self>> {
        let Some(part) = shapes.additional_part() else { return Ok(None) };
        let prepared = Box::pin(AttentionPrepared::new(gpu, (*plan.plan).clone(), &part)).await?;
        let merge = Merge::new(gpu).prepare(&plan.merge).await?;
        let [out, lse] = shapes.partial();
        let empty = async |layout: &Layout| Tensor::empty(gpu, layout.clone()).await;
        let parts = [empty(&out).await?, empty(&lse).await?, empty(&out).await?, empty(&lse).await?];
        Ok(Some(Self { prepared: Box::new(prepared), merge, parts }))
    }

    /// Where the first attention's result goes, and the second's.
    pub fn parts(&self) -> [AttentionOutputs<'_>; 2] {
        let [a, b, c, d] = &self.parts;
        [AttentionOutputs { out: a, lse: b }, AttentionOutputs { out: c, lse: d }]
    }

    /// Records what `which` names of its slices.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        which: std::ops::Range<usize>,
    ) -> Result<()> {
        let (Some(inputs), second) = (inputs.additional_part(), self.prepared.plan().slices().len()) else {
            return Ok(());
        };
        let own = which.start.min(second)..which.end.min(second);
        self.prepared.encode_range(pass, &inputs, &self.parts()[1], own)?;
        if which.contains(&second) {
            self.merge.encode_in(pass, &self.parts(), outputs)?;
        }
        Ok(())
    }

    /// Whether the tensors are as prepared.
    pub fn check(&self, inputs: &AttentionInputs, outputs: &AttentionOutputs) -> Result<()> {
        let Some(inputs) = inputs.additional_part() else { return Ok(()) };
        self.prepared.check(&inputs, &self.parts()[1], &(0..0))?;
        self.merge.check(&self.parts(), outputs)
    }
}

impl<'a> AttentionInputs<'a> {
    pub(super) fn own_part(&self) -> Self {
        Self { additional_k: None, additional_v: None, ..*self }
    }

    pub(super) fn additional_part(&self) -> Option<Self> {
        let inputs = Self::new(self.q, self.additional_k?, self.additional_v?);
        Some(Self { seqlens_q: self.seqlens_q, ..inputs })
    }
}
