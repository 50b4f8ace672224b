//! Everyone sees everyone, less what a causal mask, a window and the lengths take away.

use crate::packed::Side;
use crate::shader::{Binding, file};
use crate::softmax::Portable;
use crate::tiles::{Extent, Tiles};
use crate::{Caps, Result};

/// The visiting order of flash attention.
#[derive(Debug)]
pub(super) struct Dense;

impl Tiles for Dense {
    fn family(&self) -> &'static str {
        "flash"
    }

    fn engine(&self, caps: &Caps, what: &str, head_dim: usize, value_dim: usize) -> Result<Portable> {
        Portable::plan(caps, what, head_dim, value_dim)
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        match side {
            Side::Queries => vec![file::TILES_RANGES, file::TILES_DENSE],
            Side::Keys => vec![file::TILES_RANGES, file::TILES_DENSE_KEYS],
        }
    }

    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![]
    }

    fn tables(&self, _: Side, _: &Portable) -> Vec<(Binding, Option<Vec<u8>>)> {
        vec![]
    }

    fn extent(&self, _: Side, rows: usize, cols: usize, engine: &Portable) -> Extent {
        let visited = cols.div_ceil(engine.cols as usize);
        Extent { tiles: rows.div_ceil(engine.rows as usize), cols, visited }
    }

    fn describe(&self, _: &Portable) -> Option<String> {
        None
    }
}
