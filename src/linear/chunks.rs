//! Over chunks of tokens, in one pass or in three over segments.
//!
//! Where rows of a state fade apart, how they do and the products of a chunk's tokens are computed ahead. The delta rule, and memory with
//! momentum, go in steps: the inverses of chunks, then from one chunk to the next what each token corrects the state by, and with these
//! corrections as values the linear rule. (Where that has segments, their first states are known by then: nothing is scanned.)

use super::LinearAlgorithm;
use super::chunking::{Chunking, How, stretch_tokens};
use super::ends::{FROM_NOTHING, FROM_SEGMENT, TO_NOTHING, TO_SEGMENT, between};
use super::names::Tensor;
use super::task::{Access, Decay, Frame, THREADS, Task};
use super::walk::{After, Walk};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{Caps, DType, Layout, Result};

/// What is left of each row before and after a token.
pub(super) const FADES: [Tensor; 2] = ["fades", "rests"];
const PRODUCTS: Tensor = "products of tokens";
const INVERSES: Tensor = "inverses of chunks";
const CORRECTIONS: Tensor = "corrections";

impl Walk {
    /// Adds the kernels that go over chunks, in one pass or in three.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn add_chunks(&self, builder: &mut Builder, How { algorithm, chunking, packed }: How) -> Result<()> {
        let chunking = &chunking;
        let entries = if packed { 1 } else { self.frame.entries() };
        let by_token = |width| Layout::heads_first(DType::F32, [entries, self.frame.heads, self.frame.tokens, width]);
        let by_row = self.frame.decay.is_by_row();
        // What is computed ahead sees every gate and beta.
        if by_row || self.after.is_some() {
            self.add_report(builder, chunking.chunk, packed)?;
        }
        match self.frame.decay {
            Decay::ByChannel => self.add_fades(builder, chunking.chunk)?,
            Decay::WithMomentum { errors } => self.add_fades_with_momentum(builder, chunking.chunk, errors)?,
            _ => {}
        }
        let mut walk = self.clone();
        if let Some(After { k, v, correction, .. }) = &self.after {
            let beta = correction.as_ref().and_then(|correction| correction.beta);
            builder.scratch(INVERSES, by_token(chunking.chunk))?;
            let tensors = [Some(("k", *k, AccessKind::Load4)), beta.map(|beta| ("beta", beta, AccessKind::Load1))];
            let inverses = walk.products(builder.caps, INVERSES, tensors.into_iter().flatten().collect(), chunking)?;
            inverses.add(builder, &self.of_keys())?;
            if self.reads.is_some() {
                builder.scratch(CORRECTIONS, by_token(self.frame.dims.1))?;
            }
            let corrected = Self {
                adds: v.map(|v| [*k, v]),
                kept: algorithm == LinearAlgorithm::ThreePass && self.reads.is_some(),
                reports: false,
                ..self.clone()
            };
            corrected.add_corrections(builder, chunking)?;
            if self.reads.is_none() {
                return Ok(());
            }
            walk = Self {
                adds: Some([k, CORRECTIONS]),
                after: None,
                to: None,
                states: if corrected.kept { self.states } else { "states once more" },
                kept: corrected.kept,
                reports: false,
                ..walk
            };
        }
        if let (true, Some([q, _]), Some([k, _])) = (by_row, walk.reads, walk.adds) {
            builder.scratch(PRODUCTS, by_token(chunking.chunk))?;
            let tensors = vec![("q", q, AccessKind::Load4), ("k", k, AccessKind::Load4)];
            let products =
                Self { reports: false, ..walk.clone() }.products(builder.caps, PRODUCTS, tensors, chunking)?;
            products.add(builder, &self.of_keys())?;
        }
        if by_row {
            walk.reports = false;
        }
        let tasks = match algorithm {
            LinearAlgorithm::ThreePass if self.after.is_some() => vec![walk.outputs_of_segments(chunking)],
            LinearAlgorithm::ThreePass => {
                walk.add_report(builder, walk.segment, packed)?;
                if !by_row && builder.operand("totals").is_none() {
                    builder.scratch("totals", walk.by_segment(walk.segment))?;
                }
                let states = walk.frame.segments(walk.segment) + usize::from(walk.kept);
                builder.scratch(walk.states, walk.rows_of_states(states * walk.frame.dims.0))?;
                walk.check_scan(builder.caps, chunking.chunk)?;
                walk.three_passes(chunking)
            }
            _ => {
                let stretch = stretch_tokens(chunking.chunk);
                walk.add_report(builder, stretch, packed)?;
                walk.add_states(builder, stretch)?;
                let task = |walk: &Self| match walk.reads {
                    Some(_) => walk.one_pass(chunking),
                    None => walk.states_alone(chunking, stretch, walk.ends()),
                };
                walk.in_stretches(builder.caps, task, stretch, walk.tiles(chunking))
            }
        };
        walk.add_tasks(builder, tasks)
    }

    /// What is computed ahead of chunks, if that is more than a buffer or, of a head, a binding holds.
    pub fn too_much_ahead(&self, caps: &Caps, chunk: usize, packed: bool) -> Option<String> {
        let Frame { heads, tokens, dims, ref decay, .. } = self.frame;
        let by_channel = *decay == Decay::ByChannel;
        let widths =
            [(self.after.is_some() || by_channel, chunk), (self.after.is_some(), dims.1), (by_channel, dims.0)];
        let most = widths.into_iter().filter(|(is, _)| *is).map(|(_, width)| width).max()?;
        let head = 4 * tokens as u64 * most as u64;
        let entries = if packed { 1 } else { self.frame.entries() };
        let all = head.saturating_mul((heads * entries) as u64);
        let fits = head <= caps.binding_bytes && all <= caps.buffer_bytes;
        (!fits).then(|| {
            format!("{all} bytes computed ahead of chunks are more than a buffer, or a binding of a head, holds")
        })
    }

    /// Whether a scan may go over so many segments on a device that bounds loops.
    fn check_scan(&self, caps: &Caps, chunk: usize) -> Result<()> {
        let Some(available) = caps.loop_rounds() else { return Ok(()) };
        let each = 1 + usize::from(self.frame.decay.is_by_row()) * self.segment.div_ceil(chunk);
        let rounds = self.frame.segments(self.segment) * each * if self.causal { 1 } else { 2 };
        let what = format!("linear attention over {} tokens in three passes", self.frame.longest());
        caps.within(&what, "rounds of llvmpipe's loops", rounds as u64, available)
    }

    /// The frame, with the channels of keys for the rows of the state.
    pub fn of_keys(&self) -> Frame {
        let (rows, columns) = self.frame.dims;
        let both = matches!(self.frame.decay, Decay::WithMomentum { .. });
        Frame { dims: (if both { rows / 2 } else { rows }, columns), ..self.frame.clone() }
    }

    /// Workgroups of a segment.
    fn tiles(&self, chunking: &Chunking) -> usize {
        self.frame.dims.1.div_ceil(chunking.cols)
    }

    /// How channels fade inside of chunks.
    fn add_fades(&self, builder: &mut Builder, chunk: usize) -> Result<()> {
        let gates = builder.input("g")?.layout;
        let [.., own, _, head_dim] = gates.shape;
        for name in FADES {
            builder.scratch(name, Layout::heads_first(DType::F32, gates.shape))?;
        }
        let to = FADES.map(|name| (name, name, AccessKind::Store4));
        // With the delta rule, inverses report.
        let reports = self.reports && self.after.is_none();
        let problem = reports.then_some(("problem", "problem", AccessKind::StoreBits));
        let fades = Task {
            name: "fades of channels",
            files: vec![file::LINEAR_CHUNKS_FADES, file::LINEAR_REPORT, self.gates_file()],
            constants: vec![("WG", 32), ("CHANNELS", head_dim), ("REPORTED", self.frame.heads / own.max(1))],
            tensors: [("g", "g", AccessKind::Load4)].into_iter().chain(to).chain(problem).collect(),
            segment: chunk,
            work: [self.frame.entries(), own, self.frame.segments(chunk)],
            runs: 0..1,
            flops: (40 * chunk * head_dim) as f64,
        };
        fades.add(builder, &Frame { heads: own, ..self.frame.clone() })
    }

    /// The products of each chunk's tokens, of queries and keys, or, of keys alone, the inverses.
    fn products(&self, caps: &Caps, to: Tensor, mut tensors: Vec<Access>, chunking: &Chunking) -> Result<Task> {
        let (chunk, head_dim) = (chunking.chunk, self.of_keys().dims.0);
        let by_channel = usize::from(self.frame.decay == Decay::ByChannel);
        let inverts = usize::from(to == INVERSES);
        let what = format!("products of a chunk of {chunk} tokens of linear attention");
        caps.within(&what, "maxComputeInvocationsPerWorkgroup", chunk as u64, caps.invocations.into())?;
        // 8 × 16 vec4 of queries and of fades, 16 rows that are inverted, running sums of gates, what is reported.
        let bytes = 2048 * (1 + by_channel) + 64 * chunk * inverts + 8 * (chunk + 1) + 24;
        caps.within(&what, "maxComputeWorkgroupStorageSize", bytes as u64, caps.workgroup_memory.into())?;
        tensors.push(("weights", to, AccessKind::UpdateBits));
        let mut constants = vec![
            ("WG", chunk),
            ("CHUNK", chunk),
            ("CHANNELS", head_dim),
            ("BY_CHANNEL", by_channel),
            ("INVERTS", inverts),
        ];
        let mut files = vec![file::LINEAR_CHUNKS_PRODUCTS];
        if let Decay::WithMomentum { errors } = self.frame.decay {
            tensors.push(("steps", "steps", AccessKind::Load4));
            constants.push(("ERRORS", errors));
            files.extend([file::LINEAR_MOMENTUM_STEP, file::LINEAR_MOMENTUM_FACTOR]);
            files.extend([file::LINEAR_REPORT, self.gates_file()]);
        } else {
            files.extend([file::LINEAR_BETAS, file::LINEAR_CHUNKS_FACTOR]);
            files.extend(self.decays_files(self.gates_file()));
        }
        Ok(Task {
            name: to,
            files,
            constants,
            tensors: self.with_gates(tensors),
            segment: chunk,
            work: self.work(self.frame.segments(chunk)),
            runs: 0..1,
            flops: (chunk * chunk * (2 * head_dim * (1 + by_channel) + inverts * chunk)) as f64,
        })
    }

    /// From one chunk to the next, what the state is corrected by.
    fn add_corrections(&self, builder: &mut Builder, chunking: &Chunking) -> Result<()> {
        let stretch = self.stretch(stretch_tokens(chunking.chunk));
        self.add_states(builder, stretch)?;
        let task = |walk: &Self| {
            let [k, v] = walk.adds.expect("keys and values");
            let tensors = vec![
                ("k", k, AccessKind::Load4),
                ("v", v, AccessKind::Load4),
                ("weights", INVERSES, AccessKind::Load4),
            ];
            let o = walk.reads.map(|_| ("o", CORRECTIONS, AccessKind::Store4));
            let kept = walk.kept.then_some(("states", walk.states, AccessKind::Update4));
            let (ends, of_ends) = walk.ends();
            let tensors = [tensors, o.into_iter().chain(kept).collect(), of_ends].concat();
            let steps = [("CORRECTS", 1), ("GIVEN", 1), ("KEPT", usize::from(walk.kept)), ("ABSORBS_FIRST", 0)];
            let task = walk.over_chunks("corrections", chunking, stretch, &[&steps[..], &ends].concat(), tensors);
            Task { files: [&task.files[..], &[file::LINEAR_WALK]].concat(), ..task }
        };
        let corrected = Self { frame: Frame { scale: 1.0, ..self.frame.clone() }, ..self.clone() };
        let tasks = corrected.in_stretches(builder.caps, task, stretch, self.tiles(chunking));
        corrected.add_tasks(builder, tasks)
    }

    /// q, k, v and o of a walk that absorbs tokens as they are.
    fn plain(&self) -> [Tensor; 4] {
        let ([k, v], [q, o]) = (self.adds.expect("chunks absorb"), self.reads.expect("chunks are read"));
        [q, k, v, o]
    }

    /// A kernel that goes over chunks, so many tokens each workgroup.
    fn over_chunks(
        &self,
        name: &'static str,
        chunking: &Chunking,
        tokens: usize,
        constants: &[(&'static str, usize)],
        tensors: Vec<Access>,
    ) -> Task {
        let Chunking { chunk, cols, .. } = *chunking;
        let head_dim = self.frame.dims.0;
        let each = 2 * chunk * head_dim + chunk * cols + 4 * head_dim * cols;
        let by_row = self.frame.decay.is_by_row();
        let gates = if by_row { file::LINEAR_GATES_BY_HEAD } else { self.gates_file() };
        let mut files = vec![file::LINEAR_STATES, file::LINEAR_WORK, file::LINEAR_CHUNKS_BOUNDS, file::LINEAR_CHUNK];
        files.extend(match self.frame.decay {
            Decay::WithMomentum { .. } => &[file::LINEAR_MOMENTUM_ROWS][..],
            _ => &[file::LINEAR_CHUNKS_LEFT, file::LINEAR_CHUNKS_ROWS],
        });
        files.extend(self.decays_files(gates));
        Task {
            name,
            files,
            constants: [&chunking.constants(), constants, &[self.causal(), ("CHANNELS", self.of_keys().dims.0)]]
                .concat(),
            tensors: if by_row { [tensors, self.fades()].concat() } else { self.with_gates(tensors) },
            segment: tokens,
            work: self.work(self.frame.segments(tokens) * self.tiles(chunking)),
            runs: 0..1,
            flops: (each * tokens.min(self.frame.longest())) as f64,
        }
    }

    /// The walk that writes outputs.
    fn outputs(
        &self,
        name: &'static str,
        chunking: &Chunking,
        tokens: usize,
        constants: &[(&'static str, usize)],
        more: Vec<Access>,
    ) -> Task {
        let [q, k, v, o] = self.plain();
        let given = self.frame.decay.is_by_row();
        let mut tensors =
            [("q", q), ("k", k), ("v", v)].map(|(name, tensor)| (name, tensor, AccessKind::Load4)).to_vec();
        tensors.push(("o", o, AccessKind::Store4));
        tensors.extend(given.then_some(("weights", PRODUCTS, AccessKind::Load4)));
        let steps = [("CORRECTS", 0), ("GIVEN", usize::from(given)), ("KEPT", 0)];
        let mut task =
            self.over_chunks(name, chunking, tokens, &[&steps[..], constants].concat(), [tensors, more].concat());
        task.files.push(file::LINEAR_WALK);
        task
    }

    fn one_pass(&self, chunking: &Chunking) -> Task {
        let (mut constants, tensors) = self.ends();
        constants.push(("ABSORBS_FIRST", usize::from(!self.causal)));
        self.outputs("one pass", chunking, stretch_tokens(chunking.chunk), &constants, tensors)
    }

    fn outputs_of_segments(&self, chunking: &Chunking) -> Task {
        let more = [("ABSORBS_FIRST", 0), ("SEGMENT", self.segment)];
        let constants = [&between(FROM_SEGMENT, TO_NOTHING)[..], &more].concat();
        let states = vec![("states", self.states, AccessKind::Load4)];
        self.outputs("outputs of segments", chunking, self.segment, &constants, states)
    }

    fn three_passes(&self, chunking: &Chunking) -> Vec<Task> {
        let (segment, dims) = (self.segment, self.frame.dims);
        let states = |kind| ("states", self.states, kind);
        let totals = |kind| (!self.frame.decay.is_by_row()).then_some(("totals", "totals", kind));
        let ends = [&between(FROM_NOTHING, TO_SEGMENT)[..], &[("SEGMENT", segment)]].concat();
        let to = [states(AccessKind::Store4)].into_iter().chain(totals(AccessKind::StoreBits)).collect();
        let locals = Self { reports: self.reports && self.reads.is_none(), ..self.clone() };
        let locals = locals.states_alone(chunking, segment, (ends, to));
        let (ends, mut tensors) = self.ends();
        tensors.push(states(AccessKind::Update4));
        tensors.extend(totals(AccessKind::LoadBits));
        tensors.extend(self.fades());
        let constants =
            [("WG", THREADS), ("CHUNK", chunking.chunk), self.whole(), ("KEPT", usize::from(self.kept)), self.causal()];
        let scan = Task {
            name: "scan of segments",
            files: vec![file::LINEAR_STATES, file::LINEAR_CHUNKS_BOUNDS, file::LINEAR_CHUNKS_LEFT, file::LINEAR_SCAN],
            constants: [&constants[..], &ends].concat(),
            tensors,
            segment,
            work: self.work((dims.0 * dims.1.div_ceil(4)).div_ceil(THREADS)),
            runs: 0..1,
            flops: (12 * THREADS * self.frame.segments(segment)) as f64,
        };
        let outputs = self.reads.map(|_| self.outputs_of_segments(chunking));
        [locals, scan].into_iter().chain(outputs).collect()
    }

    /// Whether the state after the last segment is wanted.
    fn whole(&self) -> (&'static str, usize) {
        ("WHOLE", usize::from(self.to.is_some() || self.kept || !self.causal))
    }

    /// The kernel that only absorbs, so many tokens each workgroup.
    fn states_alone(
        &self,
        chunking: &Chunking,
        tokens: usize,
        (mut constants, mut tensors): (Vec<(&'static str, usize)>, Vec<Access>),
    ) -> Task {
        let [k, v] = self.adds.expect("chunks absorb");
        constants.push(self.whole());
        tensors.extend([("k", k, AccessKind::Load4), ("v", v, AccessKind::Load4)]);
        let mut task = self.over_chunks("states of segments", chunking, tokens, &constants, tensors);
        task.files.push(file::LINEAR_SEGMENT_STATES);
        task
    }

    /// How rows fade, if they do apart.
    fn fades(&self) -> Vec<Access> {
        FADES.iter().filter(|_| self.frame.decay.is_by_row()).map(|&name| (name, name, AccessKind::Load4)).collect()
    }

    /// The gates, and their sums, by which all channels fade alike: none, where each fades apart.
    fn decays_files(&self, gates: &'static str) -> [&'static str; 3] {
        let running = match self.frame.decay {
            Decay::ByToken => file::LINEAR_DECAYS_BY_TOKEN,
            _ => file::LINEAR_DECAYS_BY_HEAD,
        };
        [file::LINEAR_REPORT, gates, running]
    }
}
