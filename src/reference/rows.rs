//! Rows by index.

use crate::RowReduction;

/// x [heads, rows, width] and y [heads, count, width] of as many heads as the index [heads, count] has, one for each of x's; `u32::MAX` is
/// none.
#[derive(Clone, Copy, Debug)]
pub struct RowsProblem<'a> {
    /// The index.
    pub index: &'a [u32],
    /// Heads of all batch entries.
    pub heads: usize,
    /// Rows of x.
    pub rows: usize,
    /// Rows of y.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
}

impl RowsProblem<'_> {
    /// (row of x, row of y) of all heads, in ascending order of y's.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let pair = |(l, &n): (usize, &u32)| {
            let head = l / self.count;
            ((n as usize) < self.rows).then_some((head * self.rows + n as usize, l))
        };
        self.index.iter().enumerate().filter_map(pair)
    }

    fn counts(&self) -> Vec<f64> {
        let mut counts = vec![0.0; self.heads * self.rows];
        self.pairs().for_each(|(n, _)| counts[n] += 1.0);
        counts
    }
}

/// `y[l] = x[index[l]]`, 0 where there is none; `divided` by how often x's row is named.
///
/// ```
/// use wgpu_attention::reference::{RowsProblem, rows_gathered};
/// let problem = RowsProblem { index: &[1, u32::MAX, 1], heads: 1, rows: 2, count: 3, width: 1 };
/// assert_eq!(rows_gathered(&problem, &[4.0, 6.0], false), [6.0, 0.0, 6.0]);
/// assert_eq!(rows_gathered(&problem, &[4.0, 6.0], true), [3.0, 0.0, 3.0]);
/// ```
pub fn rows_gathered(p: &RowsProblem, x: &[f32], divided: bool) -> Vec<f64> {
    let (mut y, counts) = (vec![0.0; p.index.len() * p.width], p.counts());
    for (n, l) in p.pairs() {
        let divisor = if divided { counts[n] } else { 1.0 };
        let row = x[n * p.width..][..p.width].iter();
        y[l * p.width..][..p.width].iter_mut().zip(row).for_each(|(y, &x)| *y = f64::from(x) / divisor);
    }
    y
}

/// `x[n]`, the sum or the mean of `y[l]` over `index[l] = n`; and how many these are.
pub fn rows_scattered(p: &RowsProblem, y: &[f32], reduce: RowReduction) -> (Vec<f64>, Vec<f64>) {
    let counts = p.counts();
    let mut x = vec![0.0; counts.len() * p.width];
    for (n, l) in p.pairs() {
        let divisor = if reduce == RowReduction::Mean { counts[n] } else { 1.0 };
        let row = y[l * p.width..][..p.width].iter();
        x[n * p.width..][..p.width].iter_mut().zip(row).for_each(|(x, &y)| *x += f64::from(y) / divisor);
    }
    (x, counts)
}
