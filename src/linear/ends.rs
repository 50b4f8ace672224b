//! Where the state of a walk comes from, and where it goes to.

use super::names::Tensor;
use super::task::Access;
use crate::program::shader::AccessKind;

/// Where the state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateSource {
    Nothing,
    H0(Tensor),
    /// Its rows are the columns here.
    Turned(Tensor),
    /// Where it goes to.
    InPlace,
    /// What the walk itself has kept.
    Kept,
}

/// `FROM` and `TO` of `shaders/linear/states.wgsl`.
pub(super) const FROM_NOTHING: usize = 0;
const FROM_H0: usize = 1;
const FROM_H0_TURNED: usize = 2;
const FROM_HT: usize = 3;
pub(super) const FROM_SEGMENT: usize = 4;
const FROM_KEPT: usize = 5;
pub(super) const TO_NOTHING: usize = 0;
const TO_HT: usize = 1;
pub(super) const TO_SEGMENT: usize = 2;

/// The constants and tensors of both ends of a walk.
pub(super) fn ends(from: StateSource, to: Option<Tensor>) -> ([(&'static str, usize); 2], Vec<Access>) {
    let (number, initial) = match from {
        StateSource::Nothing => (FROM_NOTHING, None),
        StateSource::H0(part) => (FROM_H0, Some(("h0", part, AccessKind::Load4))),
        StateSource::Turned(part) => (FROM_H0_TURNED, Some(("h0", part, AccessKind::Load1))),
        StateSource::InPlace => (FROM_HT, None),
        StateSource::Kept => (FROM_KEPT, None),
    };
    let kind = if from == StateSource::InPlace { AccessKind::Update4 } else { AccessKind::Store4 };
    let last = to.map(|part| ("ht", part, kind));
    let to = if last.is_some() { TO_HT } else { TO_NOTHING };
    ([("FROM", number), ("TO", to)], initial.into_iter().chain(last).collect())
}
