//! SeerAttention's gate, which learns which blocks attention should compute (arXiv 2410.13276).

mod decode;
mod frame;
mod gradients;
mod kernels;
mod plan;
mod selection;
mod task;
mod training;

#[cfg(feature = "wgpu")]
pub use crate::gpu::calls::block_selection::BlockScores;
#[cfg(feature = "wgpu")]
pub use crate::gpu::calls::seer_decode::{SeerDecodeGate, SeerDecodeInputs, SeerDecodeWeights};
#[cfg(feature = "wgpu")]
pub use crate::gpu::calls::seer_gate::{SeerGate, SeerGateInputs};
pub use decode::SeerDecodeGateParams;
pub use selection::BlockSelection;
#[cfg(feature = "wgpu")]
pub(crate) use training::Training;

use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::{Causal, Result};

/// How the tokens of a block are pooled into one row, element by element. A short last block pools the tokens that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Pool {
    /// The largest.
    Max = 0,
    /// The smallest.
    Min = 1,
    /// The mean.
    Avg = 2,
}

/// How a row's scores become a choice of blocks. z are the gate's logits, and P is their softmax over the blocks that the row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Selector {
    /// The blocks with P above this bound, within [0, 1]; SeerAttention uses 5·10⁻⁴ to 5·10⁻³.
    Threshold(f64),
    /// The max(1, ⌊(1 − √(1 − r)) · M⌋) blocks of a row with the largest z, where M is the number of blocks of keys in the sequence: under
    /// a causal mask, about the share r, within (0, 1], of all blocks. Without a causal mask, max(1, ⌊r · M⌋).
    Density(f64),
    /// The fewest blocks whose P add up to this sum, within [0, 1].
    TopP(f64),
    /// As many of the blocks with the largest z as hold this many keys, at least one block; all blocks, where a row sees no more.
    Budget(usize),
}

impl Selector {
    fn check(self, key_block: usize) -> Result<()> {
        match self {
            Self::Threshold(t) => require((0.0..=1.0).contains(&t), "selector: Threshold", t, "within 0..=1"),
            Self::Density(r) => require(r > 0.0 && r <= 1.0, "selector: Density", r, "above 0, at most 1"),
            Self::TopP(p) => require((0.0..=1.0).contains(&p), "selector: TopP", p, "within 0..=1"),
            Self::Budget(tokens) => {
                let bound = format!("at least {key_block}, the number of keys in a block");
                require(tokens >= key_block, "selector: Budget", tokens, bound)
            }
        }
    }
}

/// What a prefill gate computes.
///
/// ```
/// use wgpu_attention::gate::{SeerGateParams, Selector};
/// // A tenth of the blocks of each row; its own and the first ones are always chosen.
/// let params = SeerGateParams { sink: true, diagonal: true, ..SeerGateParams::default() };
/// let params = params.with_selector(Selector::Density(0.1));
/// assert_eq!(params.block, [64, 64]);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct SeerGateParams {
    /// Queries and keys of a block, powers of two. Default: 64 and 64.
    pub block: [usize; 2],
    /// How queries are pooled: any of the kinds, each at most once, with their results concatenated. Default: the mean.
    pub pool_q: Vec<Pool>,
    /// How keys are pooled. Default: maximum, minimum, mean.
    pub pool_k: Vec<Pool>,
    /// The base of the model's rotary angles. The gate has its own embedding, half-split over all of its width, with each block at the
    /// position of its first token. Unset: none. Default: 10000.
    pub rope_theta: Option<f32>,
    /// Causal mask, by blocks: a row sees the blocks of keys in which its last query sees any key. Default: from the bottom right.
    pub causal: Option<Causal>,
    /// How blocks are chosen. Default: those with a probability above 2·10⁻³.
    pub selector: Selector,
    /// Whether every row also chooses the first block. Default: no.
    pub sink: bool,
    /// Whether every row also chooses the blocks that hold its own tokens. Default: no.
    pub diagonal: bool,
    /// Whether the last two blocks of queries of a sequence choose all that they see. Default: yes.
    pub last_rows_dense: bool,
}

impl Default for SeerGateParams {
    fn default() -> Self {
        Self {
            block: [64, 64],
            pool_q: vec![Pool::Avg],
            pool_k: vec![Pool::Max, Pool::Min, Pool::Avg],
            rope_theta: Some(10_000.0),
            causal: Some(Causal::BottomRight),
            selector: Selector::Threshold(2e-3),
            sink: false,
            diagonal: false,
            last_rows_dense: true,
        }
    }
}

impl SeerGateParams {
    /// The same with another choice of blocks.
    pub fn with_selector(self, selector: Selector) -> Self {
        Self { selector, ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (i, size) in self.block.into_iter().enumerate() {
            check_block(&format!("block[{i}]"), size)?;
        }
        for (name, pools) in [("pool_q", &self.pool_q), ("pool_k", &self.pool_k)] {
            check_pools(name, pools)?;
        }
        check_theta(self.rope_theta)?;
        self.selector.check(self.block[1])
    }
}

fn check_block(name: &str, size: usize) -> Result<()> {
    let bound = format!("a power of two, at most {MAX_SEQUENCE}");
    require(size.is_power_of_two() && size <= MAX_SEQUENCE, name, size, bound)
}

fn check_pools(name: &str, pools: &[Pool]) -> Result<()> {
    require(!pools.is_empty(), name, "empty", "one or more of Max, Min, Avg")?;
    let twice = (0..pools.len()).find(|&i| pools[..i].contains(&pools[i]));
    let again = twice.map_or(String::new(), |i| format!("{:?}", pools[i]));
    require(twice.is_none(), &format!("{name}[{}]", twice.unwrap_or(0)), again, "another kind: each may occur once")
}

fn check_theta(theta: Option<f32>) -> Result<()> {
    let fits = theta.is_none_or(|theta| theta.is_finite() && theta > 0.0);
    require(fits, "rope_theta", theta.unwrap_or(0.0), "finite and above 0")
}
