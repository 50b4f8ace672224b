#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod caps;
mod dispatch;
mod error;
mod flash;
mod gpu;
pub mod reference;
mod shader;
mod softmax;
mod tensor;

#[cfg(feature = "catalogue")]
pub mod catalogue;

pub use caps::{AdapterKind, Caps};
pub use dispatch::Slice;
pub use error::{Error, Result};
pub use flash::{
    Causal, FlashAttention, FlashInputs, FlashOutputs, FlashParams, FlashPlan, FlashPrepared, FlashShapes, Window,
};
pub use gpu::{Gpu, GpuOptions, GpuTime};
pub use tensor::{DType, Layout, Tensor};
/// The version of wgpu that this crate speaks.
pub use wgpu;
