//! Which family a case belongs to: its params, whatever they are.

use super::AttentionCase;
use crate::softmax::{AnyVisibility, ScoreParams, SoftmaxParams};
use crate::token_lists::TokenListParams;
use crate::{AttentionParams, BlockSparseParams, FlashParams, NeighborhoodParams, Result};

/// The params of one family or another.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(untagged))]
pub enum CaseParams {
    /// Dense attention.
    Flash(FlashParams),
    /// In a space.
    Neighborhood(NeighborhoodParams),
    /// Over a block mask.
    BlockSparse(BlockSparseParams),
    /// Over lists of tokens.
    TokenLists(TokenListParams),
}

impl AttentionParams for CaseParams {}

impl CaseParams {
    fn own(&self) -> &dyn SoftmaxParams {
        match self {
            Self::Flash(params) => params,
            Self::Neighborhood(params) => params,
            Self::BlockSparse(params) => params,
            Self::TokenLists(params) => params,
        }
    }
}

impl SoftmaxParams for CaseParams {
    fn scores(&self) -> ScoreParams {
        self.own().scores()
    }

    fn visibility(&self) -> Result<AnyVisibility> {
        self.own().visibility()
    }
}

impl AttentionCase {
    /// The params of the case's family, from those that all of them share.
    pub(super) fn in_family(&self, params: FlashParams) -> CaseParams {
        let FlashParams { causal, scale, softcap, score_mod, mask_mod, .. } = params.clone();
        if self.token_lists.is_some() {
            return CaseParams::TokenLists(TokenListParams { causal, scale, softcap, score_mod, mask_mod });
        }
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
