//! Rows by index.

use crate::RowReduction;

/// x [batch, heads, rows, width] and y [batch, heads, count, width], and an index [batch or 1, heads or 1, count]; `u32::MAX` is none.
#[derive(Clone, Copy, Debug)]
pub struct RowsProblem<'a> {
    /// The index.
    pub index: &'a [u32],
    /// Its batch entries and heads.
    pub of_index: [usize; 2],
    /// Batch entries and heads of x and y.
    pub heads: [usize; 2],
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
        let ([batch, heads], [own_batch, own_heads]) = (self.heads, self.of_index);
        let own = move |head: usize| head / heads % own_batch * own_heads + head % heads % own_heads;
        let of_head = move |head: usize| {
            let index = &self.index[own(head) * self.count..][..self.count];
            index.iter().enumerate().map(move |(l, &n)| (head, n as usize, l))
        };
        let named = (0..batch * heads).flat_map(of_head).filter(|&(_, n, _)| n < self.rows);
        named.map(|(head, n, l)| (head * self.rows + n, head * self.count + l))
    }

    fn all(&self) -> usize {
        self.heads.iter().product()
    }

    fn counts(&self) -> Vec<f64> {
        let mut counts = vec![0.0; self.all() * self.rows];
        self.pairs().for_each(|(n, _)| counts[n] += 1.0);
        counts
    }
}

/// `y[l] = x[index[l]]`, 0 where there is none; `divided` by how often x's row is named.
///
/// ```
/// use wgpu_attention::reference::{RowsProblem, rows_gathered};
/// let problem = RowsProblem { index: &[1, u32::MAX, 1], of_index: [1; 2], heads: [1; 2], rows: 2, count: 3, width: 1 };
/// assert_eq!(rows_gathered(&problem, &[4.0, 6.0], false), [6.0, 0.0, 6.0]);
/// assert_eq!(rows_gathered(&problem, &[4.0, 6.0], true), [3.0, 0.0, 3.0]);
/// ```
pub fn rows_gathered(p: &RowsProblem, x: &[f32], divided: bool) -> Vec<f64> {
    let (mut y, counts) = (vec![0.0; p.all() * p.count * p.width], p.counts());
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
