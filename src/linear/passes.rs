//! A walk by any of the algorithms.

use super::LinearAlgorithm;
use super::chunking::{How, stretch_tokens};
use super::ends::StateSource;
use super::names::Tensor;
use super::recurrent::STRETCH;
use super::walk::Walk;
use crate::program::Builder;
use crate::{DType, Result};

/// Where a state goes on before it comes to its place.
const UNROUNDED: Tensor = "state in f32";

impl Walk {
    /// Adds the kernels, one after another, and what lies between them.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn add(&self, builder: &mut Builder, how: How) -> Result<()> {
        match how.algorithm {
            LinearAlgorithm::Recurrent => self.add_one_by_one(builder, how.packed),
            _ => self.add_chunks(builder, how),
        }
    }

    /// The same where the state that comes in is not changed, and that which goes out not rounded, before all is done.
    ///
    /// # Errors
    /// Those of [`Walk::add`].
    pub fn add_whole(&self, builder: &mut Builder, how: How) -> Result<()> {
        let Some(to) = self.to.filter(|to| self.wants_its_own(builder, to, how)) else { return self.add(builder, how) };
        builder.scratch(UNROUNDED, self.rows_of_states(self.frame.dims.0))?;
        let from = if self.from == StateSource::InPlace { StateSource::H0(to) } else { self.from };
        Self { from, to: Some(UNROUNDED), ..self.clone() }.add(builder, how)?;
        let last = Self { from: StateSource::H0(UNROUNDED), to: Some(to), ..self.clone() };
        self.add_tasks(builder, [last.initial()])
    }

    /// Whether the state goes on elsewhere, in f32, before it comes to its place.
    fn wants_its_own(&self, builder: &Builder, to: Tensor, how: How) -> bool {
        let dtype = |name: Tensor| builder.operand(name).map(|operand| operand.layout.dtype);
        let stretch = match how.algorithm {
            LinearAlgorithm::Recurrent => STRETCH,
            LinearAlgorithm::OnePass => stretch_tokens(how.chunking.chunk),
            LinearAlgorithm::ThreePass => usize::MAX,
        };
        let rounds = dtype(to) != Some(DType::F32) && how.algorithm != LinearAlgorithm::ThreePass;
        // Once for a dispatch, or as what comes in is brought to where it goes on.
        let brought = matches!(self.from, StateSource::H0(from) if dtype(from) != dtype(to));
        let often = self.frame.segments(stretch) > 1 || brought;
        // With corrections, the state before is read twice.
        let twice = self.after.is_some() && how.algorithm == LinearAlgorithm::OnePass;
        rounds && often || twice && self.from == StateSource::InPlace
    }
}
