//! Block masks as planning sees them: over which grid they lie, what each head sees, how one form becomes another.

mod conversions;
mod grid;
mod heads;
mod shape;

pub(crate) use conversions::transposition;
pub use grid::BlockGrid;
pub use heads::HeadBlocks;
pub(crate) use shape::BlockMaskShape;
