//! Lists of tokens, as planning sees them: what they are, and the kernels that make them ready for attention.

mod kernels;
mod shape;

pub(crate) use kernels::Lists;
pub(crate) use shape::TokenListShape;
