//! Who sees whom in neighborhood attention, by its definition.

use crate::NeighborhoodAxis;

/// The neighborhoods of a space: give [`Neighborhoods::sees`] to [`super::flash`] as `mask_mod`.
///
/// ```
/// use wgpu_attention::NeighborhoodAxis;
/// use wgpu_attention::reference::Neighborhoods;
/// let spaces = Neighborhoods::new(&[NeighborhoodAxis::new(6, 3)]);
/// let seen = |query| (0..6).filter(|&key| spaces.sees(query, key)).collect::<Vec<_>>();
/// assert_eq!((seen(0), seen(3), seen(5)), (vec![0, 1, 2], vec![2, 3, 4], vec![3, 4, 5]));
/// ```
#[derive(Clone, Debug)]
pub struct Neighborhoods {
    /// Of each axis its length and, for each pair of positions, whether the first sees the second.
    axes: Vec<(usize, Vec<bool>)>,
}

impl Neighborhoods {
    /// The neighborhoods of a space with these axes.
    pub fn new(axes: &[NeighborhoodAxis]) -> Self {
        let table = |axis: &NeighborhoodAxis| {
            let pairs = (0..axis.length).flat_map(|query| (0..axis.length).map(move |key| on_axis(axis, query, key)));
            (axis.length, pairs.collect())
        };
        Self { axes: axes.iter().map(table).collect() }
    }

    /// Whether the query of one token sees the key of another.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        let (mut query, mut key) = (query, key);
        self.axes.iter().rev().all(|(length, sees)| {
            let (x, y) = (query % length, key % length);
            (query, key) = (query / length, key / length);
            sees[x * length + y]
        })
    }
}

/// On one axis: within the dilation group, by the leader of the stride group.
fn on_axis(axis: &NeighborhoodAxis, query: usize, key: usize) -> bool {
    let (length, window, stride, dilation) =
        (axis.length as i64, axis.window as i64, axis.stride as i64, axis.dilation as i64);
    let (query, key) = (query as i64, key as i64);
    let group = query % dilation;
    if key % dilation != group {
        return false;
    }
    let (i, j) = (query / dilation, key / dilation);
    let members = (group..length).step_by(axis.dilation).count() as i64;
    let first_of_stride = i - i % stride;
    if axis.causal {
        let leader = (first_of_stride + stride - 1).min(members - 1);
        return j > leader - window && j <= i;
    }
    let leader = (first_of_stride + stride / 2).min(members - 1);
    let mut start = leader - window / 2;
    if start + window > members {
        start = members - window;
    }
    if start < 0 {
        start = 0;
    }
    j >= start && j < start + window
}
