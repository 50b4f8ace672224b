//! Gradients: three walks with the tensors in other places. With S the state after a token and dS its gradient,
//!
//! ```text
//! dq = scale · S dout          from the first token to the last, as S comes about
//! dk = dS v,  dv = dSᵀ k       from the last to the first: dS ← e^g · dS after a token, then dS + scale · q doutᵀ
//! ```

use super::gradients::{LinearBackwardShapes, LinearGradients, LinearOutputGradients, SLOTS, tensors};
use super::parts::Part;
use super::plan::CHUNK;
use super::run::verdict;
use super::task::{Frame, Gate, THREADS, Task};
use super::walk::{Chunking, From, Walk, segment_tokens};
use super::{LinearAttention, LinearInputs, LinearParams, LinearWay};
use crate::arguments::Argument;
use crate::dispatch::{Scratch, check_device, check_tensors, leaders};
use crate::shader::{AccessKind, file};
use crate::softmax::attention::{keep, kept};
use crate::steps::{EACH, Places, Steps, StepsPrepared};
use crate::{Caps, DType, Layout, Result, Tensor};
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
        work: [entries, frame.heads],
        tiles: vec![0..frame.segments(segment)],
        flops: (4 * rows * columns + 4 * segment * columns + segment * segment) as f64,
    };
    let slopes = Task {
        name: "gradient of slopes",
        files: vec![file::LINEAR_SLOPE_GRADIENT, file::SUM],
        constants: vec![("WG", 256), ("ENTRIES", entries)],
        tensors: vec![("dg", Part::Dg, AccessKind::Load1), ("o", Part::Dslopes, AccessKind::StoreBits)],
        segment: frame.whole(),
        work: [1, frame.heads],
        tiles: vec![0..1],
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
        work: [frame.sequences.len(), heads],
        tiles: vec![0..(frame.longest() * width.div_ceil(4)).div_ceil(THREADS)],
        flops: (4 * THREADS * group) as f64,
    }
}

/// Gradients of linear attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct LinearBackwardPrepared {
    steps: StepsPrepared<Part>,
    shapes: LinearBackwardShapes,
    plan: LinearBackwardPlan,
}

impl LinearAttention {
    /// What would run for gradients of these shapes.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPlan::new`].
    pub fn plan_backward(&self, shapes: &LinearBackwardShapes) -> Result<LinearBackwardPlan> {
        LinearBackwardPlan::new(self.gpu.caps(), &self.params, shapes)
    }

    /// Compiles and allocates all that gradients of these shapes need.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPlan::new`]; [`crate::Error::Shader`], [`crate::Error::OutOfMemory`],
    /// [`crate::Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: &LinearBackwardShapes) -> Result<LinearBackwardPrepared> {
        let plan = self.plan_backward(shapes)?;
        let steps = StepsPrepared::new(&self.gpu, &plan.steps, &Scratch::new()).await?;
        Ok(LinearBackwardPrepared { steps, shapes: shapes.clone(), plan })
    }

    /// The gradients in one call: allocates them and submits. Nothing of the forward pass is needed but its inputs. What was
    /// prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`LinearAttention::prepare_backward`]; [`crate::Error::OtherDevice`].
    pub async fn backward(
        &self,
        inputs: &LinearInputs<'_>,
        from: &LinearOutputGradients<'_>,
    ) -> Result<LinearGradients> {
        let LinearInputs { q, k, v, g, h0, .. } = *inputs;
        let given = [
            ("q", Some(q)),
            ("k", Some(k)),
            ("v", Some(v)),
            ("g", g),
            ("h0", h0),
            ("dout", Some(from.dout)),
            ("dht", from.dht),
        ];
        for (name, tensor) in given {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, &self.gpu))?;
        }
        let forward = super::LinearShapes::of_inputs(inputs, false);
        let (dout, dht) = (from.dout.layout().clone(), from.dht.map(|dht| dht.layout().clone()));
        let shapes = LinearBackwardShapes::new(&self.params, forward, dout, dht);
        self.plan_backward(&shapes)?;
        let new = async |layout: &Layout| Tensor::empty(&self.gpu, layout.clone()).await;
        let some = async |layout: &Option<Layout>| match layout {
            Some(layout) => new(layout).await.map(Some),
            None => Ok(None),
        };
        let to = LinearGradients {
            dq: new(&shapes.dq).await?,
            dk: new(&shapes.dk).await?,
            dv: new(&shapes.dv).await?,
            dg: some(&shapes.dg).await?,
            dslopes: some(&shapes.dslopes).await?,
            dh0: some(&shapes.dh0).await?,
        };
        let shapes = LinearBackwardShapes::of(inputs, from, &to);
        let prepared = match kept(&self.kept_backward, &shapes) {
            Some(found) => found,
            None => keep(&self.kept_backward, &shapes, self.prepare_backward(&shapes).await?),
        };
        let mut all = tensors(inputs, from, &to);
        let problem = some(&prepared.plan.steps.layout(Part::Problem)).await?;
        all.extend(problem.as_ref().map(|problem| (Part::Problem, problem)));
        prepared.steps.submit(&all).await?;
        let verdict = problem.map(|problem| verdict(&problem, inputs.cu_seqlens.is_some()));
        // What was found wrong with what came in holds for all that comes of it.
        let judged = |tensor: Tensor| {
            let tensor = verdict.clone().into_iter().fold(tensor, Tensor::under);
            given.iter().filter_map(|(_, tensor)| *tensor).fold(tensor, Tensor::under_all)
        };
        let LinearGradients { dq, dk, dv, dg, dslopes, dh0 } = to;
        let [dg, dslopes, dh0] = [dg, dslopes, dh0].map(|tensor| tensor.map(&judged));
        Ok(LinearGradients { dq: judged(dq), dk: judged(dk), dv: judged(dv), dg, dslopes, dh0 })
    }
}

impl LinearBackwardPrepared {
    /// What runs.
    pub fn plan(&self) -> &LinearBackwardPlan {
        &self.plan
    }

    /// Records the work. The caller submits.
    ///
    /// # Errors
    /// [`crate::Error::Argument`], [`crate::Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded
    /// then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &LinearInputs,
        from: &LinearOutputGradients,
        to: &LinearGradients,
    ) -> Result<()> {
        let label = Some("gradients of linear attention");
        let descriptor = wgpu::ComputePassDescriptor { label, timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, from, to)
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LinearBackwardPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &LinearInputs,
        from: &LinearOutputGradients,
        to: &LinearGradients,
    ) -> Result<()> {
        let given = LinearBackwardShapes::of(inputs, from, to);
        self.shapes.forward.check_as_prepared(&given.forward)?;
        let tensors = tensors(inputs, from, to);
        self.shapes.check_as_prepared(&given)?;
        let named: Vec<&Tensor> = SLOTS.iter().filter_map(|(part, _)| tensors.get(part).copied()).collect();
        let leaders = leaders(self.steps.gpu().caps(), &self.plan.arguments);
        check_tensors(self.steps.gpu(), &self.plan.arguments, &leaders, &named)?;
        self.steps.encode(pass, &tensors)
    }
}
