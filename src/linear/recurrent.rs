//! Token by token: how a head's state is divided.

use super::ends::StateSource;
use super::task::{Decay, Frame, Task};
use super::walk::{After, Correction, Walk};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{Caps, Engine, Result};

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
        // Whole rows of cache lines, and at most 64 numbers of the state a thread, where it has up to 256 rows.
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

impl Walk {
    /// Adds the kernels that go token by token.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for a device that has too little.
    pub fn add_one_by_one(&self, builder: &mut Builder, packed: bool) -> Result<()> {
        let (recurrent, stretch) = (self.one_by_one(builder.caps, packed), self.stretch(STRETCH));
        self.add_report(builder, stretch, packed)?;
        self.add_states(builder, stretch)?;
        let tiles = self.frame.dims.1.div_ceil(recurrent.cols());
        let tasks = self.in_stretches(builder.caps, |walk| walk.recurrent(recurrent), stretch, tiles);
        self.add_tasks(builder, tasks)
    }

    /// How the state is divided token by token.
    pub fn one_by_one(&self, caps: &Caps, packed: bool) -> Recurrent {
        Recurrent::of(caps, &self.frame, packed, self.snapshots.is_some())
    }

    /// The kernel that goes token by token.
    fn recurrent(&self, divided: Recurrent) -> Task {
        let (head_dim, _) = self.frame.dims;
        let (ends, mut tensors) = self.ends();
        let loads = |name, tensor| (name, tensor, AccessKind::Load4);
        tensors.extend(self.adds.into_iter().flat_map(|[k, v]| [loads("k", k), loads("v", v)]));
        tensors.extend(self.snapshots.map(|part| ("snapshots", part, AccessKind::Store4)));
        let of_states = if self.from == StateSource::Kept { AccessKind::Update4 } else { AccessKind::Store4 };
        tensors.extend(self.kept.then_some(("states", self.states, of_states)));
        let correction = self.after.as_ref().and_then(|after| after.correction.as_ref());
        if let Some(After { k, v, .. }) = &self.after {
            tensors.extend([Some(loads("k2", k)), v.map(|v| loads("v2", v))].into_iter().flatten());
        }
        if let Some(Correction { beta, to }) = correction {
            tensors.extend(beta.map(|beta| ("beta", beta, AccessKind::Load1)));
            tensors.extend(to.iter().flat_map(|[e, u]| [("e", *e, AccessKind::Store4), ("u", *u, AccessKind::Store4)]));
        }
        tensors.extend(self.reads.iter().flat_map(|[q, o]| [loads("q", q), ("o", *o, AccessKind::Store4)]));
        let by_channel = self.frame.decay == Decay::ByChannel;
        let takes_away = self.after.as_ref().is_some_and(|after| after.takes_away);
        let sign = 1 + usize::from(takes_away);
        let last = correction.is_some();
        let steps = [
            ("GATED", if by_channel { 1 + usize::from(self.turned) } else { 0 }),
            ("CHANNELS", if self.turned { self.frame.dims.1 } else { head_dim }),
            ("ADDS", usize::from(self.adds.is_some())),
            ("CORRECTS", correction.map_or(0, |_| sign)),
            ("READS", self.reads.map_or(0, |_| 1 + usize::from(last))),
            ("ADDS_AFTER", self.after.as_ref().map_or(0, |_| sign)),
            ("KEPT", usize::from(self.kept)),
        ];
        let files = [
            file::LINEAR_STATES,
            file::LINEAR_WORK,
            file::LINEAR_RECURRENT,
            divided.file(),
            file::LINEAR_REPORT,
            file::LINEAR_BETAS,
            self.gates_file(),
        ];
        // A fade and a sum each for what is read and for what is absorbed.
        let work = 1 + 2 * [self.adds.is_some(), self.reads.is_some(), self.after.is_some(), last]
            .into_iter()
            .filter(|&is| is)
            .count();
        let tokens = self.stretch(STRETCH).min(self.frame.longest());
        Task {
            name: divided.name(),
            files: files.to_vec(),
            constants: [&divided.constants(head_dim, last)[..], &[self.causal()], &steps, &ends].concat(),
            tensors: self.with_gates(tensors),
            segment: 0,
            work: [0; 3],
            runs: 0..1,
            flops: (work * tokens * head_dim * divided.cols()) as f64,
        }
    }
}
