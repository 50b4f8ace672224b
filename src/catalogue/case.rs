//! A case of softmax attention as data.

use crate::reference::FlashReference;
use crate::{DType, FlashParams, HeadBlocks, NeighborhoodAxis};
use std::sync::OnceLock;

/// Where a case's values come from.
#[derive(Clone, Debug)]
pub enum Scores {
    /// q and k normal with this standard deviation, v with 1.
    Normal(f32),
    /// All scores around this one, which may be very low.
    Around(f32),
    /// As [`Scores::Normal`] 1, but every other query has one key that it prefers by far.
    Peaked,
    /// Given q, k, v, such as a real model's.
    Given([Vec<f32>; 3]),
}

/// One attention problem.
#[derive(Debug)]
pub struct AttentionCase {
    /// What is special about it.
    pub label: &'static str,
    /// Batch entries.
    pub batch: usize,
    /// Query heads, key and value heads.
    pub heads: (usize, usize),
    /// Queries, keys.
    pub lengths: (usize, usize),
    /// Width of q and k, width of v.
    pub dims: (usize, usize),
    /// Types of q, of k and v, of the output.
    pub dtypes: [DType; 3],
    /// The params.
    pub params: FlashParams,
    /// The number of queries in each batch entry.
    pub seqlens_q: Option<Vec<usize>>,
    /// The number of keys in each batch entry.
    pub seqlens_k: Option<Vec<usize>>,
    /// An additive bias, repeated along batch, heads, queries, keys where true.
    pub bias: Option<[bool; 4]>,
    /// A boolean mask, repeated likewise.
    pub mask: Option<[bool; 4]>,
    /// The axes of a space: neighborhood attention. None: flash attention.
    pub axes: Vec<NeighborhoodAxis>,
    /// A block mask: block-sparse attention.
    pub blocks: Option<BlockCase>,
    /// Lists of tokens: attention over these.
    pub token_lists: Option<TokenListCase>,
    /// Additional keys that every query sees.
    pub additional: usize,
    /// Packed sequences: offsets of the queries and of the keys. One batch entry then.
    pub cu_seqlens: Option<[Vec<usize>; 2]>,
    /// Lengths and offsets on the GPU.
    pub on_gpu: bool,
    /// The caller's functions.
    pub hooks: Vec<KnownHook>,
    /// Where the values come from.
    pub scores: Scores,
    /// [batch, sequence, heads, head_dim] in memory with an odd offset and gaps, instead of contiguous.
    pub strided: bool,
    /// Outputs and gradients are [batch, sequence, heads, head_dim] in memory.
    pub heads_last: bool,
    /// Seed of the random values.
    pub seed: u64,
    /// Filled at first use: leave it empty.
    pub known: OnceLock<Known>,
}

/// Inputs and expected results of a case.
#[derive(Debug)]
pub struct Known {
    pub(super) inputs: [Vec<f32>; 3],
    /// Additional keys and values.
    pub(super) additional: [Vec<f32>; 2],
    /// Bias and mask as stored, and repeated to [batch, heads_q, queries, keys].
    pub(super) pairs: [Option<[Vec<f32>; 2]>; 2],
    pub(super) expected: OnceLock<FlashReference>,
}

impl Default for AttentionCase {
    fn default() -> Self {
        Self {
            label: "plain",
            batch: 1,
            heads: (2, 2),
            lengths: (64, 64),
            dims: (64, 64),
            dtypes: [DType::F32; 3],
            params: FlashParams::default(),
            seqlens_q: None,
            seqlens_k: None,
            bias: None,
            mask: None,
            axes: Vec::new(),
            blocks: None,
            token_lists: None,
            additional: 0,
            cu_seqlens: None,
            on_gpu: false,
            hooks: Vec::new(),
            scores: Scores::Normal(1.0),
            strided: false,
            heads_last: false,
            seed: 1,
            known: OnceLock::new(),
        }
    }
}

/// A block mask whose right meaning is known.
#[derive(Clone, Debug)]
pub struct BlockCase {
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// The share of the blocks that is chosen, at random.
    pub density: f32,
    /// Whether exactly that share of each row's blocks up to its own is chosen, rounded down but at least one, instead of each block by
    /// chance.
    pub by_row: bool,
    /// Whether one mask serves all batch entries, and all heads.
    pub repeated: [bool; 2],
    /// Whether one mask serves the query heads that share a key head.
    pub by_key_head: bool,
    /// Where the mask comes from.
    pub from: MaskSource,
    /// What each head sees; empty: all see the chosen blocks.
    pub heads: Vec<HeadBlocks>,
}

/// Lists of tokens whose right meaning is known.
#[derive(Clone, Debug)]
pub struct TokenListCase {
    /// Queries to a list.
    pub block: usize,
    /// Tokens of a list at most.
    pub capacity: usize,
    /// Whether all lists are as long as can be; else they are of any length.
    pub whole: bool,
    /// Whether one set of lists serves all batch entries, and all heads.
    pub repeated: [bool; 2],
    /// Whether one set serves the query heads that share a key head.
    pub by_key_head: bool,
}

impl Default for TokenListCase {
    fn default() -> Self {
        Self { block: 1, capacity: 100, whole: false, repeated: [false; 2], by_key_head: false }
    }
}

/// How a mask gets to the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskSource {
    /// As a bitmap, with bits set beyond the last block.
    Bits,
    /// As lists on the host.
    HostLists,
    /// As lists on the GPU.
    GpuLists,
    /// From the case's own masks, which are the caller's functions.
    Hooks,
    /// No blocks at all: heads see all, or the first and last keys.
    Heads,
}

impl Default for BlockCase {
    fn default() -> Self {
        Self {
            block: [64; 2],
            density: 0.4,
            by_row: false,
            repeated: [false; 2],
            by_key_head: false,
            from: MaskSource::Bits,
            heads: vec![],
        }
    }
}

/// A hook whose right answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownHook {
    /// Score: one of five learned values added, by the distance of query and key. Reads an f32 buffer.
    Relative,
    /// Score: 8 · tanh(score / 8), with its gradient.
    TanhCap,
    /// Score: something of every field of the position; −∞ for one pair in eleven.
    Fields,
    /// Mask: within one of this many documents, by a number for each token. Reads a u32 buffer.
    Documents(usize),
    /// Mask: the first twenty keys, and those up to the query.
    Prefix,
    /// Mask: by head and batch entry; some queries see nothing.
    Stripes,
    /// Score: something of every coordinate of a space.
    Coordinates,
    /// Mask: by every coordinate of a space.
    Checks,
}
