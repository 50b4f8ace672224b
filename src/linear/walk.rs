//! The kernels of one walk over the tokens: forward, and, with tensors in other places, each of its gradients.

use super::ends::{StateSource, ends};
use super::names::Tensor;
use super::task::{Access, Decay, Frame, THREADS, Task};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Rule, Source};
use crate::{Caps, DType, Layout, Result};

/// A walk over tokens: S ← e^g · S + gain · k vᵀ, o = scale · Sᵀ q, and what else `shaders/linear/recurrent.wgsl` has.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// k and v.
    pub adds: Option<[Tensor; 2]>,
    /// q and o.
    pub reads: Option<[Tensor; 2]>,
    pub after: Option<After>,
    pub from: StateSource,
    pub to: Option<Tensor>,
    pub snapshots: Option<Tensor>,
    /// What lies between three passes, with room for the last state if that is kept; otherwise the states that are kept.
    pub states: Tensor,
    pub kept: bool,
    pub causal: bool,
    /// Tokens of a segment of three passes, whole chunks, or between states that are kept.
    pub segment: usize,
    /// Whether the state's columns are the channels of keys.
    pub turned: bool,
    /// Whether it tells of gates and betas out of range.
    pub reports: bool,
    pub frame: Frame,
}

/// What the state absorbs, or loses, after it was read: k vᵀ.
#[derive(Clone, Debug)]
pub(super) struct After {
    pub k: Tensor,
    pub v: Option<Tensor>,
    pub takes_away: bool,
    pub correction: Option<Correction>,
}

/// In place of v, beta times what v differs by from what the state has for k. The output is read last then.
#[derive(Clone, Debug)]
pub(super) struct Correction {
    pub beta: Option<Tensor>,
    /// Where the difference goes to, and beta times it.
    pub to: Option<[Tensor; 2]>,
}

impl Walk {
    /// One that does nothing yet but fade its state, from an empty one.
    pub fn over(frame: Frame, states: Tensor) -> Self {
        Self {
            adds: None,
            reads: None,
            after: None,
            from: StateSource::Nothing,
            to: None,
            snapshots: None,
            states,
            kept: false,
            causal: true,
            segment: 1,
            turned: false,
            reports: false,
            frame,
        }
    }

    /// Whether anything comes of it.
    pub fn leaves_something(&self) -> bool {
        let corrects = self.after.as_ref().and_then(|after| after.correction.as_ref()).is_some();
        self.reads.is_some() || self.kept || self.to.is_some() || corrects
    }

    pub fn add_tasks(&self, builder: &mut Builder, tasks: impl IntoIterator<Item = Task>) -> Result<()> {
        tasks.into_iter().try_for_each(|task| task.add(builder, &self.frame))
    }

    /// f32 [entries, heads, rows, columns of the state].
    pub fn rows_of_states(&self, rows: usize) -> Layout {
        Layout::heads_first(DType::F32, [self.frame.entries(), self.frame.heads, rows, self.frame.dims.1])
    }

    /// u32, a number for each segment.
    pub fn by_segment(&self, segment: usize) -> Layout {
        let segments = self.frame.segments(segment);
        Layout::heads_first(DType::U32, [self.frame.entries(), self.frame.heads, 1, segments])
    }

    /// What tells of wrong gates and betas in segments of so many tokens, once a call.
    pub fn add_report(&self, builder: &mut Builder, segment: usize, packed: bool) -> Result<()> {
        if !self.reports || builder.operand("problem").is_some() {
            return Ok(());
        }
        let (heads, segments) = (self.frame.heads, self.frame.segments(segment));
        let problem = builder.scratch("problem", self.by_segment(segment))?;
        if let Source::Scratch(scratch) = problem.source {
            let [gates, betas] = ["g", "beta"].map(|name| builder.tensor(name).map_or(heads, |of| of.shape()[1]));
            builder.check(scratch, Rule::Gates { heads, gates, betas, segments, packed });
        }
        Ok(())
    }

    /// The states that are kept, or the one between stretches.
    pub fn add_states(&self, builder: &mut Builder, stretch: usize) -> Result<()> {
        let head_dim = self.frame.dims.0;
        if self.kept {
            let kept = self.frame.segments(self.segment) + 1;
            builder.scratch(self.states, self.rows_of_states(kept * head_dim))?;
        } else if self.frame.segments(stretch) > 1 && self.to.is_none() {
            builder.scratch(self.states, self.rows_of_states(head_dim))?;
        }
        Ok(())
    }

    /// Whole segments, where states are kept.
    pub fn stretch(&self, tokens: usize) -> usize {
        if self.kept { tokens.next_multiple_of(self.segment) } else { tokens }
    }

    /// The constants and tensors of both ends.
    pub fn ends(&self) -> (Vec<(&'static str, usize)>, Vec<Access>) {
        let (mut constants, tensors) = ends(self.from, self.to);
        constants.push(("SEGMENT", self.segment));
        (constants, tensors)
    }

    /// A kernel for one stretch of the tokens after another, `tiles` workgroups a head each.
    pub fn in_stretches(&self, caps: &Caps, task: impl Fn(&Self) -> Task, stretch: usize, tiles: usize) -> Vec<Task> {
        let (initial, walk) = self.begun(caps, task(self).tensors.len(), stretch);
        initial.into_iter().chain(walk.stretches(task, stretch, tiles)).collect()
    }

    pub fn work(&self, tiles: usize) -> [usize; 3] {
        [self.frame.entries(), self.frame.heads, tiles]
    }

    /// Where the state lies between stretches, if it is not wanted: nowhere if there is one stretch, or if states are kept.
    fn between(&self, stretch: usize) -> Option<Tensor> {
        (self.frame.segments(stretch) > 1 && !self.kept).then_some(self.states)
    }

    /// The same kernel for one stretch of the tokens after another, `tiles` workgroups a head each: the state goes on in place.
    fn stretches(&self, task: impl Fn(&Self) -> Task, stretch: usize, tiles: usize) -> Vec<Task> {
        let count = self.frame.segments(stretch);
        let to = self.to.or(self.between(stretch));
        let from = if self.kept { StateSource::Kept } else { StateSource::InPlace };
        let after = Self { from, to, ..self.clone() };
        let of = |walk: &Self, runs| Task { segment: stretch, work: self.work(tiles), runs, ..task(walk) };
        let first = of(&Self { to, ..self.clone() }, 0..1);
        if count == 1 { vec![first] } else { vec![first, of(&after, 1..count)] }
    }

    pub fn causal(&self) -> (&'static str, usize) {
        ("CAUSAL", usize::from(self.causal))
    }

    /// The same from where the state goes on: a kernel that brings it there, where states are kept, or where a device binds fewer
    /// buffers than the walk would.
    fn begun(&self, caps: &Caps, buffers: usize, stretch: usize) -> (Option<Task>, Self) {
        let comes = matches!(self.from, StateSource::H0(_) | StateSource::Turned(_) | StateSource::Unit(_));
        let to = self.to.or(self.between(stretch));
        let many = buffers + usize::from(to != self.to) > caps.storage_buffers as usize;
        if !comes || !(self.kept || many && to.is_some()) {
            return (None, self.clone());
        }
        let initial = Self { to, ..self.clone() }.initial();
        let from = if self.kept { StateSource::Kept } else { StateSource::InPlace };
        (Some(initial), Self { from, to, ..self.clone() })
    }

    /// What brings the state that the walk begins with to where it ends, or, where states are kept, to the first of those.
    pub fn initial(&self) -> Task {
        let (ends, mut tensors) = self.ends();
        if self.kept {
            tensors.push(("states", self.states, AccessKind::Store4));
        }
        let (head_dim, value_dim) = self.frame.dims;
        Task {
            name: "initial state",
            files: vec![file::LINEAR_STATES, file::LINEAR_INITIAL],
            constants: [&[("WG", THREADS), ("KEPT", usize::from(self.kept))], &ends[..]].concat(),
            tensors,
            segment: self.frame.whole(),
            work: self.work((head_dim * value_dim.div_ceil(4)).div_ceil(THREADS)),
            runs: 0..1,
            flops: THREADS as f64,
        }
    }

    /// With the gates, and what tells of wrong ones.
    pub fn with_gates(&self, mut tensors: Vec<Access>) -> Vec<Access> {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) | Decay::WithMomentum { .. } => {}
            Decay::ByToken => tensors.push(("g", "g", AccessKind::Load1)),
            Decay::ByChannel => tensors.push(("g", "g", AccessKind::Load4)),
        }
        tensors.extend(self.reports.then_some(("problem", "problem", AccessKind::StoreBits)));
        tensors
    }

    pub fn gates_file(&self) -> &'static str {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) | Decay::WithMomentum { .. } => file::LINEAR_GATES_BY_HEAD,
            Decay::ByToken => file::LINEAR_GATES_BY_TOKEN,
            Decay::ByChannel => file::LINEAR_GATES_BY_CHANNEL,
        }
    }
}
