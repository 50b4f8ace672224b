//! From a plan to results.

use super::parts::Part;
use super::shapes::tensors;
use super::{LinearAttention, LinearInputs, LinearOutputs, LinearPlan, LinearShapes, LinearState};
use crate::dispatch::{Scratch, check_device};
use crate::error::require;
use crate::softmax::attention::{keep, kept};
use crate::steps::StepsPrepared;
use crate::tensor::Verdict;
use crate::{Error, Layout, Result, Tensor};
use std::sync::Arc;

/// Linear attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct LinearPrepared {
    steps: StepsPrepared<Part>,
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

    /// Compiles and allocates all that these shapes need.
    ///
    /// # Errors
    /// Those of [`LinearPlan::new`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &LinearShapes) -> Result<LinearPrepared> {
        let plan = self.plan(shapes)?;
        let steps = StepsPrepared::new(&self.gpu, &plan.steps, &Scratch::default()).await?;
        Ok(LinearPrepared { steps, shapes: shapes.clone(), plan })
    }

    /// Attention in one call: allocates the output ([batch, heads, tokens, value_dim], of v's type) and submits. What was prepared
    /// for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &LinearInputs<'_>) -> Result<Tensor> {
        Ok(self.submitted(inputs, Wanted::default()).await?.o)
    }

    /// The same with the last state, f32 [batch or sequences, heads, head_dim, value_dim].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_state(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor)> {
        let found = self.submitted(inputs, Wanted { state: true, ..Wanted::default() }).await?;
        Ok((found.o, found.state.expect("asked for")))
    }

    /// The same with a state that goes on in place, as decoding does: f32 [batch or sequences, heads, head_dim, value_dim].
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_in_place(&self, inputs: &LinearInputs<'_>, state: &Tensor) -> Result<Tensor> {
        Ok(self.submitted(inputs, Wanted { in_place: Some(state), ..Wanted::default() }).await?.o)
    }

    /// The same with the state after every token, for speculative decoding: f32 [batch or sequences, heads, tokens · head_dim,
    /// value_dim]. [`LinearAttention::state_after`] is one of them.
    ///
    /// # Errors
    /// Those of [`LinearAttention::forward`].
    pub async fn forward_with_snapshots(&self, inputs: &LinearInputs<'_>) -> Result<(Tensor, Tensor)> {
        let found = self.submitted(inputs, Wanted { snapshots: true, ..Wanted::default() }).await?;
        Ok((found.o, found.snapshots.expect("asked for")))
    }

    /// The state after the first `tokens` (at least 1) of those that `snapshots` were taken of: a view, to go on from as
    /// [`LinearInputs::h0`].
    ///
    /// # Errors
    /// [`Error::Argument`] for rows that are no states of `head_dim` rows, or a token that is none of them.
    pub fn state_after(snapshots: &Tensor, head_dim: usize, tokens: usize) -> Result<Tensor> {
        let layout = snapshots.layout();
        let [entries, heads, rows, value_dim] = layout.shape;
        let bound = format!("a divisor of {rows}, the rows of the snapshots");
        require(head_dim > 0 && rows.is_multiple_of(head_dim), "head_dim", head_dim, bound)?;
        let all = rows / head_dim;
        require((1..=all).contains(&tokens), "tokens", tokens, format!("within 1..={all}"))?;
        let offset = layout.offset + (tokens - 1) * head_dim * layout.strides[2];
        snapshots.view(Layout { shape: [entries, heads, head_dim, value_dim], offset, ..layout.clone() })
    }

    async fn submitted(&self, inputs: &LinearInputs<'_>, wanted: Wanted<'_>) -> Result<Found> {
        let given = inputs.given().into_iter().chain(wanted.in_place.map(|state| ("state", state)));
        given.clone().try_for_each(|(name, tensor)| check_device(name, tensor, &self.gpu))?;
        let mut shapes = LinearShapes::of_inputs(inputs, wanted.state);
        if wanted.snapshots {
            shapes.snapshots = Some(shapes.snapshots_layout());
        }
        self.plan(&shapes)?;
        let o = Tensor::empty(&self.gpu, shapes.o.clone()).await?;
        let ht = Tensor::empty_if(&self.gpu, shapes.ht.as_ref()).await?;
        let snapshots = Tensor::empty_if(&self.gpu, shapes.snapshots.as_ref()).await?;
        let state = match (wanted.in_place, &ht) {
            (Some(state), _) => LinearState::InPlace(state),
            (None, Some(ht)) => LinearState::Written(ht),
            (None, None) => LinearState::Unwanted,
        };
        let to = LinearOutputs { o: &o, state, snapshots: snapshots.as_ref() };
        let shapes = LinearShapes::of(inputs, &to);
        let prepared = match kept(&self.kept, &shapes) {
            Some(found) => found,
            None => keep(&self.kept, &shapes, self.prepare(&shapes).await?),
        };
        let mut all = tensors(inputs, &to);
        let problem = Tensor::empty_if(&self.gpu, prepared.plan.steps.layout(Part::Problem)).await?;
        all.extend(problem.as_ref().map(|problem| (Part::Problem, problem)));
        prepared.steps.submit(&all).await?;
        let verdict = problem.map(|problem| verdict(&problem, inputs.cu_seqlens.is_some()));
        let judged = |tensor: &Tensor| {
            let tensor = verdict.clone().into_iter().fold(tensor.clone(), Tensor::under);
            given.clone().fold(tensor, |tensor, (_, from)| tensor.under_all(from))
        };
        Ok(Found { o: judged(&o), state: ht.as_ref().map(judged), snapshots: snapshots.as_ref().map(judged) })
    }
}

/// What a call is to give besides the output.
#[derive(Clone, Copy, Default)]
struct Wanted<'a> {
    state: bool,
    in_place: Option<&'a Tensor>,
    snapshots: bool,
}

struct Found {
    o: Tensor,
    state: Option<Tensor>,
    snapshots: Option<Tensor>,
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
        self.shapes.check_as_prepared(&LinearShapes::of(inputs, to))?;
        self.steps.encode(pass, &tensors(inputs, to))
    }

    /// Whether the gates that the last recorded work found were at most 0, once it was submitted. (Results of
    /// [`LinearAttention::forward`] say so when they are read.)
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first gate that was not; [`Error::DeviceLost`].
    pub async fn check_gates(&self) -> Result<()> {
        match self.steps.between(Part::Problem) {
            Some(problem) => verdict(problem, self.shapes.cu_seqlens.is_some()).ask(self.steps.gpu()).await,
            None => Ok(()),
        }
    }
}

/// What was wrong with the gates, as the kernels have left it.
pub(super) fn verdict(problem: &Tensor, sequences: bool) -> Verdict {
    let [_, heads, _, segments] = problem.shape();
    let judge = move |words: &[u32]| match words.iter().position(|&row| row != 0) {
        None => Ok(()),
        Some(n) => {
            let batch = if sequences { 0 } else { n / segments / heads };
            let what = format!("g[{batch}][{}][{}]", n / segments % heads, words[n] - 1);
            Err(Error::argument(what, "positive or NaN", "at most 0: the natural logarithm of what stays"))
        }
    };
    Verdict { words: problem.buffer().clone(), judge: Arc::new(judge) }
}
