//! Rows of two parts in one: values, states and their gradients have more columns where there is a normaliser, or in a summary.

use super::names::Tensor;
use super::task::{Access, Frame, THREADS, Task};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{DType, Layout, Result};

/// Columns of a row of so many numbers and so many more.
pub(super) fn joint([width, more]: [usize; 2]) -> usize {
    width.next_multiple_of(4) + more.next_multiple_of(4)
}

/// Rows of tokens, or those of states.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rows {
    Tokens,
    States,
}

/// Kernels over the rows of a walk's tensors.
pub(super) struct Joint<'a> {
    /// Columns of either part.
    pub widths: [usize; 2],
    /// Of the walks: its columns are joint ones.
    pub frame: &'a Frame,
}

impl Joint<'_> {
    /// `to` has values, with 0 or 1 in the first column of their second part.
    pub fn values(&self, builder: &mut Builder, to: Tensor, one: bool) -> Result<()> {
        let [batch, heads, tokens, _] = builder.input("v")?.shape();
        builder.scratch(to, self.layout([batch, heads, tokens]))?;
        let tensors = vec![("v", "v", AccessKind::Load4), ("o", to, AccessKind::Store4)];
        let mut task = self.task("values and more", file::LINEAR_JOINT_JOIN, tensors, Rows::Tokens, heads);
        task.constants.push(("ONE", usize::from(one)));
        task.add(builder, self.frame)
    }

    /// `to` has the two parts of a state, or of its gradient, those of them that are there.
    pub fn join(&self, builder: &mut Builder, [first, second]: [Tensor; 2], to: Tensor) -> Result<()> {
        builder.scratch(to, self.states())?;
        let all = [("v", first, AccessKind::Load4), ("z", second, AccessKind::Load4), ("o", to, AccessKind::Store4)];
        let tensors = all.into_iter().filter(|(_, name, _)| builder.operand(name).is_some()).collect();
        let mut task = self.task("states joined", file::LINEAR_JOINT_JOIN, tensors, Rows::States, self.frame.heads);
        task.constants.push(("ONE", 0));
        task.add(builder, self.frame)
    }

    /// The two parts of a state, or of its gradient, those of them that are wanted.
    pub fn split(&self, builder: &mut Builder, from: Tensor, [first, second]: [Tensor; 2]) -> Result<()> {
        let all = [("q", from, AccessKind::Load4), ("o", first, AccessKind::Store4), ("z", second, AccessKind::Store4)];
        let tensors = all.into_iter().filter(|(_, name, _)| builder.operand(name).is_some()).collect();
        self.task("states apart", file::LINEAR_JOINT_SPLIT, tensors, Rows::States, self.frame.heads)
            .add(builder, self.frame)
    }

    /// f32 rows of both parts.
    pub fn layout(&self, [batch, heads, rows]: [usize; 3]) -> Layout {
        Layout::heads_first(DType::F32, [batch, heads, rows, joint(self.widths)])
    }

    /// States of both parts.
    pub fn states(&self) -> Layout {
        let Frame { heads, dims, .. } = self.frame;
        self.layout([self.frame.entries(), *heads, dims.0])
    }

    /// A kernel over all rows, four columns a thread.
    pub fn task(&self, name: &'static str, text: &'static str, tensors: Vec<Access>, rows: Rows, heads: usize) -> Task {
        let (frame, [width, more]) = (self.frame, self.widths);
        let count = if rows == Rows::States { frame.dims.0 } else { frame.longest() };
        Task {
            name,
            files: vec![file::LINEAR_JOINT, text],
            constants: vec![
                ("WG", THREADS),
                ("WIDTH", width),
                ("MORE", more),
                ("JOINT", joint(self.widths)),
                ("STATES", usize::from(rows == Rows::States)),
            ],
            tensors,
            segment: frame.whole(),
            work: [frame.entries(), heads, (count * (joint(self.widths) / 4)).div_ceil(THREADS)],
            runs: 0..1,
            flops: (8 * THREADS) as f64,
        }
    }
}
