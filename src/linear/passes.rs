//! A walk by any of the algorithms.

use super::LinearAlgorithm;
use super::chunking::Chunking;
use super::walk::Walk;
use crate::Result;
use crate::program::Builder;

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
}
