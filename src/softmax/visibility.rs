//! Who sees whom: what a family brings to the softmax engine beside its file in `shaders/tiles/`.

use super::{AttentionShapes, Tiling};
use crate::Result;
use crate::packed::Side;
use crate::program::Table;
use crate::program::shader::{AccessKind, Binding};

/// Who sees whom, and how tiles of rows and columns are visited.
pub(crate) trait Visibility: std::fmt::Debug + Send + Sync {
    /// The family's name, as users know it.
    fn family(&self) -> &'static str;

    /// Whether it goes with these shapes, which fit together otherwise.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for what the family does not take.
    fn check(&self, _shapes: &AttentionShapes) -> Result<()> {
        Ok(())
    }

    /// Bytes of workgroup memory that its files use for each row of a tile.
    fn memory_per_row(&self) -> u32 {
        0
    }

    /// What the engine for few rows is chosen by, if it serves it too: its tiles may have any number of rows.
    fn few(&self, _shapes: &AttentionShapes) -> Option<Few> {
        None
    }

    /// The same for one query each of the heads that share a key head, as rows of one sequence, where that sees the same keys.
    fn grouped(&self, _shapes: &AttentionShapes) -> Option<Box<dyn Visibility>> {
        None
    }

    /// The same for passes that visit the queries of each key, or all pairs, where that is another: over the block mask of the shapes.
    fn over_all_keys(&self) -> Option<Box<dyn Visibility>> {
        None
    }

    /// The files behind the seam, where the rows of a tile are tokens of this side.
    fn files(&self, side: Side) -> Vec<&'static str>;

    /// The files that say which of the visit's tiles are computed, where that is the family's to say.
    fn choice(&self, _side: Side) -> Option<Vec<&'static str>> {
        None
    }

    /// Tensors of those files that may not be there.
    fn optional(&self) -> Vec<(&'static str, AccessKind)> {
        vec![]
    }

    /// Constants of those files.
    fn constants(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(&'static str, u32)>;

    /// Tables that those files read.
    fn tables(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Vec<(Binding, Table)>;

    /// The work on one batch entry and head.
    fn extent(&self, side: Side, shapes: &AttentionShapes, engine: &Tiling) -> Extent;

    /// What is special about a plan, in words.
    fn describe(&self, shapes: &AttentionShapes, engine: &Tiling) -> Option<String>;
}

/// Rows that are visited together, and how their columns may be divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Few {
    /// Rows that see the same columns, but for a causal mask and lengths.
    pub rows: usize,
    /// Columns that they see at most.
    pub columns: usize,
    /// Columns to one part, at least, where workgroups share them: parts depend on the columns alone, so that a row's bits do not depend on
    /// what stands beside it.
    pub part: usize,
}

impl Few {
    /// All queries, and all keys.
    pub fn of_all(shapes: &AttentionShapes) -> Self {
        Self { rows: shapes.rows(Side::Queries), columns: shapes.rows(Side::Keys), part: 1024 }
    }
}

/// The work on one batch entry and head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Tiles of rows.
    pub tiles: usize,
    /// Columns that one of them visits, on average.
    pub cols: usize,
    /// Tiles of columns that one of them visits, at most.
    pub visited: usize,
}
