//! What walks leave by heads of the state, and the sum over the heads that share a query, key, value or gate.

use super::names::Tensor;
use super::task::{Frame, THREADS, Task};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand};
use crate::{DType, Layout, Result};

/// Where a walk leaves the gradient of q, k or v by heads of the state, what is to be taken away from that, and the gradient.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub from: Tensor,
    pub less: Option<Tensor>,
    pub to: Tensor,
}

impl Sum {
    pub fn of(from: Tensor, to: Tensor) -> Self {
        Self { from, less: None, to }
    }
}

/// The states that the walk for dq keeps, and those that the walk for dk does.
pub(super) const AHEAD: Tensor = "states ahead";
pub(super) const BEHIND: Tensor = "states behind";

/// Where a walk leaves a gradient: in its tensor, if that has all heads, and the type that is needed.
pub(super) fn each(builder: &mut Builder, sum: Sum, exact: bool, columns: usize, heads: usize) -> Result<Tensor> {
    // A summary has no gradient of queries.
    let Some(layout) = builder.operand(sum.to).map(|operand| operand.layout) else { return Ok(sum.to) };
    let [batch, own, tokens, width] = layout.shape;
    // dv, the only one with columns of values, may have one more in the walk.
    let width = if sum.to == "dv" { columns } else { width };
    if own == heads && width == layout.shape[3] && (layout.dtype == DType::F32 || !exact) {
        return Ok(sum.to);
    }
    builder.scratch(sum.from, Layout::heads_first(DType::F32, [batch, heads, tokens, width]))?;
    Ok(sum.from)
}

/// The sum over the heads that share one.
pub(super) fn sum_of_heads(frame: &Frame, sum: Sum, to: &Operand) -> Task {
    let [_, heads, _, width] = to.shape();
    let group = frame.heads / heads.max(1);
    Task {
        name: "sum of heads",
        files: vec![file::LINEAR_SUM_HEADS],
        constants: vec![("WG", THREADS), ("WIDTH", width), ("GROUP", group)],
        tensors: [("q", sum.from, AccessKind::Load4), ("o", sum.to, AccessKind::Store4)]
            .into_iter()
            .chain(sum.less.map(|less| ("less", less, AccessKind::Load4)))
            .collect(),
        segment: frame.whole(),
        work: [frame.entries(), heads, (frame.longest() * width.div_ceil(4)).div_ceil(THREADS)],
        runs: 0..1,
        flops: (4 * THREADS * group) as f64,
    }
}
