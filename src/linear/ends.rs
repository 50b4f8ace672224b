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
    Unit(Unit),
}

/// The identity, from column `at` on, or ones in that column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub at: usize,
    pub ones: bool,
    pub turned: bool,
}

impl StateSource {
    /// The same with rows for columns.
    pub fn turned(self) -> Self {
        match self {
            Self::H0(part) => Self::Turned(part),
            Self::Unit(unit) => Self::Unit(Unit { turned: true, ..unit }),
            _ => self,
        }
    }
}

/// `FROM` and `TO` of `shaders/linear/states.wgsl`.
pub(super) const FROM_NOTHING: usize = 0;
const FROM_H0: usize = 1;
const FROM_H0_TURNED: usize = 2;
const FROM_HT: usize = 3;
pub(super) const FROM_SEGMENT: usize = 4;
const FROM_KEPT: usize = 5;
const FROM_UNIT: usize = 6;
const FROM_UNIT_TURNED: usize = 7;
pub(super) const TO_NOTHING: usize = 0;
const TO_HT: usize = 1;
pub(super) const TO_SEGMENT: usize = 2;

/// The constants and tensors of both ends of a walk.
pub(super) fn ends(from: StateSource, to: Option<Tensor>) -> (Vec<(&'static str, usize)>, Vec<Access>) {
    let (number, initial) = match from {
        StateSource::Nothing => (FROM_NOTHING, None),
        StateSource::H0(part) => (FROM_H0, Some(("h0", part, AccessKind::Load4))),
        StateSource::Turned(part) => (FROM_H0_TURNED, Some(("h0", part, AccessKind::Load1))),
        StateSource::InPlace => (FROM_HT, None),
        StateSource::Kept => (FROM_KEPT, None),
        StateSource::Unit(Unit { turned, .. }) => (if turned { FROM_UNIT_TURNED } else { FROM_UNIT }, None),
    };
    let kind = if from == StateSource::InPlace { AccessKind::Update4 } else { AccessKind::Store4 };
    let last = to.map(|part| ("ht", part, kind));
    let to = if last.is_some() { TO_HT } else { TO_NOTHING };
    let mut constants = between(number, to);
    if let StateSource::Unit(Unit { at, ones, .. }) = from {
        constants = [&constants[..2], &[("UNIT_AT", at), ("ONES", usize::from(ones))]].concat();
    }
    (constants, initial.into_iter().chain(last).collect())
}

/// The constants of ends that are no tensors of the walk's own.
pub(super) fn between(from: usize, to: usize) -> Vec<(&'static str, usize)> {
    vec![("FROM", from), ("TO", to), ("UNIT_AT", 0), ("ONES", 0)]
}
