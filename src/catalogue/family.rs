//! Which family a case belongs to: its params, whatever they are.

use super::AttentionCase;
use crate::softmax::{Order, ScoreParams, Sees};
use crate::{AttentionParams, BlockSparseParams, FlashParams, NeighborhoodParams, Result};

/// The params of one family or another.
#[derive(Clone, Debug, PartialEq)]
pub enum CaseParams {
    /// Dense attention.
    Flash(FlashParams),
    /// In a space.
    Neighborhood(NeighborhoodParams),
    /// Over a block mask.
    BlockSparse(BlockSparseParams),
}

impl AttentionParams for CaseParams {}

impl CaseParams {
    fn sees(&self) -> &dyn Sees {
        match self {
            Self::Flash(params) => params,
            Self::Neighborhood(params) => params,
            Self::BlockSparse(params) => params,
        }
    }
}

impl Sees for CaseParams {
    fn scores(&self) -> ScoreParams {
        self.sees().scores()
    }

    fn tiles(&self) -> Result<Order> {
        self.sees().tiles()
    }
}

impl AttentionCase {
    /// The params of the case's family, from those that all of them share.
    pub(super) fn in_family(&self, params: FlashParams) -> CaseParams {
        let FlashParams { causal, scale, softcap, score_mod, mask_mod, .. } = params.clone();
        if self.blocks.is_some() {
            return CaseParams::BlockSparse(BlockSparseParams { causal, scale, softcap, score_mod, mask_mod });
        }
        match self.axes.is_empty() {
            true => CaseParams::Flash(params),
            false => {
                let axes = self.axes.clone();
                CaseParams::Neighborhood(NeighborhoodParams { axes, scale, score_mod, mask_mod })
            }
        }
    }
}
