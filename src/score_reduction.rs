//! Score reduction: attention's probabilities, reduced over blocks, segments or tokens without a matrix of them.
//!
//! `p[i][j] = exp(score(scale · q[i]·k[j]) − lse[i])`, recomputed tile by tile from the log-sum-exp of a forward pass.

mod plan;
mod results;
mod steps;

use crate::error::require;
#[cfg(feature = "wgpu")]
pub use crate::gpu::calls::score_reduction::{ReducedScores, ScoreReduction, ScoreReductionInputs};
use crate::{FlashParams, Result};

/// How the probabilities of a cell are reduced: a cell is a group of heads, of queries and of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reduction {
    /// The largest probability.
    #[default]
    Max,
    /// Their sum.
    Sum,
    /// How many are above a bound.
    Count {
        /// The bound, within [0, 1].
        above: f32,
    },
    /// The largest, and its key (of equal ones, the first); `u32::MAX` where no key is seen.
    ArgMax,
}

/// How queries are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum QueryGroups {
    /// This many consecutive queries, a power of two.
    Blocks(usize),
    /// All of a sequence.
    All,
}

/// How keys are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum KeyGroups {
    /// This many consecutive keys, a power of two: 1 for tokens.
    Blocks(usize),
    /// All of a sequence.
    All,
    /// Those with the same segment number, below this bound: see [`crate::ScoreReductionInputs::segments`].
    Segments(usize),
}

/// How query heads are grouped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum HeadGroups {
    /// Each by itself.
    #[default]
    Each,
    /// Those that use the same key head.
    PerKvHead,
    /// All of them.
    All,
}

/// What a score reduction computes.
///
/// | use | reduction | heads | queries | keys |
/// |---|---|---|---|---|
/// | SeerAttention's training target (arXiv 2410.13276) | `Max` | `Each` | `Blocks(64)` | `Blocks(64)` |
/// | SeerAttention-R's (arXiv 2506.08889) | `Max` | `PerKvHead` | `Blocks(1)` | `Blocks(64)` |
/// | TidalDecode's token choice (arXiv 2410.05076) | `Sum`, `top_k` | `All` | `All` | `Blocks(1)` |
/// | Recycled Attention's token choice (arXiv 2411.05787) | `Max`, `top_k` | `PerKvHead` | `Blocks(1)` | `Blocks(1)` |
/// | retrieval-head scores (arXiv 2404.15574): does the head look at the token that it copies? | `ArgMax` | `Each` | `Blocks(1)` | `All` |
/// | PINE's importance of documents (arXiv 2407.01100) | `Sum` | `Each` | `Blocks` of equal documents | `Segments(documents)` |
/// | mass of each class of keys, for visual attention redistribution (arXiv 2503.03321) | `Sum` | `Each` | `Blocks(1)` | `Segments(classes)` |
///
/// The guide `score_reduction` in the crate's documentation has an example of each.
///
/// ```
/// use wgpu_attention::score_reduction::{HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReductionParams};
/// // The largest probability of each block of 64 × 64, of all heads together.
/// let (reduction, heads) = (Reduction::Max, HeadGroups::All);
/// let (queries, keys) = (QueryGroups::Blocks(64), KeyGroups::Blocks(64));
/// let params = ScoreReductionParams { reduction, heads, queries, keys, ..ScoreReductionParams::default() };
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct ScoreReductionParams {
    /// How scores are computed: as in the attention that gave the log-sum-exp.
    pub attention: FlashParams,
    /// How they are reduced.
    pub reduction: Reduction,
    /// How query heads are grouped.
    pub heads: HeadGroups,
    /// How queries are grouped.
    pub queries: QueryGroups,
    /// How keys are grouped.
    pub keys: KeyGroups,
    /// If set, only this many groups of keys for each group of queries: those with the largest values above 0, in the order of their
    /// numbers; of equal ones, the first.
    pub top_k: Option<usize>,
}

impl Default for ScoreReductionParams {
    /// The largest probability in blocks of 64 × 64, head by head.
    fn default() -> Self {
        Self {
            attention: FlashParams::default(),
            reduction: Reduction::default(),
            heads: HeadGroups::default(),
            queries: QueryGroups::Blocks(64),
            keys: KeyGroups::Blocks(64),
            top_k: None,
        }
    }
}

impl ScoreReductionParams {
    pub(crate) fn check(&self) -> Result<()> {
        for (name, size) in [
            ("queries: Blocks", if let QueryGroups::Blocks(size) = self.queries { Some(size) } else { None }),
            ("keys: Blocks", if let KeyGroups::Blocks(size) = self.keys { Some(size) } else { None }),
        ] {
            let Some(size) = size else { continue };
            require(size.is_power_of_two(), name, size, "a power of two: tiles hold whole groups or lie within one")?;
        }
        if let KeyGroups::Segments(count) = self.keys {
            require(count > 0, "keys: Segments", count, "at least 1")?;
        }
        if let Reduction::Count { above } = self.reduction {
            require((0.0..=1.0).contains(&above), "reduction: Count.above", above, "within 0..=1")?;
        }
        if let Some(k) = self.top_k {
            require(k > 0, "top_k", k, "at least 1")?;
            let bound = "unset with ArgMax, which has indices of its own (Max with top_k gives groups of keys)";
            require(self.reduction != Reduction::ArgMax, "top_k", k, bound)?;
        }
        Ok(())
    }

    /// Whether indices come out beside values.
    fn has_indices(&self) -> bool {
        self.top_k.is_some() || self.reduction == Reduction::ArgMax
    }
}
