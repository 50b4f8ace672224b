#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod block_mask;
mod block_sparse;
mod caps;
mod error;
mod flash;
mod gate;
#[cfg(feature = "wgpu")]
mod gpu;
pub mod guide;
mod layout;
mod linear;
mod merge;
mod neighborhood;
mod packed;
pub mod program;
pub mod reference;
mod rotary;
mod score_reduction;
mod small_map;
mod softmax;

#[cfg(feature = "catalogue")]
pub mod catalogue;

pub use block_mask::{BlockGrid, HeadBlocks};
pub use block_sparse::BlockSparseParams;
pub use caps::{AdapterKind, Backend, Caps, Engine};
pub use error::{Error, Result};
pub use flash::FlashParams;
pub use gate::{Pool, SeerDecodeGateParams, SeerGateParams, Selector};
#[cfg(feature = "wgpu")]
pub use gpu::call::Call;
#[cfg(feature = "wgpu")]
pub use gpu::calls::attention::{
    Attention, AttentionGradients, AttentionInputs, AttentionOutputs, AttentionSaved, BlockSparseAttention,
    FlashAttention, NeighborhoodAttention, OutputGradients, Seqlens,
};
#[cfg(feature = "wgpu")]
pub use gpu::calls::block_mask::{BlockList, BlockMask};
#[cfg(feature = "wgpu")]
pub use gpu::calls::linear::{LinearAttention, LinearGradients, LinearInputs};
#[cfg(feature = "wgpu")]
pub use gpu::calls::merge::Merge;
#[cfg(feature = "wgpu")]
pub use gpu::calls::rotary::{Positions, Rotary};
#[cfg(feature = "wgpu")]
pub use gpu::calls::score_reduction::{ReducedScores, ScoreReduction, ScoreReductionInputs};
#[cfg(feature = "wgpu")]
pub use gpu::calls::seer_decode::{SeerDecodeGate, SeerDecodeInputs, SeerDecodeWeights};
#[cfg(feature = "wgpu")]
pub use gpu::calls::seer_gate::{SeerGate, SeerGateInputs};
#[cfg(feature = "wgpu")]
pub use gpu::calls::seer_training::{SeerGateGradients, SeerGateSaved};
#[cfg(feature = "wgpu")]
pub use gpu::prepared::Prepared;
#[cfg(feature = "wgpu")]
pub use gpu::tensor::Tensor;
#[cfg(feature = "wgpu")]
pub use gpu::timing::GpuTime;
#[cfg(feature = "wgpu")]
pub use gpu::{Gpu, GpuOptions};
pub use layout::{DType, Layout};
pub use linear::{LinearAlgorithm, LinearParams};
pub use neighborhood::{NeighborhoodAxis, NeighborhoodParams};
pub use program::hook::Hook;
pub use program::{Program, Shapes};
pub use rotary::RotaryParams;
pub use score_reduction::{HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReductionParams};
pub use softmax::{AttentionParams, Causal, Window};
/// The version of wgpu that this crate speaks.
#[cfg(feature = "wgpu")]
pub use wgpu;
