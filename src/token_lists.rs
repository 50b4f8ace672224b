//! Attention over lists of tokens: each block of queries has a list of the keys that it sees. Their rows are read where they lie, and no others
//! (TidalDecode, arXiv 2410.05076; Recycled Attention, 2411.05787; DeepSeek's sparse attention).

#[cfg(feature = "wgpu")]
pub use crate::gpu::calls::{attention::TokenListAttention, token_lists::TokenLists};

use crate::block_sparse::Blocks;
use crate::error::require;
use crate::lists::TokenListShape;
use crate::packed::Side;
use crate::program::Table;
use crate::program::shader::{Binding, file};
use crate::softmax::visibility::{Extent, Few, Visibility};
use crate::softmax::{
    AnyVisibility, AttentionParams, AttentionShapes, Dense, ScoreParams, SoftmaxParams, Tiling, score_methods,
};
use crate::{Causal, Error, Hook, Result, Window};
use std::sync::Arc;

/// What attention over lists of tokens computes, apart from the lists, which come with the inputs.
///
/// ```
/// use wgpu_attention::{Causal, token_lists::TokenListParams};
/// assert_eq!(TokenListParams::causal().causal, Some(Causal::BottomRight));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct TokenListParams {
    /// Causal mask among the listed tokens, by its diagonal and the tokens' own positions.
    pub causal: Option<Causal>,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c).
    pub softcap: Option<f32>,
    /// The caller's functions that change a score, one after another, after everything else that changes it. `at.key` is the token's own
    /// position.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which of the listed tokens are seen.
    pub mask_mod: Vec<Hook>,
}

score_methods!(TokenListParams, causal);

impl AttentionParams for TokenListParams {}

impl SoftmaxParams for TokenListParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, softcap, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, softcap, score_mod, mask_mod, alibi_slopes: None }
    }

    fn visibility(&self) -> Result<AnyVisibility> {
        Ok(AnyVisibility(Arc::new(Lists(Dense { causal: self.causal, window: Window::default() }))))
    }
}

/// Tokens of a list that make a part where workgroups share it.
const TOKENS_OF_A_PART: usize = 128;

/// The visiting order: tiles of columns follow a list.
#[derive(Debug)]
struct Lists(Dense);

impl Lists {
    /// Tiles of the rows of a list.
    fn tiles_of_list(shapes: &AttentionShapes, engine: &Tiling) -> usize {
        lists_of(shapes).block.min(shapes.rows(Side::Queries)).div_ceil(engine.rows() as usize).max(1)
    }
}

impl Visibility for Lists {
    fn family(&self) -> &'static str {
        "token-lists"
    }

    fn check(&self, shapes: &AttentionShapes) -> Result<()> {
        let Some(lists) = &shapes.token_lists else {
            return Err(Error::argument("token_lists", "unset", "set: they name the keys that are seen"));
        };
        require(shapes.packed.is_none(), "cu_seqlens_q", "set", "unset with token lists")?;
        require(shapes.block_mask.is_none(), "block_mask", "set", "unset with token lists")?;
        lists.check(shapes.pairs(), shapes.k.shape()[1])
    }

    fn few(&self, shapes: &AttentionShapes) -> Option<Few> {
        let TokenListShape { block, capacity, .. } = lists_of(shapes);
        let queries = shapes.rows(Side::Queries);
        let part = if queries <= *block { TOKENS_OF_A_PART } else { usize::MAX };
        Some(Few { rows: queries.min(*block), columns: *capacity, part })
    }

    /// The last query sees every key.
    fn grouped(&self, shapes: &AttentionShapes) -> Option<Box<dyn Visibility>> {
        let together = [1, shapes.k.shape()[1]].contains(&lists_of(shapes).tokens.shape()[1]);
        let open = self.0.causal != Some(Causal::TopLeft) && together;
        open.then(|| Box::new(Self(Dense::default())) as _)
    }

    fn over_all_keys(&self) -> Option<Box<dyn Visibility>> {
        Some(Box::new(Blocks::of(self.0.causal)))
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        debug_assert_eq!(side, Side::Queries, "keys have no lists");
        vec![file::TILES_RANGES, file::TILES_LISTS, file::LISTS_PLACE, file::TILES_POSITION, file::TILES_DENSE]
    }

    /// Every tile: lists have what is to be seen, so that masks leave few tiles out.
    fn choice(&self, _: Side) -> Option<Vec<&'static str>> {
        Some(vec![file::UNMAPPED])
    }

    fn constants(&self, _: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(&'static str, u32)> {
        let TokenListShape { block, tokens, .. } = lists_of(shapes);
        let heads = match tokens.shape()[1] {
            1 => 0,
            heads if heads == shapes.k.shape()[1] => 1,
            _ => 2,
        };
        let block = (*block).min(shapes.rows(Side::Queries).next_power_of_two());
        let tiles = Self::tiles_of_list(shapes, engine);
        vec![("BLOCK", block as u32), ("TILES_OF_LIST", tiles as u32), ("LIST_HEADS", heads)]
    }

    fn tables(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(Binding, Table)> {
        self.0.tables(side, shapes, engine)
    }

    fn extent(&self, _: Side, shapes: &AttentionShapes, engine: &Tiling) -> Extent {
        let TokenListShape { block, capacity: cols, .. } = *lists_of(shapes);
        let lists = shapes.rows(Side::Queries).div_ceil(block);
        let visited = cols.div_ceil(engine.cols() as usize);
        Extent { tiles: lists * Self::tiles_of_list(shapes, engine), cols, visited }
    }

    fn describe(&self, shapes: &AttentionShapes, _: &Tiling) -> Option<String> {
        let TokenListShape { block, capacity, .. } = shapes.token_lists.as_ref()?;
        let each = *block == 1 || shapes.query_rows > 1;
        let queries = if each { "each query".into() } else { format!("each block of {block} queries") };
        Some(format!("up to {capacity} tokens by a list for {queries}"))
    }
}

fn lists_of(shapes: &AttentionShapes) -> &TokenListShape {
    shapes.token_lists.as_ref().expect("checked with the shapes")
}

#[cfg(test)]
mod tests {
    use crate::program::shader::file;

    #[test]
    fn kinds_of_heads_are_the_shaders() {
        for (name, code) in [("LISTS_OF_ALL", 0), ("LISTS_OF_KEY_HEADS", 1), ("LISTS_OF_QUERY_HEADS", 2)] {
            let line = format!("const {name}: u32 = {code}u;");
            assert!(file::TILES_LISTS.contains(&line), "{line}");
        }
    }
}
