//! Attention kernels in hand-written WGSL, forward and backward, for every GPU that [wgpu](https://wgpu.rs) reaches: Vulkan, Metal, DX12,
//! and WebGPU in the browser. Every kernel is checked against a float64 [`mod@reference`] on the CPU that shares no code with it.
//!
//! A [`Gpu`] is a device, requested or yours. A [`Tensor`] is a buffer on it with a [`Layout`], [batch, heads, sequence, head_dim]. Each
//! kernel has a type of its own:
//!
//! | type | computes |
//! |---|---|
//! | [`FlashAttention`] | softmax attention in one pass over the keys |
//! | [`NeighborhoodAttention`] | the same over the nearest keys in a space of one, two or three axes |
//! | [`BlockSparseAttention`] | the same over the blocks that a [`BlockMask`] selects; [`gate`] learns which |
//! | [`token_lists`] | the same over the keys that a list names for each block of queries |
//! | [`LinearAttention`] | attention with a state instead of scores, with gates, which [`LinearGate`] makes |
//! | [`score_reduction`], [`Merge`], [`Rotary`] | what goes before and after |
//!
//! ```
//! # pollster::block_on(async {
//! # use wgpu_attention::*;
//! # let gpu = Gpu::request().await?;
//! # let q = Tensor::upload(&gpu, [1, 2, 128, 16], DType::F32, &[0.5; 2 * 128 * 16]).await?;
//! # let (k, v) = (&q, &q);
//! # let q = &q;
//! // Each query sees the keys up to its own.
//! let attention = FlashAttention::new(&gpu, FlashParams::causal())?;
//! let out = attention.forward(q, k, v).await?;
//!
//! // The tokens are 8 × 16 pixels; each sees the 5 × 5 around it.
//! let axes = [NeighborhoodAxis::new(8, 5), NeighborhoodAxis::new(16, 5)];
//! let attention = NeighborhoodAttention::new(&gpu, NeighborhoodParams::new(axes))?;
//! let out = attention.forward(q, k, v).await?;
//!
//! // Each query sees the first block of 64 keys, and the two up to its own.
//! let mask = BlockMask::sliding_window(&gpu, BlockGrid::of(q, k, [64, 64]), 1, 2).await?;
//! let attention = BlockSparseAttention::new(&gpu, BlockSparseParams::causal())?;
//! let out = attention.forward(q, k, v, &mask).await?;
//!
//! // Each head has a state of 16 × 16 numbers that goes from token to token.
//! let attention = LinearAttention::new(&gpu, LinearParams::default())?;
//! let out = attention.forward(&LinearInputs::new(q, k, v)).await?;
//!
//! let values: Vec<f32> = out.read().await?;
//! # assert_eq!(values.len(), 2 * 128 * 16);
//! # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
//! ```
//!
//! Where to look:
//!
//! | for | |
//! |---|---|
//! | your own device, encoders and buffers; decoding; training; programs as data | [`guide::embedding`] |
//! | all features of each kernel | [`guide::kernels`] |
//! | scores and masks of your own, as in FlexAttention | [`guide::flex_attention`], [`Hook`] |
//! | gradients | [`Attention::forward_for_training`], [`backward`] |
//! | what runs and why, for any device, without a GPU | [`plan`] |
//! | systems of the literature, made of these | [`guide::patterns`] |
//! | exactness, promises and limits | [`guide::promises`] |
//! | the command line, JavaScript | [`guide::command_line`], [`guide::javascript`] |
//! | other libraries | [`guide::comparison`] |
//! | how to add a kernel | [`guide::adding_a_kernel`] |
#![warn(missing_docs)]

// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod block_mask;
mod block_sparse;
mod caps;
mod dtype;
mod error;
mod flash;
pub mod gate;
#[cfg(feature = "wgpu")]
mod gpu;
pub mod guide;
mod layout;
mod linear;
mod lists;
mod merge;
mod neighborhood;
mod packed;
mod program;
pub mod reference;
mod rotary;
mod rows;
pub mod score_reduction;
mod small_map;
mod softmax;
pub mod token_lists;

#[cfg(feature = "catalogue")]
pub mod catalogue;

/// Planning, which needs no GPU: from limits and shapes to a [`Program`].
///
/// ```
/// use wgpu_attention::plan::{AttentionParams, Caps, Shapes};
/// use wgpu_attention::{DType, FlashParams, Layout};
/// let tokens = Layout::heads_first(DType::F16, [1, 8, 1024, 64]);
/// let shapes = Shapes::new([("q", tokens.clone()), ("k", tokens.clone()), ("v", tokens)]);
/// let program = FlashParams::causal().plan(&Caps::core(), &shapes)?; // WGSL, bindings and dispatches as data
/// println!("{program}"); // and in words
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
pub mod plan {
    pub use crate::caps::{AdapterKind, Backend, Caps, Engine};
    pub use crate::program::{
        Binding, BindingAccess, Check, Contents, Dispatch, Guards, HookLines, Kernel, Name, Program, Rule, Scratch,
        Shapes, Slice, Source, TensorSpec,
    };
    pub use crate::softmax::AttentionParams;
}

/// Gradients: what a forward pass leaves for the backward pass, and what the backward pass reads and writes. See
/// [`Attention::forward_for_training`], [`LinearAttention::backward`] and [`gate::SeerGate::backward`].
#[cfg(feature = "wgpu")]
pub mod backward {
    pub use crate::gpu::calls::attention::{AttentionGradients, AttentionSaved, OutputGradients};
    pub use crate::gpu::calls::linear::{LinearGradients, LinearSummaryGradients};
    pub use crate::gpu::calls::linear_gate::LinearGateGradients;
    pub use crate::gpu::calls::seer_training::{SeerGateGradients, SeerGateSaved};
}

pub use block_mask::{BlockGrid, HeadBlocks};
pub use block_sparse::BlockSparseParams;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use flash::FlashParams;
#[cfg(feature = "wgpu")]
pub use gpu::call::Call;
#[cfg(feature = "wgpu")]
pub use gpu::calls::attention::{
    Attention, AttentionInputs, AttentionOutputs, BlockSparseAttention, FlashAttention, NeighborhoodAttention,
};
#[cfg(feature = "wgpu")]
pub use gpu::calls::block_mask::{BlockList, BlockMask};
#[cfg(feature = "wgpu")]
pub use gpu::calls::linear::{LinearAttention, LinearInputs, LinearMomentum, LinearSummary};
#[cfg(feature = "wgpu")]
pub use gpu::calls::linear_gate::{LinearGate, LinearGateInputs};
#[cfg(feature = "wgpu")]
pub use gpu::calls::merge::Merge;
#[cfg(feature = "wgpu")]
pub use gpu::calls::rotary::{Positions, Rotary};
#[cfg(feature = "wgpu")]
pub use gpu::calls::rows::Rows;
#[cfg(feature = "wgpu")]
pub use gpu::calls::seqlens::Seqlens;
#[cfg(feature = "wgpu")]
pub use gpu::prepared::Prepared;
#[cfg(feature = "wgpu")]
pub use gpu::tensor::Tensor;
#[cfg(feature = "wgpu")]
pub use gpu::timing::GpuTime;
#[cfg(feature = "wgpu")]
pub use gpu::{Gpu, GpuOptions};
/// The version of half that this crate uses: 16-bit floats on the host.
pub use half;
pub use layout::Layout;
pub use linear::{FeatureMap, LinearAlgorithm, LinearGateActivation, LinearParams, LinearRule};
pub use neighborhood::{NeighborhoodAxis, NeighborhoodParams};
pub use program::hook::Hook;
pub use rotary::RotaryParams;
pub use rows::{RowReduction, RowsParams};
pub use softmax::{Causal, Window};
/// The version of wgpu that this crate uses.
#[cfg(feature = "wgpu")]
pub use wgpu;

// Names within the crate of what the modules above show. Smaller sets of features do not use all of them.
#[allow(unused_imports)]
mod names {
    pub(crate) use crate::caps::{AdapterKind, Backend, Caps, Engine};
    pub(crate) use crate::gate::{Pool, SeerDecodeGateParams, SeerGateParams, Selector};
    #[cfg(feature = "wgpu")]
    pub(crate) use crate::gate::{SeerDecodeGate, SeerDecodeInputs, SeerDecodeWeights, SeerGate, SeerGateInputs};
    pub(crate) use crate::program::{Program, Shapes};
    pub(crate) use crate::score_reduction::{HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReductionParams};
    #[cfg(feature = "wgpu")]
    pub(crate) use crate::score_reduction::{ReducedScores, ScoreReduction, ScoreReductionInputs};
    pub(crate) use crate::softmax::AttentionParams;
}
#[allow(unused_imports)]
pub(crate) use names::*;
