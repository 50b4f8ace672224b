//! Gradients of the delta rule: walks whose values are what tokens are corrected by. With e = v − S̃ᵀ k and u = β e, a state absorbs k uᵀ;
//! with dS the gradient of the state after a token, dS its own query included,
//!
//! ```text
//! du = dSᵀ k,  dv = β du,  dβ = du · e       from the last token to the first: dS ← e^g (dS − k dvᵀ)
//! dk = dS u − S̃ dv                           the second part from the first to the last
//! dq = scale · S dout
//! ```

use super::LinearParams;
use super::names::Tensor;
use super::shapes::LinearShapes;
use super::sums::{AHEAD, BEHIND, Sum, each};
use super::task::{Frame, THREADS, Task};
use super::walk::{After, Correction, Walk};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand};
use crate::{DType, Layout, Result};

/// e and u of the forward pass; what the same is behind: du and dv.
const FORWARD: [Tensor; 2] = ["errors", "corrections"];
const BACKWARD: [Tensor; 2] = ["gradient of corrections", "dv by heads"];

/// Two tensors of an output's shape in one buffer, f32, each row of the one beside that of the other: one binding has both.
fn pair(
    builder: &mut Builder,
    names: [Tensor; 2],
    buffer: Tensor,
    [batch, heads, tokens, width]: [usize; 4],
) -> Result<()> {
    let both = builder.scratch(buffer, Layout::heads_first(DType::F32, [batch, heads, tokens, 2 * width]))?;
    for (i, name) in names.into_iter().enumerate() {
        builder.name(name, both.view(both.layout.clone().narrow(3, i * width..(i + 1) * width)?));
    }
    Ok(())
}

/// The five walks, and what the gradients are made of.
pub(super) fn walks(
    params: &LinearParams,
    builder: &mut Builder,
    inputs: &LinearShapes,
    [to_q, to_k]: [Tensor; 2],
    gated: bool,
) -> Result<(Vec<Walk>, [Sum; 3])> {
    let forward = inputs.frame(params);
    let [batch, heads, tokens, _] = inputs.output_shape();
    let shape = [batch, heads, tokens, forward.dims.1];
    pair(builder, FORWARD, "corrections of tokens", shape)?;
    pair(builder, BACKWARD, "their gradients", shape)?;
    let dq = Sum::of("dq by heads", to_q);
    let dq = Sum { from: each(builder, dq, gated, forward.dims.1, inputs.heads())?, ..dq };
    let [dk, dv] = [Sum { from: "dk by dS", less: Some("dk by S"), to: to_k }, Sum::of(BACKWARD[1], "dv")];
    for name in [Some(dk.from), dk.less].into_iter().flatten() {
        builder.scratch(name, Layout::heads_first(DType::F32, [batch, heads, tokens, forward.dims.0]))?;
    }
    let scale = forward.scale;
    let forward = Frame { scale: 1.0, ..forward };
    let turned = (forward.dims.1, forward.dims.0);
    let back = Frame { reverse: !forward.reverse, late: true, gain: scale, ..forward.clone() };
    let names = inputs.names;
    let (before, behind) = (inputs.from(), inputs.behind(builder));
    let queries = inputs.queries();
    let [_, u] = FORWARD;
    let beta = inputs.beta.as_ref().map(|_| "beta");
    let take = |k, v, correction| Some(After { k, v, takes_away: true, correction });
    let walks = vec![
        Walk {
            after: Some(inputs.delta(Some(FORWARD))),
            from: before,
            reports: inputs.g.is_some() || inputs.beta.is_some(),
            ..Walk::over(forward.clone(), "states for corrections")
        },
        Walk {
            adds: queries,
            after: take(names.k, None, Some(Correction { beta, to: Some(BACKWARD) })),
            from: behind,
            to: inputs.has_state().then_some(names.dh0),
            ..Walk::over(back.clone(), "states for their gradients")
        },
        Walk {
            adds: queries.map(|[q, dout]| [dout, q]),
            reads: Some([u, dk.from]),
            after: take(dv.from, Some(names.k), None),
            from: behind.turned(),
            kept: gated,
            turned: true,
            ..Walk::over(Frame { dims: turned, ..back }, BEHIND)
        },
        Walk {
            reads: dk.less.map(|less| [dv.from, less]),
            after: Some(After { k: u, v: Some(names.k), takes_away: false, correction: None }),
            from: before.turned(),
            turned: true,
            ..Walk::over(Frame { dims: turned, ..forward.clone() }, "states for the rest of dk")
        },
        Walk {
            adds: Some([u, names.k]),
            reads: queries.map(|[_, dout]| [dout, dq.from]),
            from: before.turned(),
            kept: gated,
            turned: true,
            ..Walk::over(Frame { dims: turned, scale, ..forward }, AHEAD)
        },
    ];
    Ok((walks, [dq, dk, dv]))
}

/// The betas' gradient.
pub(super) fn beta_gradient(frame: &Frame, dbeta: &Operand) -> Task {
    let (entries, heads) = (frame.entries(), dbeta.shape()[1]);
    // The frame is that of a turned state: its rows are the values' columns.
    let value_dim = frame.dims.0;
    let group = frame.heads / heads.max(1);
    Task {
        name: "gradient of betas",
        files: vec![file::LINEAR_BETA_GRADIENT],
        constants: vec![("WG", THREADS), ("GROUP", group), ("WIDTH", value_dim)],
        tensors: vec![
            ("e", FORWARD[0], AccessKind::Load4),
            ("du", BACKWARD[0], AccessKind::Load4),
            ("dbeta", "dbeta", AccessKind::StoreBits),
        ],
        segment: frame.whole(),
        work: [entries, heads, frame.longest().div_ceil(THREADS)],
        runs: 0..1,
        flops: (2 * THREADS * group * value_dim) as f64,
    }
}
