//! The normaliser: values have 1 as one more column, states the sum of keys, and the output is divided by its last column.

use super::LinearParams;
use super::names::{BEFORE, DSUMS, SUMS, Tensor, VALUES, joint};
use super::shapes::LinearShapes;
use super::task::{Access, Frame, THREADS, Task};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{DType, Layout, Result};

/// Rows of tokens, or those of states.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    Tokens,
    States,
}

/// The kernels around the walks of a normalised call.
pub(super) struct Normalizer<'a> {
    pub params: &'a LinearParams,
    pub inputs: &'a LinearShapes,
    /// Of the walks: its columns are joint ones.
    pub frame: &'a Frame,
}

impl Normalizer<'_> {
    /// Values, and the state that comes in, if there is one.
    pub fn before(&self, builder: &mut Builder, state: Option<[Tensor; 2]>) -> Result<()> {
        let [batch, heads, tokens, width] = self.inputs.v.shape();
        builder.scratch(VALUES, Layout::heads_first(DType::F32, [batch, heads, tokens, joint(width)]))?;
        let values = vec![("v", "v", AccessKind::Load4), ("o", VALUES, AccessKind::Store4)];
        self.task("values and ones", file::LINEAR_NORMALIZER_JOIN, values, Rows::Tokens, heads)
            .add(builder, self.frame)?;
        match state {
            Some(state) => self.join_states(builder, state, BEFORE),
            None => Ok(()),
        }
    }

    /// A state, or its gradient, with its sums.
    pub fn join_states(&self, builder: &mut Builder, [state, sums]: [Tensor; 2], to: Tensor) -> Result<()> {
        builder.scratch(to, self.states())?;
        let all = [("v", state, AccessKind::Load4), ("z", sums, AccessKind::Load1), ("o", to, AccessKind::Store4)];
        let tensors = all.into_iter().filter(|(_, name, _)| builder.operand(name).is_some()).collect();
        let heads = self.frame.heads;
        self.task("state and sums", file::LINEAR_NORMALIZER_JOIN, tensors, Rows::States, heads).add(builder, self.frame)
    }

    /// The output divided by its sums.
    pub fn divide(&self, builder: &mut Builder) -> Result<()> {
        let tensors = vec![("q", SUMS, AccessKind::Load4), ("o", "o", AccessKind::Store4)];
        let task = self.task("division", file::LINEAR_NORMALIZER_DIVIDE, tensors, Rows::Tokens, self.frame.heads);
        task.add(builder, &self.with_epsilon())
    }

    /// The gradient of the output and its sums from that of what they were divided to.
    pub fn gradient(&self, builder: &mut Builder) -> Result<()> {
        builder.scratch(DSUMS, self.output())?;
        let tensors =
            vec![("q", SUMS, AccessKind::Load4), ("dy", "dout", AccessKind::Load4), ("o", DSUMS, AccessKind::Store4)];
        let mut task = self.task(
            "gradient of division",
            file::LINEAR_NORMALIZER_GRADIENT,
            tensors,
            Rows::Tokens,
            self.frame.heads,
        );
        task.work[2] = self.frame.longest().div_ceil(THREADS);
        task.add(builder, &self.with_epsilon())
    }

    /// A state, or its gradient, and its sums apart.
    pub fn split_states(&self, builder: &mut Builder, from: Tensor, [state, sums]: [Tensor; 2]) -> Result<()> {
        let all =
            [("q", from, AccessKind::Load4), ("o", state, AccessKind::Store4), ("z", sums, AccessKind::StoreBits)];
        let tensors = all.into_iter().filter(|(_, name, _)| builder.operand(name).is_some()).collect();
        let heads = self.frame.heads;
        self.task("state and sums apart", file::LINEAR_NORMALIZER_SPLIT, tensors, Rows::States, heads)
            .add(builder, self.frame)
    }

    /// The output with its sums, f32.
    pub fn output(&self) -> Layout {
        let [batch, heads, tokens, width] = self.inputs.output_shape();
        Layout::heads_first(DType::F32, [batch, heads, tokens, joint(width)])
    }

    /// States with their sums.
    pub fn states(&self) -> Layout {
        let [entries, heads, rows, width] = self.inputs.state().shape;
        Layout::heads_first(DType::F32, [entries, heads, rows, joint(width)])
    }

    fn with_epsilon(&self) -> Frame {
        Frame { gain: self.params.normalize.unwrap_or_default(), ..self.frame.clone() }
    }

    fn task(&self, name: &'static str, text: &'static str, tensors: Vec<Access>, rows: Rows, heads: usize) -> Task {
        let frame = self.frame;
        let width = self.inputs.v.shape()[3];
        let count = if rows == Rows::States { self.inputs.state().shape[2] } else { frame.longest() };
        Task {
            name,
            files: vec![file::LINEAR_NORMALIZER, text],
            constants: vec![
                ("WG", THREADS),
                ("WIDTH", width),
                ("JOINT", joint(width)),
                ("STATES", usize::from(rows == Rows::States)),
            ],
            tensors,
            segment: frame.whole(),
            work: [frame.sequences.len(), heads, (count * (joint(width) / 4)).div_ceil(THREADS)],
            runs: 0..1,
            flops: (8 * THREADS) as f64,
        }
    }
}
