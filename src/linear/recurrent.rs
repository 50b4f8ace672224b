//! Token by token: how a head's state is divided.

use super::task::Frame;
use crate::program::shader::file;
use crate::{Caps, Engine};

/// Tokens that one workgroup goes over in a dispatch. A dispatch of seconds is taken for a hang, and Mesa's llvmpipe ends every loop
/// once all of an invocation's loops have gone round 65535 times, without a word.
pub(super) const STRETCH: usize = 1024;
/// Up to so many tokens, as in decoding, states weigh more than tokens, and a chunk would be mostly empty.
pub(super) const FEW: usize = 32;
/// Rows of the state for each thread of a subgroup at most: beyond, the text takes seconds to compile.
const MOST_ROWS: usize = 32;

/// Up to so many tokens go by lanes, whose text compiles in half the time: what counts then is the state's way through memory. Eight
/// tokens in place (D 128, 64 MiB of states, Mesa's llvmpipe) take 1.6 times as long as a copy of the states by subgroups, by lanes 3.4.
const ALONE: usize = 1;

/// How a workgroup divides a head's state. D 64 with gates of heads, two cores, in ms (in the rows of gradients, the column `Lanes` is
/// three passes):
///
/// | | tokens | `Lanes` | `Subgroup` | first `Lanes` | first `Subgroup` |
/// |---|---|---|---|---|---|
/// | Mesa's llvmpipe 22.3, H 4 | 8192 | 54.7 | 15.6 | 508 | 557 |
/// | gradients | | 428 | 115 | 1352 | 1655 |
/// | SwiftShader, H 4 | 2048 | 159 | 28 | 231 | 618 |
/// | gradients | | 1456 | 115 | 1786 | 1661 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recurrent {
    /// `shaders/linear/recurrent/lanes.wgsl`.
    Lanes { cols: usize, threads: usize },
    /// `shaders/linear/recurrent/subgroup.wgsl`: a subgroup of so many threads, sums in so many parts.
    Subgroup { threads: usize, lanes: usize },
}

impl Recurrent {
    pub fn of(caps: &Caps, frame: &Frame, packed: bool, with_snapshots: bool) -> Self {
        let (head_dim, value_dim) = frame.dims;
        // Whole rows of cache lines, and at most 64 numbers of the state a thread.
        let cols = value_dim.next_power_of_two().clamp(16, 64);
        let threads = (head_dim.next_multiple_of(4) * cols / 64).next_power_of_two().clamp(64, 256);
        let runs = caps.engine == Engine::Processor && Caps::serves_processor(caps.subgroup);
        let serves = runs && head_dim <= MOST_ROWS * caps.subgroup as usize;
        let many = packed || frame.tokens > ALONE;
        if serves && many && !with_snapshots {
            return Self::Subgroup { threads: caps.subgroup as usize, lanes: 4 * threads / cols };
        }
        Self::Lanes { cols, threads }
    }

    /// For errors, and in the plan's words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lanes { .. } => "token by token",
            Self::Subgroup { .. } => "token by token by engine processor",
        }
    }

    /// Columns of the state that a workgroup keeps.
    pub fn cols(self) -> usize {
        match self {
            Self::Lanes { cols, .. } => cols,
            Self::Subgroup { threads, .. } => 4 * threads,
        }
    }

    pub fn file(self) -> &'static str {
        match self {
            Self::Lanes { .. } => file::LINEAR_RECURRENT_LANES,
            Self::Subgroup { .. } => file::LINEAR_RECURRENT_SUBGROUP,
        }
    }

    /// Those of the text, for a walk that does or does not correct values.
    pub fn constants(self, head_dim: usize, corrects: bool) -> Vec<(&'static str, usize)> {
        match self {
            Self::Lanes { cols, threads } => {
                let (batch, corrections) = if corrects { (256 / threads, 2) } else { (512 / threads, 0) };
                vec![("WG", threads), ("COLS", cols), ("BATCH", batch), ("CORRECTIONS", corrections)]
            }
            Self::Subgroup { threads, lanes } => {
                let d4 = head_dim.div_ceil(4);
                let loads = d4.div_ceil(threads);
                vec![("WG", threads), ("LANES", lanes), ("FOUR", 4), ("D4", d4), ("LOADS", loads)]
            }
        }
    }
}
