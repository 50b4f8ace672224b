//! The kernels of one walk over the tokens: forward, and, with tensors in other places, each of its gradients.

use super::LinearWay;
use super::chunking::{Chunking, RECURRENT_STRETCH, of_recurrent, stretch_tokens};
use super::parts::Part;
use super::task::{Access, Frame, Gate, THREADS, Task};
use crate::shader::{AccessKind, file};
use crate::steps::{Places, Step};
use crate::{Caps, DType, Layout, Result};

/// Where the state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Nothing,
    H0(Part),
    /// Its rows are the columns here.
    Turned(Part),
    /// Where it goes to.
    InPlace,
}

/// A walk over tokens: S ← e^g · S + gain · k vᵀ, o = scale · Sᵀ q.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    pub q: Part,
    pub k: Part,
    pub v: Part,
    pub o: Part,
    pub from: From,
    pub to: Option<Part>,
    pub snapshots: Option<Part>,
    /// What lies between three passes, with room for the last state if that is kept.
    pub states: Part,
    pub kept: bool,
    pub causal: bool,
    /// Tokens of a segment of three passes, whole chunks.
    pub segment: usize,
    pub frame: Frame,
}

impl Walk {
    /// The kernels, one after another.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn steps(
        &self,
        caps: &Caps,
        places: &Places<Part>,
        way: LinearWay,
        chunking: &Chunking,
    ) -> Result<Vec<Step<Part>>> {
        let tasks = match way {
            LinearWay::Recurrent => {
                let (cols, _) = of_recurrent(self.frame.dims);
                self.stretches(Self::recurrent, RECURRENT_STRETCH, self.frame.dims.1.div_ceil(cols))
            }
            LinearWay::OnePass => {
                let tiles = self.frame.dims.1.div_ceil(chunking.cols);
                self.stretches(|walk| walk.one_pass(chunking), stretch_tokens(chunking.chunk), tiles)
            }
            LinearWay::ThreePass => self.three_passes(chunking),
        };
        tasks.into_iter().map(|task| task.plan(caps, &self.frame, places)).collect()
    }

    /// What lies between the kernels, or is reported by them.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for more than a buffer holds.
    pub fn between(&self, caps: &Caps, way: LinearWay, chunking: &Chunking) -> Result<Vec<(Part, Layout)>> {
        let three = way == LinearWay::ThreePass;
        let segments = self.frame.segments(match way {
            LinearWay::ThreePass => self.segment,
            LinearWay::OnePass => stretch_tokens(chunking.chunk),
            LinearWay::Recurrent => RECURRENT_STRETCH,
        });
        let (entries, (head_dim, value_dim)) = (self.frame.sequences.len(), self.frame.dims);
        let by_segment = |dtype| Layout::heads_first(dtype, [entries, self.frame.heads, 1, segments]);
        let mut found = vec![];
        if self.frame.gate == Gate::ByToken {
            found.push((Part::Problem, by_segment(DType::U32)));
        }
        if three {
            let rows = (segments + usize::from(self.kept)) * head_dim;
            let states = Layout::heads_first(DType::F32, [entries, self.frame.heads, rows, value_dim]);
            found.extend([(Part::Totals, by_segment(DType::U32)), (self.states, states)]);
        } else if segments > 1 && self.to.is_none() {
            let state = Layout::heads_first(DType::F32, [entries, self.frame.heads, head_dim, value_dim]);
            found.push((self.states, state));
        }
        for (_, layout) in &found {
            let bytes = layout.byte_span()?.end;
            caps.within("states of linear attention's segments", "maxBufferSize", bytes, caps.buffer_bytes)?;
        }
        Ok(found)
    }

    fn work(&self, tiles: usize) -> [usize; 3] {
        [self.frame.sequences.len(), self.frame.heads, tiles]
    }

    /// The same kernel for one stretch of the tokens after another, `tiles` workgroups a head each: the state goes on in place.
    fn stretches(&self, task: impl Fn(&Self) -> Task, stretch: usize, tiles: usize) -> Vec<Task> {
        let count = self.frame.segments(stretch);
        let to = if count > 1 { Some(self.to.unwrap_or(self.states)) } else { self.to };
        let after = Self { from: From::InPlace, to, ..self.clone() };
        let of = |walk: &Self, runs| Task { segment: stretch, work: self.work(tiles), runs, ..task(walk) };
        let first = of(&Self { to, ..self.clone() }, 0..1);
        if count == 1 { vec![first] } else { vec![first, of(&after, 1..count)] }
    }

    fn causal(&self) -> (&'static str, usize) {
        ("CAUSAL", usize::from(self.causal))
    }

    fn recurrent(&self) -> Task {
        let (cols, threads) = of_recurrent(self.frame.dims);
        let (head_dim, _) = self.frame.dims;
        let (mut files, mut tensors) = self.ends();
        files.extend([file::LINEAR_WORK, file::LINEAR_RECURRENT, self.gate_file()]);
        files.push(if self.snapshots.is_some() { file::LINEAR_SNAPSHOTS } else { file::LINEAR_NO_SNAPSHOTS });
        tensors.extend([
            ("q", self.q, AccessKind::Load4),
            ("k", self.k, AccessKind::Load4),
            ("v", self.v, AccessKind::Load4),
        ]);
        tensors.extend(self.snapshots.map(|part| ("snapshots", part, AccessKind::Store4)));
        tensors.push(("o", self.o, AccessKind::Store4));
        Task {
            name: "token by token",
            files,
            constants: vec![("WG", threads), ("COLS", cols), ("BATCH", 512 / threads), self.causal()],
            tensors: self.gated(tensors),
            segment: 0,
            work: [0; 3],
            runs: 0..1,
            flops: (5 * RECURRENT_STRETCH.min(self.frame.longest()) * head_dim * cols) as f64,
        }
    }

    fn one_pass(&self, chunking: &Chunking) -> Task {
        let (mut files, mut tensors) = self.ends();
        files.extend([file::LINEAR_WORK, file::LINEAR_CHUNK, file::LINEAR_WALK, self.gate_file(), self.decay_file()]);
        tensors.extend([
            ("q", self.q, AccessKind::Load4),
            ("k", self.k, AccessKind::Load4),
            ("v", self.v, AccessKind::Load4),
            ("o", self.o, AccessKind::Store4),
        ]);
        Task {
            name: "one pass",
            files,
            constants: [chunking.constants(), vec![self.causal(), ("ABSORBS_FIRST", usize::from(!self.causal))]]
                .concat(),
            tensors: self.gated(tensors),
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
        let totals = |kind| ("totals", Part::Totals, kind);
        let of_chunks = |name, files: &[&'static str], constants: &[(&'static str, usize)], tensors| Task {
            name,
            files: [&[file::LINEAR_WORK, file::LINEAR_CHUNK, self.gate_file(), self.decay_file()], files].concat(),
            constants: [&chunking.constants(), constants].concat(),
            tensors: self.gated(tensors),
            segment,
            work: self.work(segments * dims.1.div_ceil(chunking.cols)),
            runs: 0..1,
            flops: self.chunk_flops(chunking) * segment as f64,
        };
        let locals = of_chunks(
            "states of segments",
            &[file::LINEAR_SEGMENT_STATES, file::LINEAR_FROM_NOTHING, file::LINEAR_TO_SEGMENT],
            &[whole],
            vec![k, v, states(AccessKind::Store4), totals(AccessKind::StoreBits)],
        );
        let outputs = of_chunks(
            "outputs of segments",
            &[file::LINEAR_WALK, file::LINEAR_FROM_SEGMENT, file::LINEAR_TO_NOTHING],
            &[self.causal(), ("ABSORBS_FIRST", 0)],
            vec![q, k, v, o, states(AccessKind::Load4)],
        );
        let (mut files, mut tensors) = self.ends();
        files.push(file::LINEAR_SCAN);
        tensors.extend([states(AccessKind::Update4), totals(AccessKind::LoadBits)]);
        let scan = Task {
            name: "scan of segments",
            files,
            constants: vec![("WG", THREADS), whole, ("KEPT", usize::from(self.kept)), self.causal()],
            tensors,
            segment,
            work: self.work((dims.0 * dims.1.div_ceil(4)).div_ceil(THREADS)),
            runs: 0..1,
            flops: (12 * THREADS * segments) as f64,
        };
        vec![locals, scan, outputs]
    }

    /// The files that say where the state comes from and goes to, and its tensors.
    fn ends(&self) -> (Vec<&'static str>, Vec<Access>) {
        let from = match self.from {
            From::Nothing => (file::LINEAR_FROM_NOTHING, None),
            From::H0(part) => (file::LINEAR_FROM_H0, Some(("h0", part, AccessKind::Load4))),
            From::Turned(part) => (file::LINEAR_FROM_H0_TURNED, Some(("h0", part, AccessKind::Load1))),
            From::InPlace => (file::LINEAR_FROM_HT, None),
        };
        let kind = if self.from == From::InPlace { AccessKind::Update4 } else { AccessKind::Store4 };
        let to = match self.to {
            Some(part) => (file::LINEAR_TO_HT, Some(("ht", part, kind))),
            None => (file::LINEAR_TO_NOTHING, None),
        };
        (vec![from.0, to.0], [from.1, to.1].into_iter().flatten().collect())
    }

    fn gated(&self, mut tensors: Vec<Access>) -> Vec<Access> {
        if self.frame.gate == Gate::ByToken {
            tensors.extend([("g", Part::G, AccessKind::Load1), ("problem", Part::Problem, AccessKind::StoreBits)]);
        }
        tensors
    }

    fn gate_file(&self) -> &'static str {
        match self.frame.gate {
            Gate::None => file::LINEAR_GATES_NONE,
            Gate::ByHead(_) => file::LINEAR_GATES_BY_HEAD,
            Gate::ByToken => file::LINEAR_GATES_BY_TOKEN,
        }
    }

    fn decay_file(&self) -> &'static str {
        match self.frame.gate {
            Gate::None => file::LINEAR_DECAYS_NONE,
            Gate::ByHead(_) => file::LINEAR_DECAYS_BY_HEAD,
            Gate::ByToken => file::LINEAR_DECAYS_BY_TOKEN,
        }
    }
}
