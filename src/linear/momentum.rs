//! Titans' linear memory: a state, its momentum, and steps of gradient descent (`shaders/linear/momentum/shared.wgsl`). It goes token by
//! token, or, if that is asked for, over chunks; gradients go token by token: they keep both states, go back by segments, and compute the states
//! of each again.

mod chunks;

use super::LinearParams;
use super::checks::check_output;
use super::ends::StateSource;
use super::names::Tensor;
use super::shapes::LinearShapes;
use super::steps::STEPS;
use super::sums::{Sum, sum_of_heads};
use super::task::{Access, Frame, THREADS, Task};
use super::walk::Walk;
use crate::error::require;
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand, Program, Rule, Source};
use crate::{AdapterKind, Caps, DType, Layout, Result};

/// Tokens of a chunk at most: a dispatch goes over whole chunks, and no more tokens than so many.
pub(super) const MOST: usize = 256;
/// Tokens of a segment: the first with which the states fit, or the one with the fewest of them.
const SEGMENTS: [usize; 6] = [32, 16, 8, 64, 128, MOST];
/// How a workgroup divides both states: columns of them, and threads.
#[derive(Clone, Copy)]
struct Division {
    cols: usize,
    threads: usize,
}

/// What the rule does not go with.
pub(super) fn check(params: &LinearParams) -> Result<()> {
    if let Some(chunk) = params.chunk {
        let bound = format!("within 1..={MOST} with the rule momentum: tokens whose errors are those of one memory");
        require((1..=MOST).contains(&chunk), "chunk", chunk, bound)?;
    }
    chunks::check(params)?;
    require(params.slopes.is_none(), "slopes", "set", "unset with the rule momentum: alpha is what memory forgets")
}

/// Segments, and how they lie in chunks: `UNIT` and `SEGMENT` of the shaders.
#[derive(Clone, Copy)]
struct Spans {
    chunk: usize,
    segment: usize,
    unit: usize,
}

impl Spans {
    /// Segments of whole chunks, or chunks of several segments.
    fn new(chunk: usize, segment: usize) -> Self {
        Self { chunk, segment, unit: if chunk <= segment { segment / chunk * chunk } else { chunk } }
    }

    /// Slots of states: the working ones, one for each token of a segment; the gradients'; what each segment of so many tokens begins
    /// with, and what the last leaves.
    fn slots(self, tokens: usize) -> usize {
        self.segment + 1 + tokens.div_ceil(self.unit) * self.unit.div_ceil(self.segment) + 1
    }

    /// Tokens of a dispatch: whole units.
    fn stretch(self) -> usize {
        MOST / self.unit * self.unit
    }

    fn constants(self) -> [(&'static str, usize); 3] {
        [("CHUNK", self.chunk), ("SEGMENT", self.segment), ("UNIT", self.unit)]
    }
}

/// What both passes go over.
struct Plan<'a> {
    inputs: &'a LinearShapes,
    frame: Frame,
    spans: Spans,
    forward: Division,
    backward: Division,
}

impl LinearParams {
    /// The kernels of a forward pass, whose outputs are declared but for the momentum's.
    pub(super) fn plan_momentum(&self, mut builder: Builder, inputs: &LinearShapes) -> Result<Program> {
        let state = inputs.state();
        let in_place = builder.tensor("state").is_some();
        let (st, s) = (builder.output_if("st", || state.clone())?, builder.tensor("s"));
        check_output("st", st.as_ref(), state.shape, false)?;
        check_output("s", s.as_ref(), state.shape, false)?;
        let found = if s.is_some() { "set" } else { "unset" };
        require(s.is_some() == in_place, "s", found, "set where the state is updated in place, and only there")?;
        let s0 = inputs.momentum.as_ref().is_some_and(|momentum| momentum.s0.is_some());
        for (name, is_there) in [("s0", s0), ("st", st.is_some())] {
            require(!in_place || !is_there, name, "set", "unset where the state is updated in place")?;
        }
        let plan = Plan::new(&builder, self, inputs)?;
        self.add_features(&mut builder, inputs, &plan.frame)?;
        let from = |name| builder.tensor(name).map(|_| name);
        let ends = [("state", "h0", "ht", "memory"), ("s", "s0", "st", "momentum")];
        let ends = ends.map(|(place, from_there, to, own)| match in_place {
            true => (Some(place), Some(place), own),
            false => (from(from_there), from(to), own),
        });
        if let Some((chunks, why)) = plan.chunks(self, builder.caps)? {
            plan.add_steps(&mut builder, false)?;
            let words = chunks.add(&plan, &mut builder, ends.map(|(from, to, _)| (from, to)), &why)?;
            return builder.finish(words);
        }
        let ahead = plan.spans.chunk > 1;
        plan.add_steps(&mut builder, ahead)?;
        let mut places = vec![];
        for (from, to, own) in ends {
            places.push(plan.place(&mut builder, from, to, own)?);
        }
        let names = inputs.names;
        let mut tensors = vec![
            ("q", names.q, AccessKind::Load4),
            ("memory", places[0], AccessKind::Update4),
            ("momentum", places[1], AccessKind::Update4),
            ("o", names.o, AccessKind::Store4),
        ];
        tensors.extend(ahead.then_some(("errors", ERRORS, AccessKind::Update4)));
        plan.forward(tensors, false).add(&mut builder, &plan.frame)?;
        for ((_, to, _), at) in ends.into_iter().zip(places) {
            if let Some(to) = to.filter(|&to| to != at) {
                plan.bring(&mut builder, Some(at), to)?;
            }
        }
        builder.finish(format!("linear attention, {}", plan.words()))
    }

    /// The kernels of gradients, whose outputs are declared.
    pub(super) fn momentum_gradients(&self, mut builder: Builder, inputs: &LinearShapes) -> Result<Program> {
        let plan = Plan::new(&builder, self, inputs)?;
        let frame = &plan.frame;
        self.add_features(&mut builder, inputs, frame)?;
        let [to_q, to_k] = self.feature_gradients(&mut builder, inputs)?;
        plan.add_steps(&mut builder, true)?;
        plan.add_states(&mut builder)?;
        let tiles = plan.add_sums(&mut builder)?;
        let given = |builder: &Builder, name| builder.tensor(name).map(|_| name);
        for (from, to) in ["h0", "s0", "dht", "dst"].into_iter().zip(SLOTS) {
            let from = given(&builder, from);
            plan.bring(&mut builder, from, to)?;
        }
        let kept = ("states", STATES, AccessKind::Update4);
        let errors = ("errors", ERRORS, AccessKind::Update4);
        plan.forward(vec![kept, errors], true).add(&mut builder, frame)?;
        plan.backward(vec![kept, errors]).add(&mut builder, frame)?;
        let of_tiles = Frame { heads: frame.heads * tiles, ..frame.clone() };
        let [dq, dk, steps @ ..] = SUMS;
        let sums = [(dq, to_q), (dk, to_k)].into_iter().chain(steps.into_iter().zip(["dalpha", "deta", "dtheta"]));
        for (from, to) in sums {
            let operand = builder.operand(to).expect("declared, or made for features");
            sum_of_heads(&of_tiles, Sum::of(from, to), &operand).add(&mut builder, &of_tiles)?;
        }
        let dv = builder.operand("dv").expect("declared");
        sum_of_heads(frame, Sum::of(ERRORS, "dv"), &dv).add(&mut builder, frame)?;
        self.add_feature_gradients(&mut builder, inputs, frame)?;
        for (from, to) in SLOTS[2..].iter().zip(["dh0", "ds0"]) {
            if given(&builder, to).is_some() {
                plan.bring(&mut builder, Some(from), to)?;
            }
        }
        let Spans { segment, unit, .. } = plan.spans;
        builder.finish(format!(
            "gradients of linear attention: {}, with both states kept every {} tokens",
            plan.words(),
            segment.min(unit)
        ))
    }
}

impl Division {
    /// At most 32 numbers of each state a thread. Where threads run on a CPU, one load serves up to so many columns instead: what counts there is
    /// loads and barriers. The sums of a backward pass are as large as what a thread has.
    fn of(caps: &Caps, (head_dim, value_dim): (usize, usize), most: usize) -> Self {
        if caps.kind == AdapterKind::Software && head_dim <= 128 {
            return Self { cols: value_dim.next_power_of_two().clamp(16, most), threads: 64 };
        }
        let cols = 16;
        Self { cols, threads: (head_dim.div_ceil(4) * cols / 8).next_power_of_two().clamp(64, 128) }
    }
}

/// Whether the states of a head fit a binding, and all of them a buffer.
fn fits(caps: &Caps, frame: &Frame, spans: Spans) -> bool {
    let (rows, columns) = frame.dims;
    let head = spans.slots(frame.longest()) as u64 * 2 * rows as u64 * 4 * columns as u64;
    head <= caps.binding_bytes && head.saturating_mul((frame.heads * frame.entries()) as u64) <= caps.buffer_bytes
}

const ERRORS: Tensor = "errors";
const STATES: Tensor = "states";
/// In `states`: what the first token finds, then the gradients of what the last one leaves, at the end those of the former.
const SLOTS: [Tensor; 4] = ["memory kept", "momentum kept", "gradient of memory", "gradient of momentum"];
/// What sums over a tile's columns leave: gradients of q, of k, of the steps.
const SUMS: [Tensor; 5] = ["dq by tiles", "dk by tiles", "dalpha by tiles", "deta by tiles", "dtheta by tiles"];
/// The last three together.
const OF_STEPS: Tensor = "gradients of steps by tiles";

impl<'a> Plan<'a> {
    fn new(builder: &Builder, params: &LinearParams, inputs: &'a LinearShapes) -> Result<Self> {
        let frame = inputs.frame(params);
        let chunk = params.chunk.unwrap_or(1);
        let all = SEGMENTS.map(|segment| Spans::new(chunk, segment));
        let fewest = || all.into_iter().min_by_key(|spans| spans.slots(frame.longest())).expect("six");
        let spans = all.into_iter().find(|&spans| fits(builder.caps, &frame, spans)).unwrap_or_else(fewest);
        let [forward, backward] = [64, 32].map(|most| Division::of(builder.caps, frame.dims, most));
        Ok(Self { inputs, spans, frame, forward, backward })
    }

    fn words(&self) -> String {
        let Self { spans: Spans { chunk, .. }, forward: Division { cols, threads }, frame, .. } = self;
        let rows = frame.dims.0;
        let chunks = if *chunk > 1 { format!(", errors of chunks of {chunk} tokens first") } else { String::new() };
        format!("memory with momentum, token by token{chunks}; {threads} threads keep {rows} × {cols} of both states")
    }

    fn tiles(&self, division: Division) -> usize {
        self.frame.dims.1.div_ceil(division.cols)
    }

    /// f32 rows of tokens.
    fn rows(&self, heads: usize, width: usize) -> Layout {
        let [batch, _, tokens, _] = self.inputs.q.shape();
        Layout::heads_first(DType::F32, [batch, heads, tokens, width])
    }

    /// The steps of all tokens, within their bounds, and what tells of others; room for errors beside them, so that one binding has both.
    fn add_steps(&self, builder: &mut Builder, with_errors: bool) -> Result<()> {
        let Self { frame, inputs, .. } = self;
        let momentum = inputs.momentum.as_ref().expect("checked");
        let width = if with_errors { frame.dims.1 } else { 0 };
        let both = builder.scratch("steps and errors", self.rows(frame.heads, 4 + width))?;
        for (name, part) in [("steps", 0..4), (ERRORS, 4..4 + width)] {
            builder.name(name, both.view(both.layout.clone().narrow(3, part)?));
        }
        let segments = frame.longest().div_ceil(THREADS).max(1);
        let words = Layout::heads_first(DType::U32, [frame.entries(), frame.heads, 1, segments]);
        let problem = builder.scratch("problem", words)?;
        if let Source::Scratch(scratch) = problem.source {
            let of = momentum.steps.each_ref().map(|step| step.shape()[1]);
            let packed = inputs.are_packed();
            builder.check(scratch, Rule::Momentum { heads: frame.heads, of, segments, packed });
        }
        let group = |step: &Operand| frame.heads / step.shape()[1].max(1);
        let groups = ["ALPHA_GROUP", "ETA_GROUP", "THETA_GROUP"].into_iter().zip(momentum.steps.iter().map(group));
        let mut tensors: Vec<Access> = STEPS.into_iter().map(|name| (name, name, AccessKind::Load1)).collect();
        tensors.push(("steps", "steps", AccessKind::Store4));
        tensors.push(("problem", "problem", AccessKind::StoreBits));
        Task {
            name: "steps of momentum",
            files: vec![file::LINEAR_REPORT, file::LINEAR_MOMENTUM_STEPS],
            constants: [("WG", THREADS)].into_iter().chain(groups).collect(),
            tensors,
            segment: frame.whole(),
            work: [frame.entries(), frame.heads, segments],
            runs: 0..1,
            flops: (8 * THREADS) as f64,
        }
        .add(builder, frame)
    }

    /// All slots of states, and names for those that begin.
    fn add_states(&self, builder: &mut Builder) -> Result<()> {
        let (rows, columns) = self.frame.dims;
        let slots = self.spans.slots(self.frame.longest());
        let shape = [self.frame.entries(), self.frame.heads, slots * 2 * rows, columns];
        let all = builder.scratch(STATES, Layout::heads_first(DType::F32, shape))?;
        let gradients = self.spans.segment;
        let kept = gradients + 1;
        let places = [2 * kept, 2 * kept + 1, 2 * gradients, 2 * gradients + 1];
        for (name, at) in SLOTS.into_iter().zip(places) {
            builder.name(name, all.view(all.layout.clone().narrow(2, at * rows..(at + 1) * rows)?));
        }
        Ok(())
    }

    /// What sums over columns leave, side by side in one buffer; how many tiles a head has.
    fn add_sums(&self, builder: &mut Builder) -> Result<usize> {
        let (rows, tiles) = (self.frame.dims.0, self.tiles(self.backward));
        let width = rows.next_multiple_of(4);
        let all = builder.scratch("sums by tiles", self.rows(self.frame.heads * tiles, 2 * width + 4))?;
        let steps = [0, 1, 2].map(|i| 2 * width + i..2 * width + i + 1);
        let parts = [0..rows, width..width + rows].into_iter().chain(steps);
        for (name, part) in SUMS.into_iter().zip(parts).chain([(OF_STEPS, 2 * width..2 * width + 4)]) {
            builder.name(name, all.view(all.layout.clone().narrow(3, part)?));
        }
        Ok(tiles)
    }

    /// Where a state goes on, with what it begins with: where it ends, unless it would be rounded between.
    fn place(&self, builder: &mut Builder, from: Option<Tensor>, to: Option<Tensor>, own: Tensor) -> Result<Tensor> {
        let dtype = |name: Tensor| builder.tensor(name).map(|operand| operand.layout.dtype);
        let exact = |to: Tensor| {
            let one = self.frame.segments(self.spans.stretch()) == 1;
            let brought = from.is_none_or(|from| dtype(from) == dtype(to));
            dtype(to) == Some(DType::F32) || one && brought
        };
        let at = match to.filter(|&to| exact(to)) {
            Some(to) => to,
            None => {
                builder.scratch(own, self.inputs.state())?;
                own
            }
        };
        if from != Some(at) {
            self.bring(builder, from, at)?;
        }
        Ok(at)
    }

    /// Copies a state, or begins with an empty one.
    fn bring(&self, builder: &mut Builder, from: Option<Tensor>, to: Tensor) -> Result<()> {
        let from = from.map_or(StateSource::Nothing, StateSource::H0);
        let walk = Walk { from, to: Some(to), ..Walk::over(self.frame.clone(), STATES) };
        walk.add_tasks(builder, [walk.initial()])
    }

    /// From token to token.
    fn forward(&self, tensors: Vec<Access>, kept: bool) -> Task {
        let loads = [("k", self.inputs.names.k), ("v", self.inputs.names.v), ("steps", "steps")];
        let loads = loads.map(|(name, tensor)| (name, tensor, AccessKind::Load4));
        let of_text = [("BATCH", 512 / self.forward.threads), ("KEPT", usize::from(kept))];
        let name = if kept { "kept memory with momentum" } else { "memory with momentum" };
        self.task(
            name,
            (file::LINEAR_MOMENTUM_FORWARD, of_text.into()),
            [&loads, &tensors[..]].concat(),
            self.forward,
            10,
        )
    }

    /// From the last token to the first.
    fn backward(&self, tensors: Vec<Access>) -> Task {
        let names = self.inputs.names;
        let loads = [("q", names.q), ("k", names.k), ("dout", names.dout), ("steps", "steps")];
        let loads = loads.map(|(name, tensor)| (name, tensor, AccessKind::Load4));
        let [dq, dk, ..] = SUMS;
        let stores = [("dq", dq), ("dk", dk), ("dsteps", OF_STEPS)];
        let stores = stores.map(|(name, tensor)| (name, tensor, AccessKind::Store4));
        let tensors = [&loads, &tensors[..], &stores].concat();
        self.task(
            "gradients of memory with momentum",
            (file::LINEAR_MOMENTUM_BACKWARD, vec![("KEPT", 1)]),
            tensors,
            self.backward,
            40,
        )
    }

    fn task(
        &self,
        name: &'static str,
        (text, of_text): (&'static str, Vec<(&'static str, usize)>),
        tensors: Vec<Access>,
        division: Division,
        work: usize,
    ) -> Task {
        let stretch = self.spans.stretch();
        let own = [("WG", division.threads), ("COLS", division.cols)];
        let tokens = stretch.min(self.frame.longest());
        Task {
            name,
            files: vec![file::LINEAR_MOMENTUM, file::LINEAR_MOMENTUM_STEP, text],
            constants: own.into_iter().chain(self.spans.constants()).chain(of_text).collect(),
            tensors,
            segment: stretch,
            work: [self.frame.entries(), self.frame.heads, self.tiles(division)],
            runs: 0..self.frame.segments(stretch),
            flops: (work * tokens * self.frame.dims.0 * division.cols) as f64,
        }
    }
}
