//! The kernels of one walk over the tokens: forward, and, with tensors in other places, each of its gradients.

use super::LinearWay;
use super::parts::Part;
use super::task::{Access, Frame, Gate, THREADS, Task};
use crate::error::require;
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

/// Tokens of a segment of three passes, at least: as much traffic for states as for two of q, k, v and o at head_dim 128.
const SEGMENT: usize = 256;
/// Tokens that one workgroup goes over in a dispatch, in chunks or one by one. A dispatch of seconds is taken for a hang, and Mesa's
/// llvmpipe ends every loop once all of an invocation's loops have gone round 65535 times, without a word.
const STRETCH: usize = 4096;
pub(super) const RECURRENT_STRETCH: usize = 1024;
/// Vec4 of head_dim that pass through workgroup memory at a time.
const BD4: usize = 4;
/// Columns of the state that a workgroup keeps, and its threads, of the way token by token: whole rows of cache lines, and at most
/// 64 numbers of the state a thread.
fn of_recurrent((head_dim, value_dim): (usize, usize)) -> (usize, usize) {
    let cols = value_dim.next_power_of_two().clamp(16, 64);
    (cols, (head_dim.next_multiple_of(4) * cols / 64).next_power_of_two().clamp(64, 256))
}

/// How a workgroup divides a state and a chunk: `shaders/linear/chunk.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunking {
    pub chunk: usize,
    pub cols: usize,
    pub threads: usize,
    rows: usize,
    batch: usize,
    tile: usize,
}

impl Chunking {
    /// # Errors
    /// [`crate::Error::Argument`] for a chunk that is no multiple of 32; [`crate::Error::Limit`] for one that does not fit.
    pub fn new(caps: &Caps, chunk: usize, (head_dim, value_dim): (usize, usize)) -> Result<Self> {
        require(chunk > 0 && chunk.is_multiple_of(32), "chunk", chunk, "a multiple of 32 tokens")?;
        let cols = if value_dim > 32 { 64 } else { 32 };
        let rows_of_threads = match head_dim {
            1..=96 => 8,
            97..=192 => 16,
            _ => 32,
        };
        let rows_of_threads = chunk.div_ceil(8).next_power_of_two().max(rows_of_threads);
        let rows = head_dim.div_ceil(4 * rows_of_threads) * 4;
        let of_batch = |batch: usize| batch * (cols / 4 + rows_of_threads * rows / 4) + batch / 4 * chunk;
        let of_reading = BD4 * (2 * chunk + cols);
        let batch = if of_batch(16) <= 768 { 16 } else { 8 };
        let tile = of_batch(batch).max(of_reading);
        let found = Self { chunk, cols, threads: 8 * rows_of_threads, rows, batch, tile };
        let what = format!("chunk {chunk} of linear attention");
        caps.within(&what, "maxComputeInvocationsPerWorkgroup", found.threads as u64, caps.invocations.into())?;
        // Running sums and the edges of a chunk, beside the tile.
        let bytes = 16 * tile + 8 * chunk + 8 * (chunk + 1) + 8;
        caps.within(&what, "maxComputeWorkgroupStorageSize", bytes as u64, caps.workgroup_memory.into())?;
        Ok(found)
    }

    fn constants(&self) -> Vec<(&'static str, usize)> {
        let Self { chunk, cols, threads, rows, batch, tile } = *self;
        vec![
            ("WG", threads),
            ("CHUNK", chunk),
            ("COLS", cols),
            ("RD", rows),
            ("BATCH", batch),
            ("BD4", BD4),
            ("TILE", tile),
        ]
    }
}

/// The same in whole chunks.
pub(super) fn stretch_tokens(chunk: usize) -> usize {
    STRETCH.next_multiple_of(chunk)
}

/// Tokens of a segment of three passes.
pub(super) fn segment_tokens(chunk: usize) -> usize {
    SEGMENT.next_multiple_of(chunk)
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

    fn work(&self) -> [usize; 2] {
        [self.frame.sequences.len(), self.frame.heads]
    }

    /// The same kernel for one stretch of the tokens after another, `tiles` workgroups a head each: the state goes on in place.
    fn stretches(&self, task: impl Fn(&Self) -> Task, stretch: usize, tiles: usize) -> Vec<Task> {
        let count = self.frame.segments(stretch);
        let to = if count > 1 { Some(self.to.unwrap_or(self.states)) } else { self.to };
        let after = Self { from: From::InPlace, to, ..self.clone() };
        let of = |walk: &Self, stretches: std::ops::Range<usize>| Task {
            segment: stretch,
            tiles: stretches.map(|n| n * tiles..(n + 1) * tiles).collect(),
            ..task(walk)
        };
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
            work: self.work(),
            tiles: vec![],
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
            work: self.work(),
            tiles: vec![],
            flops: self.chunk_flops(chunking) * stretch_tokens(chunking.chunk).min(self.frame.longest()) as f64,
        }
    }

    /// What a token costs in one tile of columns.
    fn chunk_flops(&self, chunking: &Chunking) -> f64 {
        let Chunking { chunk, cols, .. } = *chunking;
        (2 * chunk * self.frame.dims.0 + chunk * cols + 4 * self.frame.dims.0 * cols) as f64
    }

    fn three_passes(&self, chunking: &Chunking) -> Vec<Task> {
        let segment = self.segment;
        let (tiles, segments) = (self.frame.dims.1.div_ceil(chunking.cols), self.frame.segments(segment));
        let whole = ("WHOLE", usize::from(self.to.is_some() || self.kept || !self.causal));
        let states = |kind| ("states", self.states, kind);
        let (k, v) = (("k", self.k, AccessKind::Load4), ("v", self.v, AccessKind::Load4));
        let of_segments = vec![0..segments * tiles];
        let common = Task {
            name: "segments",
            files: vec![],
            constants: vec![],
            tensors: vec![],
            segment,
            work: self.work(),
            tiles: vec![],
            flops: self.chunk_flops(chunking) * segment as f64,
        };
        let of_chunks = [file::LINEAR_WORK, file::LINEAR_CHUNK, self.gate_file(), self.decay_file()];
        let locals = Task {
            name: "states of segments",
            files: [&of_chunks[..], &[file::LINEAR_SEGMENT_STATES, file::LINEAR_FROM_NOTHING, file::LINEAR_TO_SEGMENT]]
                .concat(),
            constants: [chunking.constants(), vec![whole]].concat(),
            tensors: self.gated(vec![
                k,
                v,
                states(AccessKind::Store4),
                ("totals", Part::Totals, AccessKind::StoreBits),
            ]),
            tiles: of_segments.clone(),
            ..common
        };
        let (mut files, mut tensors) = self.ends();
        files.push(file::LINEAR_SCAN);
        tensors.extend([states(AccessKind::Update4), ("totals", Part::Totals, AccessKind::LoadBits)]);
        let scan = Task {
            name: "scan of segments",
            files,
            constants: vec![("WG", THREADS), whole, ("KEPT", usize::from(self.kept)), self.causal()],
            tensors,
            work: self.work(),
            tiles: vec![0..(self.frame.dims.0 * self.frame.dims.1.div_ceil(4)).div_ceil(THREADS)],
            flops: (12 * THREADS * segments) as f64,
            ..common
        };
        let (q, o) = (("q", self.q, AccessKind::Load4), ("o", self.o, AccessKind::Store4));
        let outputs = Task {
            name: "outputs of segments",
            files: [&of_chunks[..], &[file::LINEAR_WALK, file::LINEAR_FROM_SEGMENT, file::LINEAR_TO_NOTHING]].concat(),
            constants: [chunking.constants(), vec![self.causal(), ("ABSORBS_FIRST", 0)]].concat(),
            tensors: self.gated(vec![q, k, v, o, states(AccessKind::Load4)]),
            tiles: of_segments,
            ..common
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
