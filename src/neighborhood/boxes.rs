//! Tiles of a space: which boxes of queries and keys are multiplied with one another.

use super::{NeighborhoodAxis, check};
use crate::Result;
use crate::packed::Side;
use crate::program::shader::{Binding, file};
use crate::program::{Table, small_table};
use crate::small_map::SmallMap;
use crate::softmax::visibility::{Extent, Visibility};
use crate::softmax::{AttentionShapes, Tiling};
use std::sync::Mutex;

/// An axis that a space does not have.
const NO_AXIS: NeighborhoodAxis = NeighborhoodAxis { length: 1, window: 1, stride: 1, dilation: 1, causal: false };

/// The visiting order of neighborhood attention.
#[derive(Debug)]
pub(super) struct Boxes {
    axes: Vec<NeighborhoodAxis>,
    /// Three, those that there are last.
    padded: [NeighborhoodAxis; 3],
    /// What was chosen for a side, and for tiles of so many rows and columns.
    chosen: Mutex<SmallMap<(Side, u32, u32), Sizes>>,
}

/// Sizes of the boxes of rows and of columns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    rows: [usize; 3],
    cols: [usize; 3],
}

impl NeighborhoodAxis {
    /// Positions of the longest dilation group.
    fn longest(&self) -> usize {
        self.length.div_ceil(self.dilation)
    }

    /// The columns that row `i` of a group of `n` sees: the rule of `shaders/tiles/neighborhood.wgsl` and its inverse in
    /// `neighborhood_keys.wgsl`.
    fn seen(&self, side: Side, i: usize, n: usize) -> (usize, usize) {
        let (k, s) = (self.window, self.stride);
        match (side, self.causal) {
            (Side::Queries, false) => {
                let leader = (i / s * s + s / 2).min(n - 1);
                let lo = leader.saturating_sub(k / 2).min(n - k);
                (lo, lo + k)
            }
            (Side::Queries, true) => ((((i / s + 1) * s).min(n)).saturating_sub(k), i + 1),
            (Side::Keys, false) => {
                let (right, offset) = (k - 1 - k / 2, s - s / 2 - 1);
                let lo = if i < k { 0 } else { (i - right + offset) / s * s };
                let hi = if i + k >= n { n } else { ((i + k / 2 + offset + 1) / s * s).min(n) };
                (lo, hi)
            }
            (Side::Keys, true) => (i, (((i + k) / s + usize::from(i + k >= n)) * s).min(n)),
        }
    }

    /// For each box of so many rows of the longest group: how many columns it sees, and how many of these all its rows see.
    fn spans(&self, side: Side, rows: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let n = self.longest();
        (0..n).step_by(rows).map(move |row0| {
            let first = self.seen(side, row0, n);
            let last = self.seen(side, (row0 + rows).min(n) - 1, n);
            (last.1 - first.0, first.1.saturating_sub(last.0))
        })
    }
}

/// What one axis adds to the work with boxes of certain sizes: each is a factor of the whole.
#[derive(Clone, Copy)]
struct Share {
    boxes: f64,
    tiles: f64,
    /// Tiles that need no mask.
    full: f64,
}

impl Share {
    fn of(axis: &NeighborhoodAxis, side: Side, rows: usize, cols: usize) -> Self {
        // Far from the borders boxes are alike.
        const LOOKED_AT: usize = 48;
        let all = axis.longest().div_ceil(rows);
        let looked_at = all.min(LOOKED_AT);
        let (mut tiles, mut full) = (0, 0);
        for (seen, whole) in axis.spans(side, rows).take(looked_at) {
            tiles += seen.div_ceil(cols);
            full += whole / cols;
        }
        let each = all as f64 / looked_at as f64;
        Self { boxes: all as f64, tiles: tiles as f64 * each, full: full as f64 * each }
    }
}

/// Every box of at most `volume` places that cannot grow along its last axis.
fn boxes(volume: usize, most: [usize; 3]) -> Vec<[usize; 3]> {
    let mut found = vec![];
    for x in 1..=volume.min(most[0]) {
        for y in 1..=(volume / x).min(most[1]) {
            found.push([x, y, (volume / (x * y)).min(most[2])]);
        }
    }
    found
}

impl Boxes {
    pub fn new(axes: &[NeighborhoodAxis]) -> Self {
        let mut padded = [NO_AXIS; 3];
        padded[3 - axes.len()..].copy_from_slice(axes);
        Self { axes: axes.into(), padded, chosen: Mutex::default() }
    }

    /// The boxes for one side, chosen once.
    fn sizes(&self, side: Side, engine: &Tiling) -> Sizes {
        let mut chosen = self.chosen.lock().expect("no panic under this lock");
        let key = (side, engine.rows(), engine.cols());
        if let Some(found) = chosen.get(&key) {
            return *found;
        }
        let found = self.choose(side, engine);
        chosen.insert(key, found);
        found
    }

    /// The boxes with the least work: tiles to multiply, where one without a mask costs a little less, and workgroups to start.
    fn choose(&self, side: Side, engine: &Tiling) -> Sizes {
        const MASK: f64 = 0.15;
        const START: f64 = 0.5;
        let (volume, cols) = (engine.rows() as usize, engine.cols() as usize);
        let longest = self.padded.map(|axis| axis.longest());
        let used = |i: usize| if longest[i] > 1 { cols } else { 1 };
        let row_boxes = boxes(volume, longest);
        let col_boxes = boxes(cols, [used(0), used(1), cols]);
        let side_length = volume.max(cols) + 1;
        let mut known: Vec<Option<Share>> = vec![None; 3 * side_length * side_length];
        let mut share = |a: usize, rows: usize, cols: usize| {
            let slot = &mut known[(a * side_length + rows) * side_length + cols];
            *slot.get_or_insert_with(|| Share::of(&self.padded[a], side, rows, cols))
        };
        let mut best = (f64::INFINITY, Sizes { rows: [1; 3], cols: [1; 3] });
        for &rows in &row_boxes {
            for &cols_box in &col_boxes {
                let shares = [0, 1, 2].map(|a| share(a, rows[a], cols_box[a]));
                let product = |part: fn(&Share) -> f64| shares.iter().map(part).product::<f64>();
                let unmasked = if cols_box.iter().product::<usize>() == cols { product(|s| s.full) } else { 0.0 };
                let cost = product(|s| s.tiles) - MASK * unmasked + START * product(|s| s.boxes);
                if cost < best.0 {
                    best = (cost, Sizes { rows, cols: cols_box });
                }
            }
        }
        best.1
    }
}

impl Boxes {
    /// The part of the computed scores that windows ask for.
    fn useful(&self, sizes: Sizes, engine: &Tiling) -> f64 {
        let tile = f64::from(engine.rows() * engine.cols());
        let axes = self.padded.iter().enumerate().map(|(a, axis)| {
            let n = axis.longest();
            // Enough positions to tell.
            let some = (0..n).step_by(n.div_ceil(4096));
            let count = some.len() as f64;
            let seen = some.map(|i| axis.seen(Side::Queries, i, n)).map(|(lo, hi)| (hi - lo) as f64).sum::<f64>();
            seen / count * n as f64 / Share::of(axis, Side::Queries, sizes.rows[a], sizes.cols[a]).tiles
        });
        axes.product::<f64>() / tile
    }
}

impl Visibility for Boxes {
    fn family(&self) -> &'static str {
        "neighborhood"
    }

    fn check(&self, shapes: &AttentionShapes) -> Result<()> {
        check(&self.axes, shapes)
    }

    /// What a row sees on each axis: two numbers.
    fn memory_per_row(&self) -> u32 {
        8 * self.axes.len() as u32
    }

    fn files(&self, side: Side) -> Vec<&'static str> {
        match side {
            Side::Queries => vec![file::TILES_BOXES, file::TILES_NEIGHBORHOOD],
            Side::Keys => vec![file::TILES_BOXES, file::TILES_NEIGHBORHOOD_KEYS],
        }
    }

    fn constants(&self, _: Side, _: &AttentionShapes, _: &Tiling) -> Vec<(&'static str, u32)> {
        vec![("AXES", self.axes.len() as u32)]
    }

    fn tables(&self, side: Side, _: &AttentionShapes, engine: &Tiling) -> Vec<(Binding, Table)> {
        let Sizes { rows, cols } = self.sizes(side, engine);
        let of = |value: &dyn Fn(usize) -> usize| [value(0) as u32, value(1) as u32, value(2) as u32, 0];
        let axes = &self.padded;
        let reciprocal = |size: usize| (1u32 << 16).div_ceil(size as u32);
        let lengths = axes.map(|axis| axis.length);
        let table = [
            of(&|i| axes[i].length),
            of(&|i| axes[i].window),
            of(&|i| axes[i].stride),
            of(&|i| axes[i].dilation),
            of(&|i| usize::from(axes[i].causal)),
            of(&|i| rows[i]),
            of(&|i| cols[i]),
            of(&|i| axes[i].longest().div_ceil(rows[i])),
            of(&|i| lengths[i + 1..].iter().product()),
            [rows[1] * rows[2], rows[2], cols[1] * cols[2], cols[2]].map(reciprocal),
        ];
        vec![small_table("space", &table)]
    }

    fn extent(&self, side: Side, _: &AttentionShapes, engine: &Tiling) -> Extent {
        let Sizes { rows, cols } = self.sizes(side, engine);
        let mut extent = Extent { tiles: 1, cols: engine.cols() as usize, visited: 1 };
        for (a, axis) in self.padded.iter().enumerate() {
            // Groups differ in length by one at most, and see no more than the longest does, but for a strided end.
            let most = axis.spans(side, rows[a]).map(|(seen, _)| seen).max().unwrap_or(0) + axis.stride - 1;
            let visited = most.min(axis.longest()).div_ceil(cols[a]);
            extent.tiles *= axis.dilation * axis.longest().div_ceil(rows[a]);
            extent.cols *= visited;
            extent.visited *= visited;
        }
        extent
    }

    fn describe(&self, _: &AttentionShapes, engine: &Tiling) -> Option<String> {
        let sizes = self.sizes(Side::Queries, engine);
        let first = 3 - self.axes.len();
        let size = |size: [usize; 3]| size[first..].iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
        let useful = 100.0 * self.useful(sizes, engine);
        let (rows, cols) = (size(sizes.rows), size(sizes.cols));
        Some(format!("boxes of {rows} queries and {cols} keys, {useful:.0} % of whose scores are within windows"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sees whom, seen from either side, is the same.
    #[test]
    fn the_inverse_is_the_inverse() {
        for (length, window, stride, causal) in (2..24).flat_map(|n| {
            (2..=n).flat_map(move |k| (1..=k).flat_map(move |s| [false, true].map(move |causal| (n, k, s, causal))))
        }) {
            let axis = NeighborhoodAxis { stride, causal, ..NeighborhoodAxis::new(length, window) };
            for i in 0..length {
                let (lo, hi) = axis.seen(Side::Queries, i, length);
                for j in 0..length {
                    let (from, to) = axis.seen(Side::Keys, j, length);
                    assert_eq!((lo..hi).contains(&j), (from..to).contains(&i), "{axis:?} query {i} key {j}");
                }
            }
        }
    }
}
