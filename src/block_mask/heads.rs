//! What each head sees.

use crate::error::require;
use crate::layout::{MAX_HEADS, MAX_SEQUENCE};
use crate::{Error, Result};

/// What a query head sees. Kinds may differ from head to head in one launch.
///
/// ```
/// use wgpu_attention::HeadBlocks;
/// // DuoAttention: of two key heads with two query heads each, the first retrieves, the second streams.
/// let heads = HeadBlocks::duo_attention(&[true, false], 2, 4, 256);
/// assert_eq!(heads[..2], [HeadBlocks::Dense; 2]);
/// assert_eq!(heads[2], HeadBlocks::Streaming { sink: 4, local: 256 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum HeadBlocks {
    /// Every key.
    Dense,
    /// The first `sink` keys and the last `local` ones up to the query's own position p = i + keys − queries: key j where j ≤ p and (j <
    /// sink or p − j < local). They count tokens, not blocks (StreamingLLM, arXiv 2309.17453).
    Streaming {
        /// How many first keys all later queries see.
        sink: usize,
        /// How many last keys a query sees, including its own.
        local: usize,
    },
    /// The blocks that the mask has chosen.
    Listed,
}

impl HeadBlocks {
    /// Every head sees the first `sink` keys and the last `local` ones (StreamingLLM, arXiv 2309.17453). Heads beyond 2^20, which no call
    /// takes, are left out.
    pub fn streaming_llm(heads: usize, sink: usize, local: usize) -> Vec<Self> {
        vec![Self::Streaming { sink, local }; heads.min(MAX_HEADS + 1)]
    }

    /// DuoAttention (arXiv 2410.10819) and RazorAttention (arXiv 2407.15891): the `group` query heads of a key head see every
    /// key where it is a retrieval head, and the first `sink` and last `local` ones where it is not. Heads beyond 2^20 are left out.
    pub fn duo_attention(retrieval: &[bool], group: usize, sink: usize, local: usize) -> Vec<Self> {
        let head = |&retrieval: &bool| if retrieval { Self::Dense } else { Self::Streaming { sink, local } };
        retrieval.iter().map(head).flat_map(|head| std::iter::repeat_n(head, group)).take(MAX_HEADS + 1).collect()
    }

    /// MoA (arXiv 2406.14909): every head has its own window in addition to the first `sink` keys.
    pub fn moa(sink: usize, windows: &[usize]) -> Vec<Self> {
        windows.iter().map(|&local| Self::Streaming { sink, local }).collect()
    }

    /// Its row of the shader's table.
    pub(crate) fn row(&self) -> [u32; 4] {
        // As long as any sequence is the same as longer.
        let bound = |n: usize| n.min(MAX_SEQUENCE) as u32;
        match *self {
            Self::Dense => [0; 4],
            Self::Streaming { sink, local } => [1, bound(sink), bound(local), 0],
            Self::Listed => [2, 0, 0, 0],
        }
    }

    /// As [`crate::Shapes::numbers`] has them: three numbers a head.
    pub(crate) fn numbers(all: &[Self]) -> Vec<usize> {
        all.iter().flat_map(|head| head.row()[..3].to_vec()).map(|n| n as usize).collect()
    }

    /// # Errors
    /// [`Error::Argument`] for numbers that are not heads.
    pub(crate) fn from_numbers(numbers: &[usize]) -> Result<Vec<Self>> {
        let head = |three: &[usize]| match *three {
            [0, ..] => Some(Self::Dense),
            [1, sink, local] => Some(Self::Streaming { sink, local }),
            [2, ..] => Some(Self::Listed),
            _ => None,
        };
        let all: Option<Vec<Self>> = numbers.chunks(3).map(head).collect();
        let all = all.filter(|_| numbers.len().is_multiple_of(3));
        let bound = "three numbers per head: 0 (dense), 1 (streaming) or 2 (listed); first keys; last keys";
        all.ok_or_else(|| Error::argument("block_mask.heads", format!("{numbers:?}"), bound))
    }

    /// One for each of `heads` query heads, or none at all, and lists where there is something listed.
    pub(crate) fn check(all: &[Self], heads: usize, listed: bool) -> Result<()> {
        let bound = format!("{heads}, one per query head, or 0: then all are listed");
        require(all.is_empty() || all.len() == heads, "block_mask.heads.len()", all.len(), bound)?;
        match all.iter().position(|head| *head == Self::Listed) {
            Some(i) if !listed => {
                let bound = "another kind: the mask has no blocks";
                Err(Error::argument(format!("block_mask.heads[{i}]"), "Listed", bound))
            }
            None if all.is_empty() && !listed => {
                Err(Error::argument("block_mask.chosen", "unset", "set, since all heads are listed"))
            }
            _ => Ok(()),
        }
    }
}
