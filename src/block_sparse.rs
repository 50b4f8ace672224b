//! Block-sparse attention: softmax attention over the blocks of queries and keys that a mask has chosen.

use crate::block_mask::BlockMaskShape;
use crate::packed::Side;
use crate::program::shader::{AccessKind, Binding, file};
use crate::program::{Table, table};
use crate::softmax::visibility::{Extent, Few, Visibility};
use crate::softmax::{
    AnyVisibility, AttentionParams, AttentionShapes, Dense, ScoreParams, SoftmaxParams, Tiling, score_methods,
};
use crate::{Causal, Error, HeadBlocks, Hook, Result, Window};
use std::sync::Arc;

/// What block-sparse attention computes, apart from the block mask, which comes with the inputs.
///
/// ```
/// use wgpu_attention::{BlockSparseParams, Causal};
/// assert_eq!(BlockSparseParams::causal().causal, Some(Causal::BottomRight));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct BlockSparseParams {
    /// Causal mask within the blocks, by its diagonal.
    pub causal: Option<Causal>,
    /// Factor of q·k. Default: 1/√head_dim.
    pub scale: Option<f32>,
    /// Soft cap c of the scaled scores: c·tanh(score / c).
    pub softcap: Option<f32>,
    /// The caller's functions that change a score, one after another, after everything else that changes it.
    pub score_mod: Vec<Hook>,
    /// The caller's functions that say which keys of the chosen blocks are seen. They are not evaluated in the blocks that the mask marks
    /// as full ([`crate::BlockMask::from_hooks`]).
    pub mask_mod: Vec<Hook>,
}

score_methods!(BlockSparseParams, causal);

impl AttentionParams for BlockSparseParams {}

impl SoftmaxParams for BlockSparseParams {
    fn scores(&self) -> ScoreParams {
        let Self { scale, softcap, score_mod, mask_mod, .. } = self.clone();
        ScoreParams { scale, softcap, score_mod, mask_mod, alibi_slopes: None }
    }

    fn visibility(&self) -> Result<AnyVisibility> {
        Ok(AnyVisibility(Arc::new(Blocks::of(self.causal))))
    }
}

/// The tiles of dense attention that a block mask chooses.
#[derive(Debug)]
pub(crate) struct Blocks(Dense);

impl Blocks {
    /// Under a causal mask, or none.
    pub fn of(causal: Option<Causal>) -> Self {
        Self(Dense { causal, window: Window::default() })
    }
}

impl Visibility for Blocks {
    fn family(&self) -> &'static str {
        "block-sparse"
    }

    fn check(&self, shapes: &AttentionShapes) -> Result<()> {
        let Some(mask) = &shapes.block_mask else {
            return Err(Error::argument("block_mask", "unset", "set: it selects the blocks to compute"));
        };
        shapes.has_no_token_lists()?;
        mask.check(shapes.pairs(), shapes.k.shape()[1])
    }

    fn few(&self, shapes: &AttentionShapes) -> Option<Few> {
        Some(Few::of_all(shapes))
    }

    fn grouped(&self, shapes: &AttentionShapes) -> Option<Box<dyn Visibility>> {
        let mask = mask_of(shapes);
        let together = mask.chosen.as_ref().is_some_and(|chosen| [1, shapes.k.shape()[1]].contains(&chosen.shape()[1]));
        let open = self.0.causal != Some(Causal::TopLeft) && mask.heads.is_empty() && together;
        open.then(|| Box::new(Self(Dense::default())) as _)
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        self.0.files(side)
    }

    fn choice(&self, side: Side) -> Option<Vec<&'static str>> {
        let mut files = vec![file::TILES_BLOCKS];
        files.push(match side {
            Side::Queries => file::TILES_STREAMING,
            Side::Keys => file::TILES_STREAMING_KEYS,
        });
        Some(files)
    }

    fn optional(&self) -> Vec<(&'static str, AccessKind)> {
        ["blocks", "full_blocks"].map(|name| (name, AccessKind::LoadBits)).to_vec()
    }

    fn constants(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(&'static str, u32)> {
        vec![("SEVERAL", u32::from(several(side, mask_of(shapes), engine)))]
    }

    fn tables(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(Binding, Table)> {
        let mask = mask_of(shapes);
        let [rows, cols] = block(side, mask);
        let by_key_head = mask.chosen.as_ref().is_some_and(|chosen| chosen.shape()[1] == shapes.k.shape()[1]);
        let mut table_rows = vec![[rows.ilog2(), cols.ilog2(), u32::from(by_key_head), 0]];
        table_rows.extend((0..shapes.q.shape()[1]).map(|h| mask.heads.get(h).unwrap_or(&HeadBlocks::Listed).row()));
        let mut tables = self.0.tables(side, shapes, engine);
        tables.push(table("block_mask", "vec4u", &table_rows));
        tables
    }

    fn extent(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Extent {
        self.0.extent(side, shapes, engine)
    }

    fn describe(&self, shapes: &AttentionShapes, engine: &Tiling) -> Option<String> {
        let mask = shapes.block_mask.as_ref()?;
        let [queries, keys] = mask.block;
        let kinds = |name: &str, of: fn(&HeadBlocks) -> bool| {
            let count = mask.heads.iter().filter(|head| of(head)).count();
            if count == 0 { String::new() } else { format!("{count} heads {name}, ") }
        };
        let dense = kinds("see every key", |head| *head == HeadBlocks::Dense);
        let streaming = kinds("see first and last keys", |head| matches!(head, HeadBlocks::Streaming { .. }));
        let small = if several(Side::Queries, mask, engine) {
            ", smaller than a tile: one is computed whole where any block of it is chosen"
        } else {
            ""
        };
        let listed = match mask.chosen {
            Some(_) => format!("blocks of {queries} queries and {keys} keys by a list{small}"),
            None => "no lists".into(),
        };
        Some(format!("{dense}{streaming}{listed}"))
    }
}

fn mask_of(shapes: &AttentionShapes) -> &BlockMaskShape {
    shapes.block_mask.as_ref().expect("checked with the shapes")
}

/// Rows and columns of a block.
fn block(side: Side, mask: &BlockMaskShape) -> [usize; 2] {
    let [queries, keys] = mask.block;
    match side {
        Side::Queries => [queries, keys],
        Side::Keys => [keys, queries],
    }
}

/// Whether a tile holds several blocks.
fn several(side: Side, mask: &BlockMaskShape, engine: &Tiling) -> bool {
    let [rows, cols] = block(side, mask);
    mask.chosen.is_some() && (rows < engine.rows() as usize || cols < engine.cols() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_the_shaders() {
        for (head, name) in [
            (HeadBlocks::Dense, "DENSE"),
            (HeadBlocks::Streaming { sink: 1, local: 2 }, "STREAMING"),
            (HeadBlocks::Listed, "LISTED"),
        ] {
            let line = format!("const {name}: u32 = {}u;", head.row()[0]);
            assert!(file::TILES_BLOCKS.contains(&line), "{line}");
        }
    }
}
