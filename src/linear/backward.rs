//! Gradients: three walks with the tensors in other places. With S the state after a token and dS its gradient,
//!
//! ```text
//! dq = scale · S dout          from the first token to the last, as S comes about
//! dk = dS v,  dv = dSᵀ k       from the last to the first: dS ← e^g · dS after a token, then dS + scale · q doutᵀ
//! ```
//!
//! The delta rule (`delta.rs`) has five.

use super::checks::{check_output, check_tensor};
use super::chunking::{CHUNK, Chunking, How, segment_tokens};
use super::delta;
use super::ends::StateSource;
use super::names::Tensor;
use super::normalizer::Normalizer;
use super::recurrent::Recurrent;
use super::shapes::{INPUTS, LinearShapes, NUMBERS};
use super::sums::{AHEAD, BEHIND, Sum, each, sum_of_heads};
use super::task::{Decay, Frame, THREADS, Task};
use super::walk::Walk;
use super::{LinearAlgorithm, LinearParams, LinearRule};
use crate::error::{require, require_set};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand, Program};
use crate::{Caps, DType, Layout, Result, Shapes};

/// Tokens between the states that the gates' gradient wants, token by token, where they fit: sums over shorter segments round less.
/// Each of two walks keeps tokens / KEPT + 1 states of a head, head_dim · value_dim numbers.
const KEPT: usize = 32;

impl LinearParams {
    /// The program that computes gradients. Besides the inputs of [`LinearParams::plan`], it reads `dout`, with the output's shape, and
    /// where present `dht`, with the last state's. It writes dq, dk and dv; with gates, `dg`, f32, with their shape; with betas, `dbeta`,
    /// f32, with their shape; with slopes, `dslopes`, f32 [1, heads, 1, 1]; and with h0, `dh0`. With a normaliser, `dzt` is read and `dz0`
    /// written, likewise; with momentum `dst` and `ds0`, and `dalpha`, `deta` and `dtheta` are written, f32, with the shapes of what they are of.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`].
    pub fn plan_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let more = ["dout", "dht", "dzt", "dst", "dq", "dk", "dv", "dg", "dbeta", "dslopes", "dh0", "dz0"];
        let of_momentum = ["dalpha", "deta", "dtheta", "ds0"];
        shapes.check_names(&[&INPUTS[..], &more, &of_momentum].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let inputs = LinearShapes::new(&mut builder, self, shapes, false)?;
        self.declare(&mut builder, &inputs)?;
        match inputs.momentum.is_some() {
            true => self.momentum_gradients(builder, &inputs),
            false => self.gradients(builder, &inputs),
        }
    }

    /// The kernels of what is declared.
    pub(super) fn gradients(&self, mut builder: Builder, inputs: &LinearShapes) -> Result<Program> {
        let caps = builder.caps;
        let gated = inputs.g.is_some() || self.slopes.is_some();
        let forward = inputs.frame(self);
        self.add_features(&mut builder, inputs, &forward)?;
        let [to_q, to_k] = self.feature_gradients(&mut builder, inputs)?;
        let (mut walks, sums) = match self.rule {
            LinearRule::Linear => {
                let sums = [("dq by heads", to_q, gated), ("dk by heads", to_k, gated), ("dv by heads", "dv", false)];
                let mut by_heads = sums.map(|(from, to, _)| Sum::of(from, to));
                for (sum, (.., exact)) in by_heads.iter_mut().zip(sums) {
                    sum.from = each(&mut builder, *sum, exact, forward.dims.1, inputs.heads())?;
                }
                let walks = self.walks(&builder, inputs, by_heads.map(|sum| sum.from), gated);
                (walks.to_vec(), by_heads)
            }
            _ => delta::walks(self, &mut builder, inputs, [to_q, to_k], gated)?,
        };
        let dg = match &inputs.g {
            Some(_) => Sum {
                from: each(&mut builder, Sum::of("dg by heads", "dg"), true, usize::MAX, inputs.heads())?,
                ..Sum::of("", "dg")
            },
            None => Sum::of("dg", "dg"),
        };
        if self.slopes.is_some() {
            let [batch, heads, tokens, _] = inputs.output_shape();
            builder.scratch("dg", Layout::heads_first(DType::F32, [batch, heads, tokens, 1]))?;
        }
        let (chunk, packed) = (self.chunk.unwrap_or(CHUNK), inputs.are_packed());
        let by_token = inputs.is_summary || self.by_token(caps, &walks, packed);
        let algorithm = if by_token { LinearAlgorithm::Recurrent } else { LinearAlgorithm::ThreePass };
        if by_token {
            let segment = kept_segment(caps, &walks[0].frame);
            walks.iter_mut().for_each(|walk| walk.segment = segment);
        }
        let around = Normalizer { params: self, inputs, frame: &forward };
        if inputs.is_summary {
            around.joint().values(&mut builder, inputs.names.v, false)?;
            around.joint().join(&mut builder, ["dadded", "dtransition"], inputs.names.dht)?;
        } else if self.normalize.is_some() {
            // Its own kernels, and the forward walk, whose output is divided.
            around.before(&mut builder, inputs.has_state().then_some(["h0", "z0"]))?;
            builder.scratch(inputs.names.o, around.output())?;
            let again = self.forward_walk(inputs, walks[0].segment);
            let chunking = Chunking::new(caps, chunk, again.frame.dims)?;
            again.add(&mut builder, How { algorithm, chunking, packed })?;
            around.gradient(&mut builder)?;
            if inputs.behind(&builder) != StateSource::Nothing {
                around.joint().join(&mut builder, ["dht", "dzt"], inputs.names.dht)?;
            }
            if inputs.has_state() {
                builder.scratch(inputs.names.dh0, around.joint().states())?;
            }
        }
        for walk in walks.iter().filter(|walk| walk.leaves_something()) {
            let chunking = Chunking::new(caps, chunk, walk.frame.dims)?;
            walk.add(&mut builder, How { algorithm, chunking, packed })?;
        }
        // That of dq, whose state has the keys' channels for columns.
        let ahead = walks.iter().find(|walk| walk.states == AHEAD).expect("one of the walks");
        let frame = &ahead.frame;
        for task in gate_gradients(ahead, inputs, &sums, dg.from, self.slopes.is_some()) {
            task.add(&mut builder, frame)?;
        }
        if let Some(dbeta) = builder.tensor("dbeta") {
            delta::beta_gradient(frame, &dbeta).add(&mut builder, frame)?;
        }
        for sum in sums.into_iter().chain([dg]).filter(|sum| sum.from != sum.to) {
            let to = builder.operand(sum.to).expect("declared, or made for features");
            sum_of_heads(frame, sum, &to).add(&mut builder, frame)?;
        }
        self.add_feature_gradients(&mut builder, inputs, frame)?;
        if self.normalize.is_some() && inputs.has_state() {
            around.joint().split(&mut builder, inputs.names.dh0, ["dh0", "dz0"])?;
        }
        let segment = ahead.segment;
        let three = || {
            format!(
                "of three passes each over {} segments of {segment} tokens in chunks of {chunk}",
                frame.segments(segment)
            )
        };
        builder.finish(format!(
            "gradients of {}: {} {}{}",
            if inputs.is_summary { "a summary of linear attention" } else { "linear attention" },
            match self.rule {
                LinearRule::Linear => "three walks (dq, dk, dv)",
                _ => "five walks (corrections, dv, dk in two parts, dq)",
            },
            if by_token { walks[0].one_by_one(caps, packed).name().into() } else { three() },
            if gated { ", then the gates' by segments" } else { "" }
        ))
    }

    /// Whether the walks go token by token: in engine `processor`, unless the caller asks for chunks, and where chunks do not serve.
    fn by_token(&self, caps: &Caps, walks: &[Walk], packed: bool) -> bool {
        let fits = |walk: &Walk| matches!(walk.one_by_one(caps, packed), Recurrent::Subgroup { .. });
        let asked = self.chunk.is_some() || !matches!(self.algorithm, None | Some(LinearAlgorithm::Recurrent));
        let only = self.rule == LinearRule::Delta || walks[0].frame.decay == Decay::ByChannel;
        only || self.causal && !asked && walks.iter().all(fits)
    }

    /// What comes in and what goes out.
    fn declare(&self, builder: &mut Builder, inputs: &LinearShapes) -> Result<()> {
        let (dout, dht) = (builder.input("dout")?, builder.tensor("dht"));
        let state = inputs.state();
        check_tensor("dout", Some(&dout), Some(inputs.output_shape()), false)?;
        check_tensor("dht", dht.as_ref(), Some(state.shape), true)?;
        let dzt = builder.tensor("dzt");
        require(dzt.is_none() || self.normalize.is_some(), "dzt", "set", "unset without a normaliser")?;
        check_tensor("dzt", dzt.as_ref(), Some(inputs.key_sums().shape), true)?;
        let dst = builder.tensor("dst");
        require(dst.is_none() || inputs.momentum.is_some(), "dst", "set", "unset, except for the rule momentum")?;
        check_tensor("dst", dst.as_ref(), Some(inputs.state().shape), true)?;
        let s0 = inputs.momentum.as_ref().and_then(|momentum| momentum.s0.as_ref());
        let of_queries = Layout::heads_first(inputs.q.layout.dtype, inputs.q.shape());
        let of_states = [
            ("dq", Some(of_queries), false),
            ("dh0", inputs.h0.as_ref().map(|_| state), true),
            ("dz0", inputs.z0.as_ref().map(|_| inputs.key_sums()), true),
            ("ds0", s0.map(|_| inputs.state()), true),
        ];
        for (name, layout, is_exact) in of_states.into_iter().chain(self.gradients_of_tokens(inputs)) {
            self.declare_gradient(builder, name, layout, is_exact)?;
        }
        for (i, name) in ["dalpha", "deta", "dtheta"].into_iter().enumerate() {
            let step = inputs.momentum.as_ref().map(|momentum| momentum.steps[i].shape());
            self.declare_gradient(builder, name, step.map(|shape| Layout::heads_first(DType::F32, shape)), true)?;
        }
        Ok(())
    }

    /// Gradients of what states are made of: name, layout, whether it is f32 only.
    pub(super) fn gradients_of_tokens(&self, inputs: &LinearShapes) -> [(Tensor, Option<Layout>, bool); 5] {
        let like = |operand: &Operand| Some(Layout::heads_first(operand.layout.dtype, operand.shape()));
        let exact = |shape| Layout::heads_first(DType::F32, shape);
        [
            ("dk", like(&inputs.k), false),
            ("dv", like(&inputs.v), false),
            ("dg", inputs.g.as_ref().map(|g| exact(g.shape())), true),
            ("dbeta", inputs.beta.as_ref().map(|beta| exact(beta.shape())), true),
            ("dslopes", self.slopes.as_ref().map(|_| exact([1, inputs.heads(), 1, 1])), true),
        ]
    }

    /// A gradient that goes out, unless there is nothing that it would be of.
    pub(super) fn declare_gradient(
        &self,
        builder: &mut Builder,
        name: Tensor,
        layout: Option<Layout>,
        is_exact: bool,
    ) -> Result<()> {
        let given = builder.tensor(name).is_some();
        require_set(name, given, given && layout.is_some(), "like what it is the gradient of")?;
        let Some(layout) = layout else { return Ok(()) };
        let shape = layout.shape;
        check_output(name, Some(&builder.output(name, layout)?), shape, is_exact)
    }

    /// The forward walk of the linear rule, which leaves no state.
    fn forward_walk(&self, inputs: &LinearShapes, segment: usize) -> Walk {
        let names = inputs.names;
        Walk {
            adds: Some([names.k, names.v]),
            reads: Some([names.q, names.o]),
            from: inputs.from(),
            causal: self.causal,
            segment,
            ..Walk::over(inputs.frame(self), "states once more")
        }
    }

    /// The walks that give dq, dk and dv. Gates want states from both sides at short distances.
    fn walks(&self, builder: &Builder, inputs: &LinearShapes, each: [Tensor; 3], gated: bool) -> [Walk; 3] {
        let forward = inputs.frame(self);
        let (scale, (head_dim, value_dim)) = (forward.scale, forward.dims);
        let ahead = Frame { dims: (value_dim, head_dim), ..forward.clone() };
        let back = Frame { reverse: !forward.reverse, late: true, scale: 1.0, gain: scale, ..forward };
        let chunk = self.chunk.unwrap_or(CHUNK);
        let (before, behind, names) = (inputs.from(), inputs.behind(builder), inputs.names);
        let queries = inputs.queries();
        let walk = |adds, reads, frame, states| Walk {
            adds,
            reads,
            causal: self.causal,
            segment: if gated { chunk } else { segment_tokens(chunk) },
            ..Walk::over(frame, states)
        };
        let [dq, dk, dv] = each;
        [
            Walk {
                turned: true,
                from: before.turned(),
                kept: gated,
                ..walk(Some([names.v, names.k]), queries.map(|[_, dout]| [dout, dq]), ahead, AHEAD)
            },
            Walk {
                turned: true,
                from: behind.turned(),
                kept: gated,
                ..walk(
                    queries.map(|[q, dout]| [dout, q]),
                    Some([names.v, dk]),
                    Frame { dims: (value_dim, head_dim), ..back.clone() },
                    BEHIND,
                )
            },
            Walk {
                from: behind,
                to: inputs.has_state().then_some(names.dh0),
                reports: inputs.g.is_some(),
                ..walk(queries, Some([names.k, dv]), back, "states")
            },
        ]
    }
}

/// Tokens between states that are kept: such that those of a head fit a binding, and those of all heads of an entry a buffer, if any do.
fn kept_segment(caps: &Caps, frame: &Frame) -> usize {
    let state = 4 * frame.dims.0 as u64 * frame.dims.1 as u64;
    let fits = |&segment: &usize| {
        let head = (frame.tokens.div_ceil(segment) as u64 + 1) * state;
        head <= caps.binding_bytes && head.saturating_mul(frame.heads as u64) <= caps.buffer_bytes
    };
    let longest = 16 * KEPT;
    [KEPT, 2 * KEPT, 4 * KEPT, 8 * KEPT].into_iter().find(fits).unwrap_or(longest)
}

/// The gates' gradient, and the slopes', from what the walks for dq and dk leave. `walk` is that of dq.
fn gate_gradients(
    walk: &Walk,
    inputs: &LinearShapes,
    [dq, dk, _]: &[Sum; 3],
    to: Tensor,
    with_slopes: bool,
) -> Vec<Task> {
    let Walk { frame, segment, .. } = walk;
    if frame.decay == Decay::None {
        return vec![];
    }
    let (segment, entries) = (*segment, frame.entries());
    let (rows, columns) = frame.dims;
    let by_channel = frame.decay == Decay::ByChannel;
    let names = inputs.names;
    let of_queries = inputs.queries().map(|[q, _]| [("q", q), ("dq", dq.from)]);
    let reads = [("k", names.k), ("dk", dk.from), ("states", AHEAD), ("behind", BEHIND)];
    let reads = reads.into_iter().chain(of_queries.into_iter().flatten()).chain(dk.less.map(|less| ("less", less)));
    let dg = if by_channel { AccessKind::Update4 } else { AccessKind::StoreBits };
    let tensors = reads.map(|(name, tensor)| (name, tensor, AccessKind::Load4)).chain([("dg", to, dg)]);
    let (segments, quads) = (frame.segments(segment), columns.div_ceil(4));
    let gates = Task {
        name: if by_channel { "gradient of gates by channel" } else { "gradient of gates" },
        files: match by_channel {
            true => vec![file::LINEAR_GATE_GRADIENT_BY_CHANNEL],
            false => vec![file::LINEAR_GATE_GRADIENT, file::SUM],
        },
        constants: vec![("WG", THREADS), ("SEGMENT", segment)],
        tensors: tensors.collect(),
        segment,
        work: [entries, frame.heads, if by_channel { (segments * quads).div_ceil(THREADS) } else { segments }],
        runs: 0..1,
        flops: (4 * rows * columns + 4 * segment * columns + segment * segment) as f64,
    };
    let slopes = Task {
        name: "gradient of slopes",
        files: vec![file::LINEAR_SLOPE_GRADIENT, file::SUM],
        constants: vec![("WG", 256), ("ENTRIES", entries)],
        tensors: vec![("dg", "dg", AccessKind::Load1), ("o", "dslopes", AccessKind::StoreBits)],
        segment: frame.whole(),
        work: [1, frame.heads, 1],
        runs: 0..1,
        flops: (entries * frame.longest()) as f64,
    };
    [gates].into_iter().chain(with_slopes.then_some(slopes)).collect()
}
