//! The kernels of one walk over the tokens: forward, and, with tensors in other places, each of its gradients.

use super::LinearAlgorithm;
use super::chunking::{Chunking, stretch_tokens};
use super::ends::{FROM_NOTHING, FROM_SEGMENT, StateSource, TO_NOTHING, TO_SEGMENT, ends};
use super::names::Tensor;
use super::recurrent::{Recurrent, STRETCH};
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
    /// What lies between three passes, with room for the last state if that is kept; token by token, the states that are kept.
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
                let (initial, walk) = self.begun(builder.caps, recurrent);
                let stretches = walk.stretches(|walk| walk.recurrent(recurrent), self.recurrent_stretch(), tiles);
                initial.into_iter().chain(stretches).collect()
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
        if self.reports && builder.operand("problem").is_none() {
            let problem = builder.scratch("problem", by_segment())?;
            if let Source::Scratch(scratch) = problem.source {
                let [gates, betas] = ["g", "beta"].map(|name| builder.tensor(name).map_or(heads, |of| of.shape()[1]));
                builder.check(scratch, Rule::Gates { heads, gates, betas, segments, packed });
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

    fn causal(&self) -> (&'static str, usize) {
        ("CAUSAL", usize::from(self.causal))
    }

    /// The same from where the state goes on: a kernel that brings it there, where states are kept, or where a device binds fewer
    /// buffers than the walk would.
    fn begun(&self, caps: &Caps, divided: Recurrent) -> (Option<Task>, Self) {
        let comes = matches!(self.from, StateSource::H0(_) | StateSource::Turned(_));
        let to = self.to.or(self.between(self.recurrent_stretch()));
        let many = self.recurrent(divided).tensors.len() + usize::from(to != self.to) > caps.storage_buffers as usize;
        if !comes || !(self.kept || many && to.is_some()) {
            return (None, self.clone());
        }
        let (ends, mut tensors) = ends(self.from, to);
        if self.kept {
            tensors.push(("states", self.states, AccessKind::Store4));
        }
        let (head_dim, value_dim) = self.frame.dims;
        let initial = Task {
            name: "initial state",
            files: vec![file::LINEAR_STATES, file::LINEAR_INITIAL],
            constants: [&[("WG", THREADS), ("KEPT", usize::from(self.kept))], &ends[..]].concat(),
            tensors,
            segment: self.frame.whole(),
            work: self.work((head_dim * value_dim.div_ceil(4)).div_ceil(THREADS)),
            runs: 0..1,
            flops: THREADS as f64,
        };
        let from = if self.kept { StateSource::Kept } else { StateSource::InPlace };
        (Some(initial), Self { from, to, ..self.clone() })
    }

    fn recurrent(&self, divided: Recurrent) -> Task {
        let (head_dim, _) = self.frame.dims;
        let (ends, mut tensors) = ends(self.from, self.to);
        let loads = |name, tensor| (name, tensor, AccessKind::Load4);
        tensors.extend(self.adds.into_iter().flat_map(|[k, v]| [loads("k", k), loads("v", v)]));
        tensors.extend(self.snapshots.map(|part| ("snapshots", part, AccessKind::Store4)));
        let of_states = if self.from == StateSource::Kept { AccessKind::Update4 } else { AccessKind::Store4 };
        tensors.extend(self.kept.then_some(("states", self.states, of_states)));
        let correction = self.after.as_ref().and_then(|after| after.correction.as_ref());
        if let Some(After { k, v, .. }) = &self.after {
            tensors.extend([Some(loads("k2", k)), v.map(|v| loads("v2", v))].into_iter().flatten());
        }
        if let Some(Correction { beta, to }) = correction {
            tensors.extend(beta.map(|beta| ("beta", beta, AccessKind::Load1)));
            tensors.extend(to.iter().flat_map(|[e, u]| [("e", *e, AccessKind::Store4), ("u", *u, AccessKind::Store4)]));
        }
        tensors.extend(self.reads.iter().flat_map(|[q, o]| [loads("q", q), ("o", *o, AccessKind::Store4)]));
        let by_channel = self.frame.decay == Decay::ByChannel;
        let takes_away = self.after.as_ref().is_some_and(|after| after.takes_away);
        let sign = 1 + usize::from(takes_away);
        let last = correction.is_some();
        let steps = [
            ("GATED", if by_channel { 1 + usize::from(self.turned) } else { 0 }),
            ("CHANNELS", if self.turned { self.frame.dims.1 } else { head_dim }),
            ("ADDS", usize::from(self.adds.is_some())),
            ("CORRECTS", correction.map_or(0, |_| sign)),
            ("READS", self.reads.map_or(0, |_| 1 + usize::from(last))),
            ("ADDS_AFTER", self.after.as_ref().map_or(0, |_| sign)),
            ("KEPT", usize::from(self.kept)),
            ("SEGMENT", self.segment),
        ];
        let files = [
            file::LINEAR_STATES,
            file::LINEAR_WORK,
            file::LINEAR_RECURRENT,
            divided.file(),
            file::LINEAR_REPORT,
            self.gates_file(),
        ];
        // A fade and a sum each for what is read and for what is absorbed.
        let work = 1 + 2 * [self.adds.is_some(), self.reads.is_some(), self.after.is_some(), last]
            .into_iter()
            .filter(|&is| is)
            .count();
        let tokens = self.recurrent_stretch().min(self.frame.longest());
        Task {
            name: divided.name(),
            files: files.to_vec(),
            constants: [&divided.constants(head_dim, last)[..], &[self.causal()], &steps, &ends].concat(),
            tensors: self.with_decays(tensors),
            segment: 0,
            work: [0; 3],
            runs: 0..1,
            flops: (work * tokens * head_dim * divided.cols()) as f64,
        }
    }

    /// q, k, v and o of a walk that chunks serve: one that absorbs tokens as they are.
    fn plain(&self) -> [Tensor; 4] {
        let ([k, v], [q, o]) = (self.adds.expect("chunks absorb"), self.reads.expect("chunks are read"));
        [q, k, v, o]
    }

    fn one_pass(&self, chunking: &Chunking) -> Task {
        let (ends, mut tensors) = ends(self.from, self.to);
        let files = [
            &[file::LINEAR_STATES, file::LINEAR_WORK, file::LINEAR_CHUNK, file::LINEAR_WALK],
            &self.decays_files()[..],
        ]
        .concat();
        let [q, k, v, o] = self.plain();
        tensors.extend([("q", q), ("k", k), ("v", v)].map(|(name, tensor)| (name, tensor, AccessKind::Load4)));
        tensors.push(("o", o, AccessKind::Store4));
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
        let [q, k, v, o] = self.plain();
        let (q, o) = (("q", q, AccessKind::Load4), ("o", o, AccessKind::Store4));
        let (k, v) = (("k", k, AccessKind::Load4), ("v", v, AccessKind::Load4));
        let states = |kind| ("states", self.states, kind);
        let totals = |kind| ("totals", "totals", kind);
        let of_chunks = |name, files: &[&'static str], constants: &[(&'static str, usize)], tensors| Task {
            name,
            files: [&[file::LINEAR_WORK, file::LINEAR_CHUNK], &self.decays_files()[..], files].concat(),
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
        let (ends, mut tensors) = ends(self.from, self.to);
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

    fn with_decays(&self, mut tensors: Vec<Access>) -> Vec<Access> {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) => {}
            Decay::ByToken => tensors.push(("g", "g", AccessKind::Load1)),
            Decay::ByChannel => tensors.push(("g", "g", AccessKind::Load4)),
        }
        tensors.extend(self.reports.then_some(("problem", "problem", AccessKind::StoreBits)));
        tensors
    }

    fn gates_file(&self) -> &'static str {
        match self.frame.decay {
            Decay::None | Decay::ByHead(_) => file::LINEAR_GATES_BY_HEAD,
            Decay::ByToken => file::LINEAR_GATES_BY_TOKEN,
            Decay::ByChannel => file::LINEAR_GATES_BY_CHANNEL,
        }
    }

    /// Of chunks, in which all channels fade alike.
    fn decays_files(&self) -> [&'static str; 3] {
        let running = match self.frame.decay {
            Decay::ByToken => file::LINEAR_DECAYS_BY_TOKEN,
            _ => file::LINEAR_DECAYS_BY_HEAD,
        };
        [file::LINEAR_REPORT, self.gates_file(), running]
    }
}
