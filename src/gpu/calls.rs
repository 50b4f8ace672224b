//! Calls on a device: what holds a `Gpu` or tensors for its users.

pub(crate) mod attention;
pub(crate) mod block_mask;
pub(crate) mod block_selection;
mod hook;
pub(crate) mod linear;
pub(crate) mod linear_gate;
pub(crate) mod merge;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod score_reduction;
pub(crate) mod seer_decode;
pub(crate) mod seer_gate;
pub(crate) mod seer_training;
pub(crate) mod seqlens;
pub(crate) mod token_lists;
