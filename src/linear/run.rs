//! From a plan to results.

use super::shapes::slots;
use super::{LinearAttention, LinearInputs, LinearOutputs, LinearPlan, LinearShapes, LinearState};
use crate::dispatch::{Launch, check_device, scratch};
use crate::error::require;
use crate::tensor::Verdict;
use crate::{Error, Result, Tensor};
use std::sync::Arc;

/// Linear attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct LinearPrepared {
    launch: Launch,
    problem: wgpu::Buffer,
    shapes: LinearShapes,
    plan: LinearPlan,
}

impl LinearAttention {
    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`LinearPlan::new`].
    pub fn plan(&self, shapes: &LinearShapes) -> Result<LinearPlan> {
        LinearPlan::new(self.gpu.caps(), &self.params, shapes)
    }

    /// Compiles and uploads all that these shapes need.
    ///
    /// # Errors
    /// Those of [`LinearPlan::new`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &LinearShapes) -> Result<LinearPrepared> {
        let plan = self.plan(shapes)?;
        let [entries, heads, ..] = shapes.state_shape();
        let tables = scratch(&self.gpu, &[("problem", 4 * (entries * heads) as u64)]).await?;
        let launch = Launch::prepare(&self.gpu, &plan.kernel, &plan.slices, &tables).await?;
        Ok(LinearPrepared { launch, problem: tables["problem"].clone(), shapes: shapes.clone(), plan })
    }

    /// Attention in one call: allocates the output ([batch, heads, tokens, value_dim], of v's type) and submits.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &LinearInputs<'_>) -> Result<Tensor> {
        Ok(self.submitted(inputs, None, false).await?.0)
    }

    /// The same with the last state, f32 [batch or sequences, heads, head_dim, value_dim].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_state(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor)> {
        let (o, state) = self.submitted(inputs, None, true).await?;
        Ok((o, state.expect("asked for")))
    }

    /// The same with a state that goes on in place, as decoding does: f32 [batch or sequences, heads, head_dim, value_dim].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_in_place(&self, inputs: &LinearInputs<'_>, state: &Tensor) -> Result<Tensor> {
        Ok(self.submitted(inputs, Some(state), false).await?.0)
    }

    async fn submitted(
        &self,
        inputs: &LinearInputs<'_>,
        in_place: Option<&Tensor>,
        wanted: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let LinearInputs { q, k, v, g, h0, .. } = *inputs;
        let given = [("q", Some(q)), ("k", Some(k)), ("v", Some(v)), ("g", g), ("h0", h0), ("state", in_place)];
        for (name, tensor) in given {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, &self.gpu))?;
        }
        let shapes = LinearShapes::of_inputs(inputs, wanted);
        self.plan(&shapes)?;
        let o = Tensor::empty(&self.gpu, shapes.o.clone()).await?;
        let ht = match &shapes.ht {
            Some(layout) => Some(Tensor::empty(&self.gpu, layout.clone()).await?),
            None => None,
        };
        let state = match (in_place, &ht) {
            (Some(state), _) => LinearState::InPlace(state),
            (None, Some(ht)) => LinearState::Written(ht),
            (None, None) => LinearState::Unwanted,
        };
        let to = LinearOutputs { o: &o, state };
        let prepared = self.prepare(&LinearShapes::of(inputs, &to)).await?;
        for slice in 0..prepared.plan.slices().len() {
            let mut encoder = self.gpu.encoder();
            let tensors = prepared.tensors(inputs, &to);
            prepared.launch.encode(&mut encoder.begin_compute_pass(&Default::default()), &tensors, slice..slice + 1)?;
            self.gpu.submit(encoder).await?;
        }
        let judged = |tensor: Tensor| {
            let tensor = prepared.verdict().into_iter().fold(tensor, Tensor::under);
            given.iter().filter_map(|(_, tensor)| *tensor).fold(tensor, Tensor::under_all)
        };
        Ok((judged(o.clone()), ht.clone().map(judged)))
    }
}

impl LinearPrepared {
    /// What runs.
    pub fn plan(&self) -> &LinearPlan {
        &self.plan
    }

    /// Records the work. The caller submits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, inputs: &LinearInputs, to: &LinearOutputs) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("linear attention"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, to)
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LinearPrepared::encode`].
    pub fn encode_in(&self, pass: &mut wgpu::ComputePass<'_>, inputs: &LinearInputs, to: &LinearOutputs) -> Result<()> {
        self.launch.gpu().alive()?;
        let given = LinearShapes::of(inputs, to);
        let has = |set: bool| if set { "set" } else { "unset" };
        for (name, given, prepared) in [
            ("g", given.g.is_some(), self.shapes.g.is_some()),
            ("h0", given.h0.is_some(), self.shapes.h0.is_some()),
            ("state", given.ht.is_some(), self.shapes.ht.is_some()),
        ] {
            require(given == prepared, name, has(given), format!("{}, as prepared", has(prepared)))?;
        }
        let bound = format!("in place: {}, as prepared", self.shapes.in_place);
        require(given.in_place == self.shapes.in_place, "state", format!("in place: {}", given.in_place), bound)?;
        for (name, same, value) in [
            ("seqlens", given.seqlens == self.shapes.seqlens, format!("{:?}", given.seqlens)),
            ("cu_seqlens", given.cu_seqlens == self.shapes.cu_seqlens, format!("{:?}", given.cu_seqlens)),
        ] {
            require(same, name, value, "as prepared")?;
        }
        self.launch.encode(pass, &self.tensors(inputs, to), 0..self.launch.slices().len())
    }

    fn tensors<'a>(&self, inputs: &LinearInputs<'a>, to: &LinearOutputs<'a>) -> Vec<&'a Tensor> {
        slots(inputs, to).into_iter().flatten().collect()
    }

    /// What was wrong with the gates.
    fn verdict(&self) -> Option<Verdict> {
        let heads = self.shapes.heads();
        let sequences = self.shapes.cu_seqlens.is_some();
        self.shapes.g.is_some().then(|| {
            let judge = move |words: &[u32]| match words.iter().position(|&row| row != 0) {
                None => Ok(()),
                Some(n) => {
                    let batch = if sequences { 0 } else { n / heads };
                    let what = format!("g[{batch}][{}][{}]", n % heads, words[n] - 1);
                    Err(Error::argument(what, "positive or NaN", "at most 0: the natural logarithm of what stays"))
                }
            };
            Verdict { words: self.problem.clone(), judge: Arc::new(judge) }
        })
    }

    /// Whether the gates that the last recorded work found were at most 0, once it was submitted. (Results of
    /// [`LinearAttention::forward`] say so when they are read.)
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first gate that was not; [`Error::DeviceLost`].
    pub async fn check_gates(&self) -> Result<()> {
        match self.verdict() {
            Some(verdict) => verdict.ask(self.launch.gpu()).await,
            None => Ok(()),
        }
    }
}
