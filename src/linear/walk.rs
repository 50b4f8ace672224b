//! The kernels of one walk over the tokens: forward, and, with tensors in other places, each of its gradients.

use super::LinearAlgorithm;
use super::chunking::{Chunking, stretch_tokens};
use super::recurrent::{Recurrent, STRETCH};
use super::task::{Access, Decay, Frame, THREADS, Task};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Rule, Source};
use crate::{Caps, DType, Layout, Result};

/// The name of a tensor of the program.
pub(super) type Tensor = &'static str;

/// The state between two stretches of a walk that keeps others.
const GOING_ON: Tensor = "state between stretches";

/// Where the state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateSource {
    Nothing,
    H0(Tensor),
    /// Its rows are the columns here.
    Turned(Tensor),
    /// Where it goes to.
    InPlace,
}

/// `FROM` and `TO` of `shaders/linear/states.wgsl`.
const FROM_NOTHING: usize = 0;
const FROM_H0: usize = 1;
const FROM_H0_TURNED: usize = 2;
const FROM_HT: usize = 3;
const FROM_SEGMENT: usize = 4;
const TO_NOTHING: usize = 0;
const TO_HT: usize = 1;
const TO_SEGMENT: usize = 2;

/// A walk over tokens: S ← e^g · S + gain · k vᵀ, o = scale · Sᵀ q.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub o: Tensor,
    pub from: StateSource,
    pub to: Option<Tensor>,
    pub snapshots: Option<Tensor>,
    /// What lies between three passes, with room for the last state if that is kept; token by token, the states that are kept.
    pub states: Tensor,
    pub kept: bool,
    pub causal: bool,
    /// Tokens of a segment of three passes, whole chunks, or between states that are kept.
    pub segment: usize,
    pub frame: Frame,
}

impl Walk {
    /// Adds the kernels, one after another, and what lies between them.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn add(
        &self,
        builder: &mut Builder,
        algorithm: LinearAlgorithm,
        chunking: &Chunking,
        packed: bool,
    ) -> Result<()> {
        self.add_between(builder, algorithm, chunking, packed)?;
        let tasks = match algorithm {
            LinearAlgorithm::Recurrent => {
                let recurrent = self.one_by_one(builder.caps, packed);
                let tiles = self.frame.dims.1.div_ceil(recurrent.cols());
                self.stretches(|walk| walk.recurrent(recurrent), self.recurrent_stretch(), tiles)
            }
            LinearAlgorithm::OnePass => {
                let tiles = self.frame.dims.1.div_ceil(chunking.cols);
                self.stretches(|walk| walk.one_pass(chunking), stretch_tokens(chunking.chunk), tiles)
            }
            LinearAlgorithm::ThreePass => self.three_passes(chunking),
        };
        tasks.into_iter().try_for_each(|task| task.add(builder, &self.frame))
    }

    /// What lies between the kernels, or is reported by them. What tells of segments is the same for each walk of a call.
    fn add_between(
        &self,
        builder: &mut Builder,
        algorithm: LinearAlgorithm,
        chunking: &Chunking,
        packed: bool,
    ) -> Result<()> {
        let three = algorithm == LinearAlgorithm::ThreePass;
        let segments = self.frame.segments(match algorithm {
            LinearAlgorithm::ThreePass => self.segment,
            LinearAlgorithm::OnePass => stretch_tokens(chunking.chunk),
            LinearAlgorithm::Recurrent => self.recurrent_stretch(),
        });
        let (entries, heads, (head_dim, value_dim)) = (self.frame.sequences.len(), self.frame.heads, self.frame.dims);
        let by_segment = || Layout::heads_first(DType::U32, [entries, heads, 1, segments]);
        let rows = |rows: usize| Layout::heads_first(DType::F32, [entries, heads, rows, value_dim]);
        if self.frame.decay == Decay::ByToken && builder.operand("problem").is_none() {
            let problem = builder.scratch("problem", by_segment())?;
            if let Source::Scratch(scratch) = problem.source {
                builder.check(scratch, Rule::Gates { heads, segments, packed });
            }
        }
        if three {
            if builder.operand("totals").is_none() {
                builder.scratch("totals", by_segment())?;
            }
            builder.scratch(self.states, rows((segments + usize::from(self.kept)) * head_dim))?;
        } else if self.kept {
            let kept = self.frame.segments(self.segment) + 1;
            builder.scratch(self.states, rows(kept * head_dim))?;
            if segments > 1 && builder.operand(GOING_ON).is_none() {
                builder.scratch(GOING_ON, rows(head_dim))?;
            }
        } else if segments > 1 && self.to.is_none() {
            builder.scratch(self.states, rows(head_dim))?;
        }
        Ok(())
    }

    /// How the state is divided token by token.
    pub fn one_by_one(&self, caps: &Caps, packed: bool) -> Recurrent {
        Recurrent::of(caps, &self.frame, packed, self.snapshots.is_some())
    }

    /// Whole segments.
    fn recurrent_stretch(&self) -> usize {
        if self.kept { STRETCH.next_multiple_of(self.segment) } else { STRETCH }
    }

    fn work(&self, tiles: usize) -> [usize; 3] {
        [self.frame.sequences.len(), self.frame.heads, tiles]
    }

    /// The same kernel for one stretch of the tokens after another, `tiles` workgroups a head each: the state goes on in place.
    fn stretches(&self, task: impl Fn(&Self) -> Task, stretch: usize, tiles: usize) -> Vec<Task> {
        let count = self.frame.segments(stretch);
        let between = if self.kept { GOING_ON } else { self.states };
        let to = if count > 1 { Some(self.to.unwrap_or(between)) } else { self.to };
        let after = Self { from: StateSource::InPlace, to, ..self.clone() };
        let of = |walk: &Self, runs| Task { segment: stretch, work: self.work(tiles), runs, ..task(walk) };
        let first = of(&Self { to, ..self.clone() }, 0..1);
        if count == 1 { vec![first] } else { vec![first, of(&after, 1..count)] }
    }

    fn causal(&self) -> (&'static str, usize) {
        ("CAUSAL", usize::from(self.causal))
    }

    fn recurrent(&self, divided: Recurrent) -> Task {
        let (head_dim, _) = self.frame.dims;
        let (ends, mut tensors) = self.ends();
        tensors.extend([
            ("q", self.q, AccessKind::Load4),
            ("k", self.k, AccessKind::Load4),
            ("v", self.v, AccessKind::Load4),
        ]);
        tensors.extend(self.snapshots.map(|part| ("snapshots", part, AccessKind::Store4)));
        tensors.extend(self.kept.then_some(("states", self.states, AccessKind::Store4)));
        tensors.push(("o", self.o, AccessKind::Store4));
        let kept = [("KEPT", usize::from(self.kept)), ("SEGMENT", self.segment)];
        Task {
            name: divided.name(),
            files: vec![file::LINEAR_STATES, file::LINEAR_WORK, divided.file(), self.decays_file()],
            constants: [&divided.constants(head_dim)[..], &[self.causal()], &kept, &ends].concat(),
            tensors: self.with_decays(tensors),
            segment: 0,
            work: [0; 3],
            runs: 0..1,
            flops: (5 * self.recurrent_stretch().min(self.frame.longest()) * head_dim * divided.cols()) as f64,
        }
    }

    fn one_pass(&self, chunking: &Chunking) -> Task {
        let (ends, mut tensors) = self.ends();
        let files = vec![
            file::LINEAR_STATES,
            file::LINEAR_WORK,
            file::LINEAR_CHUNK,
            file::LINEAR_WALK,
            self.decays_file(),
            self.running_file(),
        ];
        tensors.extend([
            ("q", self.q, AccessKind::Load4),
            ("k", self.k, AccessKind::Load4),
            ("v", self.v, AccessKind::Load4),
            ("o", self.o, AccessKind::Store4),
        ]);
        Task {
            name: "one pass",
            files,
            constants: [
                &chunking.constants()[..],
                &[self.causal(), ("ABSORBS_FIRST", usize::from(!self.causal))],
                &ends,
            ]
            .concat(),
            tensors: self.with_decays(tensors),
            segment: 0,
            work: [0; 3],
            runs: 0..1,
            flops: self.chunk_flops(chunking) * stretch_tokens(chunking.chunk).min(self.frame.longest()) as f64,
        }
    }

    /// What a token costs in one tile of columns.
    fn chunk_flops(&self, chunking: &Chunking) -> f64 {
        let Chunking { chunk, cols, .. } = *chunking;
        (2 * chunk * self.frame.dims.0 + chunk * cols + 4 * self.frame.dims.0 * cols) as f64
    }

    fn three_passes(&self, chunking: &Chunking) -> Vec<Task> {
        let (segment, dims) = (self.segment, self.frame.dims);
        let segments = self.frame.segments(segment);
        let whole = ("WHOLE", usize::from(self.to.is_some() || self.kept || !self.causal));
        let (q, o) = (("q", self.q, AccessKind::Load4), ("o", self.o, AccessKind::Store4));
        let (k, v) = (("k", self.k, AccessKind::Load4), ("v", self.v, AccessKind::Load4));
        let states = |kind| ("states", self.states, kind);
        let totals = |kind| ("totals", "totals", kind);
        let of_chunks = |name, files: &[&'static str], constants: &[(&'static str, usize)], tensors| Task {
            name,
            files: [&[file::LINEAR_WORK, file::LINEAR_CHUNK, self.decays_file(), self.running_file()], files].concat(),
            constants: [&chunking.constants(), constants].concat(),
            tensors: self.with_decays(tensors),
            segment,
            work: self.work(segments * dims.1.div_ceil(chunking.cols)),
            runs: 0..1,
            flops: self.chunk_flops(chunking) * segment as f64,
        };
        let locals = of_chunks(
            "states of segments",
            &[file::LINEAR_SEGMENT_STATES, file::LINEAR_STATES],
            &[whole, ("FROM", FROM_NOTHING), ("TO", TO_SEGMENT)],
            vec![k, v, states(AccessKind::Store4), totals(AccessKind::StoreBits)],
        );
        let outputs = of_chunks(
            "outputs of segments",
            &[file::LINEAR_WALK, file::LINEAR_STATES],
            &[self.causal(), ("ABSORBS_FIRST", 0), ("FROM", FROM_SEGMENT), ("TO", TO_NOTHING)],
            vec![q, k, v, o, states(AccessKind::Load4)],
        );
        let (ends, mut tensors) = self.ends();
        tensors.extend([states(AccessKind::Update4), totals(AccessKind::LoadBits)]);
        let scan = Task {
            name: "scan of segments",
            files: vec![file::LINEAR_STATES, file::LINEAR_SCAN],
            constants: [&[("WG", THREADS), whole, ("KEPT", usize::from(self.kept)), self.causal()], &ends[..]].concat(),
            tensors,
            segment,
            work: self.work((dims.0 * dims.1.div_ceil(4)).div_ceil(THREADS)),
            runs: 0..1,
            flops: (12 * THREADS * segments) as f64,
        };
        vec![locals, scan, outputs]
    }

    /// Where the state comes from and goes to, and its tensors.
    fn ends(&self) -> ([(&'static str, usize); 2], Vec<Access>) {
        let (from, initial) = match self.from {
            StateSource::Nothing => (FROM_NOTHING, None),
            StateSource::H0(part) => (FROM_H0, Some(("h0", part, AccessKind::Load4))),
            StateSource::Turned(part) => (FROM_H0_TURNED, Some(("h0", part, AccessKind::Load1))),
            StateSource::InPlace => (FROM_HT, None),
        };
        let kind = if self.from == StateSource::InPlace { AccessKind::Update4 } else { AccessKind::Store4 };
        let last = self.to.map(|part| ("ht", part, kind));
        let to = if last.is_some() { TO_HT } else { TO_NOTHING };
        ([("FROM", from), ("TO", to)], initial.into_iter().chain(last).collect())
    }

    fn with_decays(&self, mut tensors: Vec<Access>) -> Vec<Access> {
        if self.frame.decay == Decay::ByToken {
            tensors.extend([("g", "g", AccessKind::Load1), ("problem", "problem", AccessKind::StoreBits)]);
        }
        tensors
    }

    fn decays_file(&self) -> &'static str {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) => file::LINEAR_GATES_BY_HEAD,
            Decay::ByToken => file::LINEAR_GATES_BY_TOKEN,
        }
    }

    fn running_file(&self) -> &'static str {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) => file::LINEAR_DECAYS_BY_HEAD,
            Decay::ByToken => file::LINEAR_DECAYS_BY_TOKEN,
        }
    }
}
