//! What each kernel must compute, as plain float64 loops on the CPU: to be read, and to check against. Nothing here is
//! shared with planning or with the shaders.

mod block_sparse;
mod flash;
mod merge;
mod neighborhood;
mod problem;
mod rotary;
mod score_reduction;

pub use block_sparse::ChosenBlocks;
pub use flash::{FlashReference, Gradients, flash, flash_backward};
pub use merge::merge;
pub use neighborhood::Neighborhoods;
pub use problem::{At, FlashProblem};
pub use rotary::rotary;
pub use score_reduction::score_reduction;
