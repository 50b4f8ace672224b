//! Gradients: three walks with the tensors in other places. With S the state after a token and dS its gradient,
//!
//! ```text
//! dq = scale · S dout          from the first token to the last, as S comes about
//! dk = dS v,  dv = dSᵀ k       from the last to the first: dS ← e^g · dS after a token, then dS + scale · q doutᵀ
//! ```

use super::chunking::{CHUNK, Chunking, segment_tokens};
use super::recurrent::Recurrent;
use super::shapes::{INPUTS, LinearShapes, NUMBERS, check_output, check_tensor};
use super::task::{Decay, Frame, THREADS, Task};
use super::walk::{StateSource, Tensor, Walk};
use super::{LinearAlgorithm, LinearParams};
use crate::error::require_set;
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand, Program};
use crate::{Caps, DType, Layout, Result, Shapes};

/// One of q, k and v: where a walk leaves its gradient by heads of the state, and the gradient.
#[derive(Clone, Copy)]
struct Sum {
    from: Tensor,
    to: Tensor,
    /// Whether the gates' gradient needs it in f32.
    exact: bool,
}

const SUMS: [Sum; 3] = [
    Sum { from: "dq by heads", to: "dq", exact: true },
    Sum { from: "dk by heads", to: "dk", exact: true },
    Sum { from: "dv by heads", to: "dv", exact: false },
];

/// Tokens between the states that the gates' gradient wants, token by token, where they fit: sums over shorter segments round less.
/// Each of two walks keeps tokens / KEPT + 1 states of a head, head_dim · value_dim numbers.
const KEPT: usize = 32;
/// Storage buffers of a walk that keeps states and has gates of tokens.
const BUFFERS: u32 = 9;

impl LinearParams {
    /// The program that computes gradients. Besides the inputs of [`LinearParams::plan`], it reads `dout`, with the output's shape, and
    /// where present `dht`, with the last state's. It writes dq, dk and dv; with gates of tokens, `dg`, f32 [batch, heads, tokens, 1]; with
    /// slopes, `dslopes`, f32 [1, heads, 1, 1]; and with h0, `dh0`.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`].
    pub fn plan_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let more = ["dout", "dht", "dq", "dk", "dv", "dg", "dslopes", "dh0"];
        shapes.check_names(&[&INPUTS[..], &more].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let inputs = LinearShapes::new(&builder, self, shapes)?;
        self.declare(&mut builder, &inputs)?;
        let gated = inputs.g.is_some() || self.slopes.is_some();
        let mut each = [""; 3];
        for (each, sum) in each.iter_mut().zip(SUMS) {
            *each = self::each(&mut builder, sum, gated, inputs.heads())?;
        }
        let mut walks = self.walks(&builder, &inputs, each, gated);
        if self.slopes.is_some() {
            let [batch, heads, tokens, _] = inputs.output_shape();
            builder.scratch("dg", Layout::heads_first(DType::F32, [batch, heads, tokens, 1]))?;
        }
        let (chunk, packed) = (self.chunk.unwrap_or(CHUNK), inputs.cu_seqlens.is_some());
        let by_token = self.by_token(caps, &walks, packed);
        let algorithm = if by_token { LinearAlgorithm::Recurrent } else { LinearAlgorithm::ThreePass };
        if by_token && states_fit(caps, &walks[0].frame) {
            walks.iter_mut().for_each(|walk| walk.segment = KEPT);
        }
        for walk in &walks {
            let chunking = Chunking::new(caps, chunk, walk.frame.dims)?;
            walk.add(&mut builder, algorithm, &chunking, packed)?;
        }
        let frame = &walks[0].frame;
        for task in gate_gradients(&walks[0], each, self.slopes.is_some()) {
            task.add(&mut builder, frame)?;
        }
        for (sum, _) in SUMS.into_iter().zip(each).filter(|(sum, each)| *each != sum.to) {
            let to = builder.input(sum.to)?;
            sums(frame, sum, &to).add(&mut builder, frame)?;
        }
        let segment = walks[0].segment;
        let three = || {
            format!(
                "of three passes each over {} segments of {segment} tokens in chunks of {chunk}",
                frame.segments(segment)
            )
        };
        builder.finish(format!(
            "gradients of linear attention: three walks (dq, dk, dv) {}{}",
            if by_token { "token by token by engine processor".into() } else { three() },
            if gated { ", then the gates' by segments" } else { "" }
        ))
    }

    /// Whether the walks go token by token: in engine `processor`, unless the caller asks for chunks.
    fn by_token(&self, caps: &Caps, walks: &[Walk; 3], packed: bool) -> bool {
        let fits = |walk: &Walk| matches!(walk.one_by_one(caps, packed), Recurrent::Subgroup { .. });
        let asked = self.chunk.is_some() || !matches!(self.algorithm, None | Some(LinearAlgorithm::Recurrent));
        self.causal && !asked && caps.storage_buffers >= BUFFERS && walks.iter().all(fits)
    }

    /// What comes in and what goes out.
    fn declare(&self, builder: &mut Builder, inputs: &LinearShapes) -> Result<()> {
        let (dout, dht) = (builder.input("dout")?, builder.tensor("dht"));
        let state = inputs.state();
        check_tensor("dout", Some(&dout), Some(inputs.output_shape()), false)?;
        check_tensor("dht", dht.as_ref(), Some(state.shape), true)?;
        let like = |operand: &Operand| Some(Layout::heads_first(operand.layout.dtype, operand.shape()));
        let exact = |shape| Layout::heads_first(DType::F32, shape);
        for (name, layout, is_exact) in [
            ("dq", like(&inputs.q), false),
            ("dk", like(&inputs.k), false),
            ("dv", like(&inputs.v), false),
            ("dg", inputs.g.as_ref().map(|g| exact(g.shape())), true),
            ("dslopes", self.slopes.as_ref().map(|_| exact([1, inputs.heads(), 1, 1])), true),
            ("dh0", inputs.h0.as_ref().map(|_| state), true),
        ] {
            let given = builder.tensor(name).is_some();
            require_set(name, given, given && layout.is_some(), "like what it is the gradient of")?;
            let Some(layout) = layout else { continue };
            let shape = layout.shape;
            check_output(name, Some(&builder.output(name, layout)?), shape, is_exact)?;
        }
        Ok(())
    }

    /// The walks that give dq, dk and dv. Gates want states from both sides at short distances.
    fn walks(&self, builder: &Builder, inputs: &LinearShapes, each: [Tensor; 3], gated: bool) -> [Walk; 3] {
        let forward = inputs.frame(self);
        let (scale, (head_dim, value_dim)) = (forward.scale, forward.dims);
        let ahead = Frame { dims: (value_dim, head_dim), ..forward.clone() };
        let back = Frame { reverse: !forward.reverse, late: true, scale: 1.0, gain: scale, ..forward };
        let chunk = self.chunk.unwrap_or(CHUNK);
        let (from_h0, has_dht) = (inputs.h0.is_some(), builder.tensor("dht").is_some());
        let common = |frame, o, states| Walk {
            q: "q",
            k: "k",
            v: "v",
            o,
            from: StateSource::Nothing,
            to: None,
            snapshots: None,
            states,
            kept: false,
            causal: self.causal,
            segment: if gated { chunk } else { segment_tokens(chunk) },
            frame,
        };
        let [dq, dk, dv] = each;
        [
            Walk {
                q: "dout",
                k: "v",
                v: "k",
                from: if from_h0 { StateSource::Turned("h0") } else { StateSource::Nothing },
                kept: gated,
                ..common(ahead, dq, "states ahead")
            },
            Walk {
                q: "v",
                k: "dout",
                v: "q",
                from: if has_dht { StateSource::Turned("dht") } else { StateSource::Nothing },
                kept: gated,
                ..common(Frame { dims: (value_dim, head_dim), ..back.clone() }, dk, "states behind")
            },
            Walk {
                q: "k",
                k: "q",
                v: "dout",
                from: if has_dht { StateSource::H0("dht") } else { StateSource::Nothing },
                to: from_h0.then_some("dh0"),
                ..common(back, dv, "states")
            },
        ]
    }
}

/// Whether the states of a head fit a binding.
fn states_fit(caps: &Caps, frame: &Frame) -> bool {
    let state = 4 * frame.dims.0 as u64 * frame.dims.1 as u64;
    (frame.tokens.div_ceil(KEPT) as u64 + 1) * state <= caps.binding_bytes
}

/// Where a walk leaves a gradient: in its tensor, if that has all heads, and the type that is needed.
fn each(builder: &mut Builder, sum: Sum, gated: bool, heads: usize) -> Result<Tensor> {
    let layout = builder.input(sum.to)?.layout;
    if layout.shape[1] == heads && (layout.dtype == DType::F32 || !(gated && sum.exact)) {
        return Ok(sum.to);
    }
    let [batch, _, tokens, width] = layout.shape;
    builder.scratch(sum.from, Layout::heads_first(DType::F32, [batch, heads, tokens, width]))?;
    Ok(sum.from)
}

/// The gates' gradient, and the slopes', from what the walks for dq and dk leave. `walk` is that of dq.
fn gate_gradients(walk: &Walk, [dq, dk, _]: [Tensor; 3], with_slopes: bool) -> Vec<Task> {
    let Walk { frame, segment, .. } = walk;
    if frame.decay == Decay::None {
        return vec![];
    }
    let (segment, entries) = (*segment, frame.sequences.len());
    let (rows, columns) = frame.dims;
    let gates = Task {
        name: "gradient of gates",
        files: vec![file::LINEAR_GATE_GRADIENT, file::SUM],
        constants: vec![("WG", THREADS), ("SEGMENT", segment)],
        tensors: vec![
            ("q", "q", AccessKind::Load4),
            ("k", "k", AccessKind::Load4),
            ("dq", dq, AccessKind::Load4),
            ("dk", dk, AccessKind::Load4),
            ("states", "states ahead", AccessKind::Load4),
            ("behind", "states behind", AccessKind::Load4),
            ("dg", "dg", AccessKind::StoreBits),
        ],
        segment,
        work: [entries, frame.heads, frame.segments(segment)],
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

/// The sum over the heads that share one.
fn sums(frame: &Frame, sum: Sum, to: &Operand) -> Task {
    let [_, heads, _, width] = to.shape();
    let group = frame.heads / heads.max(1);
    Task {
        name: "sum of heads",
        files: vec![file::LINEAR_SUM_HEADS],
        constants: vec![("WG", THREADS), ("WIDTH", width), ("GROUP", group)],
        tensors: vec![("q", sum.from, AccessKind::Load4), ("o", sum.to, AccessKind::Store4)],
        segment: frame.whole(),
        work: [frame.sequences.len(), heads, (frame.longest() * width.div_ceil(4)).div_ceil(THREADS)],
        runs: 0..1,
        flops: (4 * THREADS * group) as f64,
    }
}
