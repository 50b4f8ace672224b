//! A box of work.

use std::ops::Range;

/// A box of work: some batches, heads and tiles. One dispatch each; never a cut through a loop over keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Batch entries.
    pub batches: Range<usize>,
    /// Query heads.
    pub heads: Range<usize>,
    /// Tiles of query rows.
    pub tiles: Range<usize>,
}

impl Part {
    /// So many batch entries, heads and tiles.
    pub fn whole([batches, heads, tiles]: [usize; 3]) -> Self {
        Self { batches: 0..batches, heads: 0..heads, tiles: 0..tiles }
    }

    pub fn sizes(&self) -> [usize; 3] {
        [self.batches.len(), self.heads.len(), self.tiles.len()]
    }

    pub fn is_empty(&self) -> bool {
        self.sizes().contains(&0)
    }

    /// First batch entry, head and tile, for a shader.
    pub fn first(&self) -> [u32; 3] {
        [self.batches.start, self.heads.start, self.tiles.start].map(|n| n as u32)
    }

    /// Workgroups along x, y and z.
    pub fn workgroups(&self) -> [u32; 3] {
        let [batches, heads, tiles] = self.sizes().map(|n| n as u32);
        [tiles, heads, batches]
    }

    /// Halves along the first of `dims` that can be halved.
    pub fn halves(&self, dims: &[usize]) -> Option<[Part; 2]> {
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
