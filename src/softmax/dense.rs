//! Everyone sees everyone, but for a causal mask and a window.

use super::visibility::{Extent, Few, Visibility};
use super::{AttentionShapes, Tiling};
use crate::Result;
use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::packed::Side;
use crate::program::shader::{Binding, file};
use crate::program::{Table, small_table};

/// Which diagonal a causal mask follows. With lengths, the numbers of queries and keys are each batch entry's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Causal {
    /// Query i sees key j when j ≤ i + keys − queries: the last query sees every key (FlashAttention).
    BottomRight,
    /// Query i sees key j when j ≤ i: the first query sees one key (PyTorch's `is_causal`).
    TopLeft,
}

/// Sliding window: query i sees key j when p − left ≤ j ≤ p + right, p = i + keys − queries. Both bounds are inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Window {
    /// Keys before the query's own position; unset: all.
    pub left: Option<usize>,
    /// Keys after it; unset: all.
    pub right: Option<usize>,
}

/// `NONE` of the shaders.
const NONE: u32 = u32::MAX;

/// Everyone sees everyone, less what a causal mask, a window and the lengths take away.
#[derive(Debug, Default)]
pub(crate) struct Dense {
    pub causal: Option<Causal>,
    pub window: Window,
}

impl Visibility for Dense {
    fn family(&self) -> &'static str {
        "flash"
    }

    fn check(&self, shapes: &AttentionShapes) -> Result<()> {
        require(shapes.block_mask.is_none(), "block_mask", "set", "unset: only `BlockSparseAttention` takes one")?;
        shapes.has_no_token_lists()
    }

    fn few(&self, shapes: &AttentionShapes) -> Option<Few> {
        Some(Few::of_all(shapes))
    }

    /// The last query sees every key.
    fn grouped(&self, _: &AttentionShapes) -> Option<Box<dyn Visibility>> {
        let open = self.window == Window::default() && self.causal != Some(Causal::TopLeft);
        open.then(|| Box::new(Self::default()) as _)
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        match side {
            Side::Queries => vec![file::TILES_RANGES, file::TILES_SEQUENCE, file::TILES_POSITION, file::TILES_DENSE],
            Side::Keys => vec![file::TILES_RANGES, file::TILES_SEQUENCE, file::TILES_POSITION, file::TILES_DENSE_KEYS],
        }
    }

    fn constants(&self, _: Side, _: &AttentionShapes, _: &Tiling) -> Vec<(&'static str, u32)> {
        vec![]
    }

    fn tables(&self, _: Side, _: &AttentionShapes, _: &Tiling) -> Vec<(Binding, Table)> {
        // A bound as long as any sequence is an open one.
        let bound = |bound: Option<usize>| bound.filter(|&n| n < MAX_SEQUENCE).map_or(NONE, |n| n as u32);
        let Window { left, right } = self.window;
        vec![small_table("dense", &[[causal_code(self.causal), bound(left), bound(right), 0]])]
    }

    fn extent(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Extent {
        let [rows, cols] = [side, side.other()].map(|side| shapes.rows(side));
        let (tile, step) = (engine.rows() as usize, engine.cols() as usize);
        // As many as a tile of rows sees where both ends of the window follow the diagonal; its first tile may begin before.
        let right = if self.causal == Some(Causal::BottomRight) { Some(0) } else { self.window.right };
        let seen = self.window.left.zip(right).map(|(left, right)| left.saturating_add(right).saturating_add(tile));
        let seen = seen.unwrap_or(cols).min(cols);
        let visited = cols.div_ceil(step).min(seen.div_ceil(step) + 1);
        Extent { tiles: rows.div_ceil(tile), cols: seen, visited }
    }

    fn describe(&self, _: &AttentionShapes, _: &Tiling) -> Option<String> {
        None
    }
}

/// `CAUSAL_…` of the shaders.
fn causal_code(causal: Option<Causal>) -> u32 {
    match causal {
        None => 0,
        Some(Causal::BottomRight) => 1,
        Some(Causal::TopLeft) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::{Causal, causal_code};

    #[test]
    fn causal_codes_are_the_shaders() {
        for (causal, name) in [(Causal::BottomRight, "CAUSAL_BOTTOM_RIGHT"), (Causal::TopLeft, "CAUSAL_TOP_LEFT")] {
            let line = format!("const {name}: u32 = {}u;", causal_code(Some(causal)));
            assert!(crate::program::shader::file::TILES_RANGES.contains(&line), "{line}");
        }
    }
}
