//! A case as one call: what a file needs to repeat it.

use super::{CaseParams, Ready};
use crate::{LinearParams, RotaryParams, RowsParams, ScoreReductionParams, SeerGateParams};

/// The params of any kernel.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(untagged))]
pub enum KernelParams {
    /// Flash, neighborhood or block-sparse attention, or over lists of tokens.
    Attention(CaseParams),
    /// Score reduction.
    ScoreReduction(ScoreReductionParams),
    /// SeerAttention's gate for prompts.
    Gate(SeerGateParams),
    /// Linear attention.
    Linear(LinearParams),
    /// Merge, which has none.
    Merge {},
    /// Rotary embedding.
    Rotary(RotaryParams),
    /// Rows by index.
    Rows(RowsParams),
}

impl KernelParams {
    /// The kernel's name on the command line.
    pub fn kernel(&self) -> &'static str {
        match self {
            Self::Attention(CaseParams::Flash(_)) => "flash",
            Self::Attention(CaseParams::Neighborhood(_)) => "neighborhood",
            Self::Attention(CaseParams::BlockSparse(_)) => "block-sparse",
            Self::Attention(CaseParams::TokenLists(_)) => "token-lists",
            Self::ScoreReduction(_) => "score-reduction",
            Self::Gate(_) => "gate",
            Self::Linear(_) => "linear",
            Self::Merge {} => "merge",
            Self::Rotary(_) => "rotary",
            Self::Rows(_) => "rows",
        }
    }
}

/// One call, ready to run, and what must come of it.
#[derive(Debug)]
pub struct Problem {
    /// The params.
    pub params: KernelParams,
    /// Whether it is the gradients.
    pub backward: bool,
    /// Tensors, numbers and what was prepared for them.
    pub ready: Ready,
    /// Results of the float64 reference by name, with the tensors' shapes; only those that it decides alone.
    pub expected: Vec<(&'static str, Vec<f64>)>,
}
