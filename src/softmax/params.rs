//! What a family's params come to: how scores are made, and who sees whom.

use super::visibility::Visibility;
use crate::error::require;
use crate::layout::MAX_SLOPE;
use crate::program::hook::{self, Placed};
use crate::{Caps, Hook, Result};
use std::sync::Arc;

/// What the engine needs of a family's params.
pub trait SoftmaxParams {
    /// How scores are made.
    fn scores(&self) -> ScoreParams;

    /// Who sees whom.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a param that is out of range.
    fn visibility(&self) -> Result<AnyVisibility>;
}

/// Methods of a family's params that set one each.
macro_rules! score_methods {
    ($params:ty) => {
        impl $params {
            /// The same with another factor of q·k.
            pub fn with_scale(self, scale: f32) -> Self {
                Self { scale: Some(scale), ..self }
            }

            /// The same with one more function that changes a score, after the ones before it.
            pub fn with_score_mod(mut self, hook: crate::Hook) -> Self {
                self.score_mod.push(hook);
                self
            }

            /// The same with one more function that says which keys are seen.
            pub fn with_mask_mod(mut self, hook: crate::Hook) -> Self {
                self.mask_mod.push(hook);
                self
            }
        }
    };
    ($params:ty, causal) => {
        $crate::softmax::score_methods!($params);

        impl $params {
            /// A causal mask along the bottom-right diagonal, and nothing else: the last query sees every key ([`Causal::BottomRight`]).
            pub fn causal() -> Self {
                Self::default().with_causal(Causal::BottomRight)
            }

            /// The same with a causal mask.
            pub fn with_causal(self, causal: Causal) -> Self {
                Self { causal: Some(causal), ..self }
            }

            /// The same with a soft cap on the scores.
            pub fn with_softcap(self, softcap: f32) -> Self {
                Self { softcap: Some(softcap), ..self }
            }
        }
    };
}
pub(crate) use score_methods;

/// Who sees whom, whatever the family.
#[derive(Clone, Debug)]
pub struct AnyVisibility(pub(crate) Arc<dyn Visibility>);

/// How scores are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreParams {
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
    pub alibi_slopes: Option<Vec<f32>>,
    pub score_mod: Vec<Hook>,
    pub mask_mod: Vec<Hook>,
}

impl ScoreParams {
    pub(crate) fn check(&self, caps: &Caps) -> Result<()> {
        hook::check(caps, &self.hooks())?;
        if let Some(scale) = self.scale {
            let bound = "finite, and below f32's maximum / log2(e)";
            require((scale * std::f32::consts::LOG2_E).is_finite(), "scale", scale, bound)?;
        }
        if let Some(softcap) = self.softcap {
            require(softcap.is_finite() && softcap > 0.0, "softcap", softcap, "finite and above 0")?;
        }
        for (i, slope) in self.alibi_slopes.iter().flatten().enumerate() {
            let bound = "at most 1e28 in magnitude: its product with a distance is finite";
            require(slope.abs() <= MAX_SLOPE, &format!("alibi_slopes[{i}]"), slope, bound)?;
        }
        Ok(())
    }

    /// The caller's functions in their places.
    pub(crate) fn hooks(&self) -> Vec<Placed> {
        hook::place(&self.score_mod, &self.mask_mod)
    }

    /// What holds for keys that have no place.
    pub(super) fn without_places(&self) -> Self {
        Self { scale: self.scale, softcap: self.softcap, ..Self::default() }
    }
}
