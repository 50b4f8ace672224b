//! Who sees whom: what a family brings to the softmax engine beside its file in `shaders/tiles/`.

use crate::packed::Side;
use crate::shader::Binding;
use crate::softmax::Portable;
use crate::{Caps, Result};

/// How a family's tiles are visited.
pub(crate) trait Tiles: std::fmt::Debug + Send + Sync {
    /// Its name, as users know it.
    fn family(&self) -> &'static str;

    /// Tile sizes of the engine, for one pass.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if the device has less than core WebGPU promises.
    fn engine(&self, caps: &Caps, what: &str, head_dim: usize, value_dim: usize) -> Result<Portable>;

    /// The files behind the seam, where the rows of a tile are tokens of this side.
    fn files(&self, side: Side) -> Vec<&'static str>;

    /// Constants of those files.
    fn constants(&self) -> Vec<(&'static str, u32)>;

    /// Tables that those files read, with their contents.
    fn tables(&self, side: Side, engine: &Portable) -> Vec<(Binding, Option<Vec<u8>>)>;

    /// The work on one batch entry and head of so many rows and columns.
    fn extent(&self, side: Side, rows: usize, cols: usize, engine: &Portable) -> Extent;

    /// What is special about a plan, in words.
    fn describe(&self, engine: &Portable) -> Option<String>;
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
