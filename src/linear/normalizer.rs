//! The normaliser: values have 1 as one more column, states the sum of keys, and the output is divided by its last column.

use super::LinearParams;
use super::joint::{Joint, Rows};
use super::names::{BEFORE, DSUMS, SUMS, Tensor, VALUES};
use super::shapes::LinearShapes;
use super::task::{Frame, THREADS};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{Layout, Result};

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
        self.joint().values(builder, VALUES, true)?;
        state.map_or(Ok(()), |state| self.joint().join(builder, state, BEFORE))
    }

    /// The output divided by its sums.
    pub fn divide(&self, builder: &mut Builder) -> Result<()> {
        let tensors = vec![("q", SUMS, AccessKind::Load4), ("o", "o", AccessKind::Store4)];
        let (text, heads) = (file::LINEAR_NORMALIZER_DIVIDE, self.frame.heads);
        self.joint().task("division", text, tensors, Rows::Tokens, heads).add(builder, &self.with_epsilon())
    }

    /// The gradient of the output and its sums from that of what they were divided to.
    pub fn gradient(&self, builder: &mut Builder) -> Result<()> {
        builder.scratch(DSUMS, self.output())?;
        let tensors =
            vec![("q", SUMS, AccessKind::Load4), ("dy", "dout", AccessKind::Load4), ("o", DSUMS, AccessKind::Store4)];
        let (text, heads) = (file::LINEAR_NORMALIZER_GRADIENT, self.frame.heads);
        let mut task = self.joint().task("gradient of division", text, tensors, Rows::Tokens, heads);
        task.work[2] = self.frame.longest().div_ceil(THREADS);
        task.add(builder, &self.with_epsilon())
    }

    /// The output with its sums, f32.
    pub fn output(&self) -> Layout {
        let [batch, heads, tokens, _] = self.inputs.output_shape();
        self.joint().layout([batch, heads, tokens])
    }

    /// Values, or the columns of a state, and their sums.
    pub fn joint(&self) -> Joint<'_> {
        Joint { widths: self.inputs.widths(), frame: self.frame }
    }

    fn with_epsilon(&self) -> Frame {
        Frame { gain: self.params.normalize.unwrap_or_default(), ..self.frame.clone() }
    }
}
