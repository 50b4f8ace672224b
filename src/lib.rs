#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod arguments;
mod caps;
mod dispatch;
mod error;
mod flash;
mod gpu;
pub mod guide;
mod hook;
mod layout;
mod merge;
mod packed;
pub mod reference;
mod shader;
mod slices;
mod softmax;
mod tensor;
mod tiles;
mod timing;

#[cfg(feature = "catalogue")]
pub mod catalogue;

pub use caps::{AdapterKind, Caps};
pub use error::{Error, Result};
pub use flash::{
    Causal, FlashAttention, FlashBackwardPlan, FlashBackwardPrepared, FlashBackwardShapes, FlashGradients, FlashInputs,
    FlashOutputGradients, FlashOutputs, FlashParams, FlashPlan, FlashPrepared, FlashSaved, FlashShapes, Window,
};
pub use gpu::{Gpu, GpuOptions};
pub use hook::Hook;
pub use layout::{DType, Layout};
pub use merge::{Merge, MergePrepared, MergeShapes};
pub use packed::{CuSeqlens, CuSeqlensShape};
pub use slices::Slice;
pub use tensor::Tensor;
pub use timing::GpuTime;
/// The version of wgpu that this crate speaks.
pub use wgpu;
