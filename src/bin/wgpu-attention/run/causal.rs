//! The parameter `causal`, in one form for every kernel.

use serde::Deserialize;
use wgpu_attention::Causal;

/// A switch, or a diagonal by name; true is that from the bottom right.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "causal must be true, false, \"bottom_right\", \"top_left\" or null")]
pub enum Diagonal {
    On(bool),
    By(Causal),
}

impl Diagonal {
    pub fn causal(self) -> Option<Causal> {
        match self {
            Self::On(on) => on.then_some(Causal::BottomRight),
            Self::By(causal) => Some(causal),
        }
    }
}

/// The same of the axes of a space, for all of them or one by one. Queries and keys are the same positions, so that both diagonals are.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "causal must be true, false, \"bottom_right\", \"top_left\", null, or an array of these, one per axis"
)]
pub enum Axes {
    All(Diagonal),
    Each(Vec<Diagonal>),
}

impl Axes {
    /// Entries, if there is one an axis.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::All(_) => None,
            Self::Each(axes) => Some(axes.len()),
        }
    }

    pub fn is_causal(&self, axis: usize) -> bool {
        let diagonal = match self {
            Self::All(all) => *all,
            Self::Each(axes) => axes[axis],
        };
        diagonal.causal().is_some()
    }
}
