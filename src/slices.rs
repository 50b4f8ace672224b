//! Work cut into boxes that fit a device's bindings and dispatches, and about one submit each.

use crate::arguments::{Argument, bound_range};
use crate::{Caps, Result};
use std::ops::Range;

/// A box of work: some batches, heads and tiles. One dispatch each; never a cut through a loop over keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Batch entries.
    pub batches: Range<usize>,
    /// Query heads.
    pub heads: Range<usize>,
    /// Tiles of query rows.
    pub tiles: Range<usize>,
}

impl Slice {
    pub(crate) fn sizes(&self) -> [usize; 3] {
        [self.batches.len(), self.heads.len(), self.tiles.len()]
    }

    /// First batch entry, head and tile, for a shader.
    pub(crate) fn first(&self) -> [u32; 3] {
        [self.batches.start, self.heads.start, self.tiles.start].map(|n| n as u32)
    }

    /// Halves along the first of `dims` that can be halved.
    fn halves(&self, dims: &[usize]) -> Option<[Slice; 2]> {
        let dim = *dims.iter().find(|&&d| self.sizes()[d] > 1)?;
        let mut two = [self.clone(), self.clone()];
        let [a, b] = &mut two;
        let (left, right) = match dim {
            0 => (&mut a.batches, &mut b.batches),
            1 => (&mut a.heads, &mut b.heads),
            _ => (&mut a.tiles, &mut b.tiles),
        };
        let middle = left.start + left.len() / 2;
        left.end = middle;
        right.start = middle;
        Some(two)
    }
}

/// Cuts `whole` until each slice fits the device's bindings and dispatch sizes, and about one submit of work.
/// `tile_flops` is what one tile of one head costs.
///
/// # Errors
/// [`Error::Limit`] if one batch entry and head alone is too large to bind.
pub(crate) fn cut(caps: &Caps, arguments: &[Argument], whole: Slice, tile_flops: f64) -> Result<Vec<Slice>> {
    let mut done = Vec::new();
    let mut open = vec![whole];
    while let Some(slice) = open.pop() {
        let mut halves = None;
        for (i, argument) in arguments.iter().enumerate() {
            let range = bound_range(caps, arguments, i, &slice);
            let limit = caps.binding_bytes.min(u64::from(u32::MAX) * argument.layout.dtype.bytes());
            let bytes = range.end - range.start;
            if bytes > limit {
                halves = slice.halves(&[0, 1]);
                if halves.is_none() {
                    caps.within(argument.name, "maxStorageBufferBindingSize", bytes, limit)?;
                }
                break;
            }
        }
        if halves.is_none() {
            let sizes = slice.sizes();
            let too_many = (0..3).find(|&d| sizes[d] > caps.workgroups as usize);
            let flops = sizes.iter().map(|&n| n as f64).product::<f64>() * tile_flops;
            halves = match too_many {
                Some(d) => slice.halves(&[d]),
                None if flops > caps.submit_flops() => slice.halves(&[0, 1, 2]),
                None => None,
            };
        }
        match halves {
            Some([first, second]) => open.extend([second, first]),
            None => done.push(slice),
        }
    }
    Ok(done)
}
