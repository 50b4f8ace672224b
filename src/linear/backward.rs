//! Gradients: three walks with the tensors in other places. With S the state after a token and dS its gradient,
//!
//! ```text
//! dq = scale · S dout          from the first token to the last, as S comes about
//! dk = dS v,  dv = dSᵀ k       from the last to the first: dS ← e^g · dS after a token, then dS + scale · q doutᵀ
//! ```

mod calls;

pub use calls::LinearBackwardPrepared;

use super::chunking::{CHUNK, Chunking, segment_tokens};
use super::gradients::{LinearBackwardShapes, SLOTS};
use super::parts::Part;
use super::task::{Frame, Gate, THREADS, Task};
use super::walk::{From, Walk};
use super::{LinearParams, LinearWay};
use crate::arguments::Argument;
use crate::shader::{AccessKind, file};
use crate::steps::{EACH, Places, Steps};
use crate::{Caps, DType, Layout, Result};
use std::fmt;

/// What runs for gradients. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearBackwardPlan {
    steps: Steps<Part>,
    /// The caller's tensors by his names.
    arguments: Vec<Argument>,
    words: String,
}

/// One of q, k and v: its gradient, and that by heads of the state.
#[derive(Clone, Copy)]
struct Sum {
    from: Part,
    to: Part,
    /// Whether the gates' gradient needs it in f32.
    exact: bool,
}

const SUMS: [Sum; 3] = [
    Sum { from: Part::EachDq, to: Part::Dq, exact: true },
    Sum { from: Part::EachDk, to: Part::Dk, exact: true },
    Sum { from: Part::EachDv, to: Part::Dv, exact: false },
];

impl LinearBackwardPlan {
    /// Chooses kernels and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device that has
    /// too little.
    pub fn new(caps: &Caps, params: &LinearParams, shapes: &LinearBackwardShapes) -> Result<Self> {
        shapes.check(params)?;
        let mut places = shapes.places();
        let arguments = SLOTS
            .into_iter()
            .filter(|(part, _)| places.has(*part))
            .map(|(part, name)| {
                let written = [Part::Dq, Part::Dk, Part::Dv, Part::Dg, Part::Dslopes, Part::Dh0].contains(&part);
                places.argument(name, part, if written { AccessKind::Store4 } else { AccessKind::Load4 }, EACH)
            })
            .collect();
        let gated = shapes.dg.is_some() || shapes.dslopes.is_some();
        let mut between = vec![];
        let each = SUMS.map(|sum| each(sum, gated, &places, &mut between, shapes));
        let walks = walks(params, shapes, each, gated);
        let chunk = params.chunk.unwrap_or(CHUNK);
        let chunkings = walks.each_ref().map(|walk| Chunking::new(caps, chunk, walk.frame.dims));
        for (walk, chunking) in walks.iter().zip(&chunkings) {
            let chunking = chunking.as_ref().map_err(Clone::clone)?;
            // What tells of segments is the same for each walk, and theirs one after another.
            let new = walk.between(caps, LinearWay::ThreePass, chunking)?.into_iter();
            let known: Vec<Part> = between.iter().map(|(part, _)| *part).collect();
            between.extend(new.filter(|(part, _)| !known.contains(part)));
        }
        if shapes.dslopes.is_some() {
            let [batch, heads, tokens, _] = shapes.dout.shape;
            between.push((Part::Dg, Layout::heads_first(DType::F32, [batch, heads, tokens, 1])));
        }
        for (part, layout) in &between {
            caps.within("gradients by heads", "maxBufferSize", layout.byte_span()?.end, caps.buffer_bytes)?;
            places.own(*part, layout.clone());
        }
        let mut steps = vec![];
        for (walk, chunking) in walks.iter().zip(chunkings) {
            steps.extend(walk.steps(caps, &places, LinearWay::ThreePass, &chunking?)?);
        }
        let frame = &walks[0].frame;
        let more = gate_gradients(&walks[0], each, &places).into_iter().chain(
            SUMS.into_iter().zip(each).filter(|(sum, each)| *each != sum.to).map(|(sum, _)| sums(frame, sum, &places)),
        );
        for task in more {
            steps.push(task.plan(caps, frame, &places)?);
        }
        let segment = walks[0].segment;
        let words = format!(
            "gradients of linear attention: three walks (dq, dk, dv) of three passes each over {} segments of {segment} tokens in \
             chunks of {chunk}{}",
            frame.segments(segment),
            if gated { ", then the gates' by segments" } else { "" }
        );
        Ok(Self { steps: Steps { steps, between }, arguments, words })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        self.steps.wgsl()
    }
}

impl fmt::Display for LinearBackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words)
    }
}

/// Where a walk leaves a gradient: in its tensor, if that has all heads, and the type that is needed.
fn each(
    sum: Sum,
    gated: bool,
    places: &Places<Part>,
    between: &mut Vec<(Part, Layout)>,
    shapes: &LinearBackwardShapes,
) -> Part {
    let (layout, heads) = (places.layout(sum.to), shapes.forward.heads());
    if layout.shape[1] == heads && (layout.dtype == DType::F32 || !(gated && sum.exact)) {
        return sum.to;
    }
    let [batch, _, tokens, width] = layout.shape;
    between.push((sum.from, Layout::heads_first(DType::F32, [batch, heads, tokens, width])));
    sum.from
}

/// The walks that give dq, dk and dv. Gates want states from both sides at short distances.
fn walks(params: &LinearParams, shapes: &LinearBackwardShapes, each: [Part; 3], gated: bool) -> [Walk; 3] {
    let forward = shapes.forward.frame(params);
    let (scale, (head_dim, value_dim)) = (forward.scale, forward.dims);
    let ahead = Frame { dims: (value_dim, head_dim), ..forward.clone() };
    let back = Frame { reverse: !forward.reverse, late: true, scale: 1.0, gain: scale, ..forward };
    let chunk = params.chunk.unwrap_or(CHUNK);
    let (from_h0, has_dht) = (shapes.forward.h0.is_some(), shapes.dht.is_some());
    let common = |frame, o, states| Walk {
        q: Part::Q,
        k: Part::K,
        v: Part::V,
        o,
        from: From::Nothing,
        to: None,
        snapshots: None,
        states,
        kept: false,
        causal: params.causal,
        segment: if gated { chunk } else { segment_tokens(chunk) },
        frame,
    };
    let [dq, dk, dv] = each;
    [
        Walk {
            q: Part::Dout,
            k: Part::V,
            v: Part::K,
            from: if from_h0 { From::Turned(Part::H0) } else { From::Nothing },
            kept: gated,
            ..common(ahead, dq, Part::StatesAhead)
        },
        Walk {
            q: Part::V,
            k: Part::Dout,
            v: Part::Q,
            from: if has_dht { From::Turned(Part::Dht) } else { From::Nothing },
            kept: gated,
            ..common(Frame { dims: (value_dim, head_dim), ..back.clone() }, dk, Part::StatesBehind)
        },
        Walk {
            q: Part::K,
            k: Part::Q,
            v: Part::Dout,
            from: if has_dht { From::H0(Part::Dht) } else { From::Nothing },
            to: shapes.dh0.is_some().then_some(Part::Dh0),
            ..common(back, dv, Part::States)
        },
    ]
}

/// The gates' gradient, and the slopes', from what the walks for dq and dk leave. `walk` is that of dq.
fn gate_gradients(walk: &Walk, [dq, dk, _]: [Part; 3], places: &Places<Part>) -> Vec<Task> {
    let Walk { frame, segment, .. } = walk;
    if frame.gate == Gate::None {
        return vec![];
    }
    let (segment, entries) = (*segment, frame.sequences.len());
    let (rows, columns) = frame.dims;
    let gates = Task {
        name: "gradient of gates",
        files: vec![file::LINEAR_GATE_GRADIENT, file::SUM],
        constants: vec![("WG", THREADS), ("SEGMENT", segment)],
        tensors: vec![
            ("q", Part::Q, AccessKind::Load4),
            ("k", Part::K, AccessKind::Load4),
            ("dq", dq, AccessKind::Load4),
            ("dk", dk, AccessKind::Load4),
            ("states", Part::StatesAhead, AccessKind::Load4),
            ("behind", Part::StatesBehind, AccessKind::Load4),
            ("dg", Part::Dg, AccessKind::StoreBits),
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
        tensors: vec![("dg", Part::Dg, AccessKind::Load1), ("o", Part::Dslopes, AccessKind::StoreBits)],
        segment: frame.whole(),
        work: [1, frame.heads, 1],
        runs: 0..1,
        flops: (entries * frame.longest()) as f64,
    };
    let with_slopes = places.has(Part::Dslopes);
    [gates].into_iter().chain(with_slopes.then_some(slopes)).collect()
}

/// The sum over the heads that share one.
fn sums(frame: &Frame, sum: Sum, places: &Places<Part>) -> Task {
    let [_, heads, _, width] = places.layout(sum.to).shape;
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
