//! A walk by any of the algorithms.

use super::LinearAlgorithm;
use super::chunking::Chunking;
use super::ends::StateSource;
use super::names::Tensor;
use super::recurrent::STRETCH;
use super::walk::Walk;
use crate::program::Builder;
use crate::{DType, Result};

/// Where a state that is to be rounded goes on from one dispatch to the next.
const UNROUNDED: Tensor = "state in f32";

impl Walk {
    /// Adds the kernels, one after another, and what lies between them.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn add(
        &self,
        builder: &mut Builder,
        algorithm: LinearAlgorithm,
        chunking: &Chunking,
        packed: bool,
    ) -> Result<()> {
        match algorithm {
            LinearAlgorithm::Recurrent => self.add_one_by_one(builder, packed),
            _ => self.add_chunks(builder, algorithm, chunking, packed),
        }
    }

    /// The same where the state goes on from one dispatch to the next in f32, and is rounded at the end, if its type is another.
    ///
    /// # Errors
    /// Those of [`Walk::add`].
    pub fn add_unrounded(
        &self,
        builder: &mut Builder,
        algorithm: LinearAlgorithm,
        chunking: &Chunking,
        packed: bool,
    ) -> Result<()> {
        let rounds = |to: &Tensor| builder.operand(to).is_some_and(|to| to.layout.dtype != DType::F32);
        let often = algorithm != LinearAlgorithm::ThreePass && self.frame.segments(STRETCH) > 1;
        let Some(to) = self.to.filter(|to| often && rounds(to)) else {
            return self.add(builder, algorithm, chunking, packed);
        };
        builder.scratch(UNROUNDED, self.rows_of_states(self.frame.dims.0))?;
        let from = if self.from == StateSource::InPlace { StateSource::H0(to) } else { self.from };
        let walk = Self { from, to: Some(UNROUNDED), ..self.clone() };
        walk.add(builder, algorithm, chunking, packed)?;
        let last = Self { from: StateSource::H0(UNROUNDED), to: Some(to), ..self.clone() };
        self.add_tasks(builder, [last.initial()])
    }
}
