//! Blocks from scores.

use super::seer_gate::{SeerGateProblem, seer_gate_choice};
use crate::gate::BlockSelection;
use crate::{BlockGrid, SeerGateParams};

/// Which blocks scores [batch, heads, blocks of queries, blocks of keys] choose, for (queries, keys) of each batch entry; and whether that
/// depends on less than 1e-5 of a probability, so that f32 may choose otherwise.
///
/// ```
/// use wgpu_attention::gate::{BlockSelection, Selector};
/// use wgpu_attention::{BlockGrid, reference::block_selection};
/// let grid = BlockGrid { batch: 1, heads: 1, queries: 1, keys: 3, block: [1, 1] };
/// let found = block_selection(&BlockSelection::new(Selector::Budget(2)), &grid, &[[1, 3]], &[1.0, 0.0, 2.0]);
/// assert_eq!(found, [(true, false), (false, false), (true, false)]);
/// ```
pub fn block_selection(
    selection: &BlockSelection,
    grid: &BlockGrid,
    lengths: &[[usize; 2]],
    scores: &[f32],
) -> Vec<(bool, bool)> {
    let BlockSelection { selector, causal, sink, diagonal, last_rows_dense } = *selection;
    let block = grid.block;
    let params =
        SeerGateParams { block, selector, causal, sink, diagonal, last_rows_dense, ..SeerGateParams::default() };
    let sequences: Vec<[usize; 5]> = lengths.iter().enumerate().map(|(b, &[q, k])| [b, 0, q, 0, k]).collect();
    let problem = SeerGateProblem {
        q: &[],
        q_shape: [grid.batch, grid.heads, grid.queries, 0],
        k: &[],
        k_shape: [grid.batch, grid.heads, grid.keys, 0],
        wq: None,
        wk: &[],
        wk_heads: grid.heads,
        gate_dim: 1,
        sequences: &sequences,
    };
    let [rows, cols] = grid.blocks();
    let is_seen = |at: usize| {
        let row = at / cols.max(1);
        at % cols < problem.seen(&params, row / rows / grid.heads, row % rows)
    };
    let seen = |(at, &score): (usize, &f32)| if is_seen(at) { f64::from(score) } else { f64::NEG_INFINITY };
    let logits: Vec<f64> = scores.iter().enumerate().map(seen).collect();
    seer_gate_choice(&params, &problem, &logits)
}
