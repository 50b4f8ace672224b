#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod arguments;
mod block_sparse;
mod caps;
mod dispatch;
mod error;
mod few;
mod flash;
mod gate;
mod gpu;
pub mod guide;
mod hook;
mod layout;
mod linear;
mod merge;
mod neighborhood;
mod packed;
pub mod reference;
mod rotary;
mod score_reduction;
mod shader;
mod slices;
mod softmax;
mod steps;
mod tensor;
mod timing;

#[cfg(feature = "catalogue")]
pub mod catalogue;

pub use block_sparse::{
    BlockGrid, BlockList, BlockLists, BlockMask, BlockMaskShape, BlockSparseAttention, BlockSparseParams, HeadBlocks,
};
pub use caps::{AdapterKind, Caps};
pub use error::{Error, Result};
pub use flash::{Causal, FlashAttention, FlashParams, Window};
pub use gate::{
    Pool, SeerDecodeGate, SeerDecodeGateParams, SeerDecodeInputs, SeerDecodeStep, SeerDecodeWeights, SeerGate,
    SeerGateGradients, SeerGateInputs, SeerGateOutput, SeerGateOutputs, SeerGateParams, SeerGatePlan, SeerGatePrepared,
    SeerGateSaved, SeerGateShapes, SeerLoss, Selector,
};
pub use gpu::{Gpu, GpuOptions};
pub use hook::Hook;
pub use layout::{DType, Layout};
pub use linear::{
    LinearAttention, LinearBackwardPlan, LinearBackwardPrepared, LinearBackwardShapes, LinearGradients, LinearInputs,
    LinearOutputGradients, LinearOutputs, LinearParams, LinearPlan, LinearPrepared, LinearShapes, LinearState,
    LinearWay,
};
pub use merge::{Merge, MergePrepared, MergeShapes};
pub use neighborhood::{NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams};
pub use packed::{CuSeqlens, CuSeqlensShape};
pub use rotary::{
    Positions, PositionsShape, Rotary, RotaryDirection, RotaryPairs, RotaryParams, RotaryPrepared, RotaryShapes,
};
pub use score_reduction::{
    HeadGroups, KeyGroups, QueryGroups, ReducedScores, Reduction, ScoreReduction, ScoreReductionInputs,
    ScoreReductionParams, ScoreReductionPlan, ScoreReductionPrepared, ScoreReductionShapes,
};
pub use slices::Slice;
pub use softmax::{
    Attention, AttentionGradients, AttentionInputs, AttentionOutputs, AttentionParams, AttentionPlan,
    AttentionPrepared, AttentionSaved, AttentionShapes, BackwardPlan, BackwardPrepared, BackwardShapes,
    OutputGradients,
};
pub use tensor::Tensor;
pub use timing::GpuTime;
/// The version of wgpu that this crate speaks.
pub use wgpu;
