//! What each kernel must compute, as plain float64 loops on the CPU: to be read, and to check against. Nothing here is
//! shared with planning or with the shaders.

mod flash;
mod merge;
mod neighborhood;

pub use flash::{At, FlashProblem, FlashReference, Gradients, flash, flash_backward};
pub use merge::merge;
pub use neighborhood::Neighborhoods;
