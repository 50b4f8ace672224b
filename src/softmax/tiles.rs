//! Who sees whom: what a family brings to the softmax engine beside its file in `shaders/tiles/`.

use super::{AttentionShapes, Portable};
use crate::arguments::Argument;
use crate::packed::Side;
use crate::shader::Binding;
use crate::{Caps, Result};

/// How a family's tiles are visited.
pub(crate) trait Tiles: std::fmt::Debug + Send + Sync {
    /// Its name, as users know it.
    fn family(&self) -> &'static str;

    /// Whether it goes with these shapes, which fit together otherwise.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for what the family does not take.
    fn check(&self, _shapes: &AttentionShapes) -> Result<()> {
        Ok(())
    }

    /// Tile sizes of the engine, for one pass.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if the device has less than core WebGPU promises.
    fn engine(&self, caps: &Caps, what: &str, head_dim: usize, value_dim: usize) -> Result<Portable>;

    /// Whether the engine for few rows serves it too: its tiles may have any number of rows.
    fn takes_few_rows(&self) -> bool {
        false
    }

    /// The same for one query each of the heads that share a key head, as rows of one sequence, where that sees the same keys.
    fn grouped(&self, _shapes: &AttentionShapes) -> Option<Box<dyn Tiles>> {
        None
    }

    /// The files behind the seam, where the rows of a tile are tokens of this side.
    fn files(&self, side: Side) -> Vec<&'static str>;

    /// The files that say which of the visit's tiles are computed, where that is the family's to say.
    fn choice(&self, _side: Side, _arguments: &[Argument]) -> Option<Vec<&'static str>> {
        None
    }

    /// Constants of those files.
    fn constants(&self, side: Side, shapes: &AttentionShapes, engine: &Portable) -> Vec<(&'static str, u32)>;

    /// Tables that those files read, with their contents.
    fn tables(&self, side: Side, shapes: &AttentionShapes, engine: &Portable) -> Vec<(Binding, Option<Vec<u8>>)>;

    /// The work on one batch entry and head of so many rows and columns.
    fn extent(&self, side: Side, rows: usize, cols: usize, engine: &Portable) -> Extent;

    /// What is special about a plan, in words.
    fn describe(&self, shapes: &AttentionShapes, engine: &Portable) -> Option<String>;
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

/// Largest uniform table, by WebGPU's default limit.
const UNIFORM_ROWS: usize = (64 << 10) / 16;

/// A table of rows of 16 bytes: a uniform array where it fits one. Few lengths, so that few shaders differ by it.
pub(crate) fn table<T: bytemuck::Pod>(name: &'static str, ty: &'static str, rows: &[T]) -> (Binding, Option<Vec<u8>>) {
    let length = Some(rows.len().next_power_of_two().max(16)).filter(|&rows| rows <= UNIFORM_ROWS);
    let mut bytes = bytemuck::cast_slice(rows).to_vec();
    bytes.resize(16 * length.unwrap_or(rows.len()), 0);
    (Binding::Table { name, ty, length, write: false }, Some(bytes))
}

/// A table of floats, four a row.
pub(crate) fn float_table(name: &'static str, values: &[f32]) -> (Binding, Option<Vec<u8>>) {
    let four = |four: &[f32]| -> [f32; 4] { std::array::from_fn(|i| four.get(i).copied().unwrap_or(0.0)) };
    table(name, "vec4f", &values.chunks(4).map(four).collect::<Vec<_>>())
}

/// A few rows of whole numbers.
pub(crate) fn small_table(name: &'static str, rows: &[[u32; 4]]) -> (Binding, Option<Vec<u8>>) {
    table(name, "vec4u", rows)
}
