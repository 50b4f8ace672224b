//! Reductions of attention's probabilities, pair by pair.

use super::flash::Scores;
use super::problem::{FlashProblem, for_each_query};
use crate::{HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReductionParams};

/// Reduces `p = exp(score − lse)` over each cell: \[batch or sequences, groups of heads, groups of queries, groups of keys\]. `lse` is
/// \[batch, heads_q, queries\]; `segments` has the segment of each key, \[batch or sequences, keys\], where keys are grouped by segment.
/// [`Reduction::ArgMax`] gives the largest, as [`Reduction::Max`] does; `top_k` is left to the caller.
///
/// ```
/// use wgpu_attention::reference::{FlashProblem, score_reduction};
/// use wgpu_attention::score_reduction::{KeyGroups, QueryGroups, Reduction, ScoreReductionParams};
/// let (q, k) = ([0.0], [1.0, 2.0, 3.0]); // three scores of 0: probabilities of 1/3
/// let problem = FlashProblem::new([&q, &k, &k], [[1, 1, 1, 1], [1, 1, 3, 1], [1, 1, 3, 1]]);
/// let (queries, keys) = (QueryGroups::All, KeyGroups::Blocks(2));
/// let params = ScoreReductionParams { reduction: Reduction::Sum, queries, keys, ..Default::default() };
/// let sums = score_reduction(&params, &problem, &[3f32.ln()], &[]);
/// assert!((sums[0] - 2.0 / 3.0).abs() < 1e-6 && (sums[1] - 1.0 / 3.0).abs() < 1e-6);
/// ```
pub fn score_reduction(params: &ScoreReductionParams, p: &FlashProblem, lse: &[f32], segments: &[u32]) -> Vec<f64> {
    let (batch, queries, keys) = match p.cu_seqlens {
        None => (p.batch, p.queries, p.keys),
        Some([q, k]) => {
            let longest = |of: &[usize]| of.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
            (q.len() - 1, longest(q), longest(k))
        }
    };
    let heads = match params.heads {
        HeadGroups::Each => p.heads_q,
        HeadGroups::PerKvHead => p.heads_kv,
        HeadGroups::All => 1,
    };
    let rows = match params.queries {
        QueryGroups::Blocks(size) => queries.div_ceil(size),
        QueryGroups::All => queries.min(1),
    };
    let cols = match params.keys {
        KeyGroups::Blocks(size) => keys.div_ceil(size),
        KeyGroups::All => 1,
        KeyGroups::Segments(count) => count,
    };
    let mut reduced = vec![0.0f64; batch * heads * rows * cols];
    for_each_query(p, |place, at| {
        let found = Scores::of(&params.attention, p, place, at);
        let row = match params.queries {
            QueryGroups::Blocks(size) => at.query / size,
            QueryGroups::All => 0,
        };
        for (&key, score) in found.seen.iter().zip(&found.scores) {
            let weight = (score - f64::from(lse[place.query])).exp();
            let col = match params.keys {
                KeyGroups::Blocks(size) => key / size,
                KeyGroups::All => 0,
                KeyGroups::Segments(_) => segments[at.batch * keys + key] as usize,
            };
            if col >= cols {
                continue;
            }
            let head = at.head / (p.heads_q / heads);
            let cell = &mut reduced[((at.batch * heads + head) * rows + row) * cols + col];
            match params.reduction {
                Reduction::Max | Reduction::ArgMax => *cell = cell.max(weight),
                Reduction::Sum => *cell += weight,
                Reduction::Count { above } => *cell += f64::from(u8::from(weight > f64::from(above))),
            }
        }
    });
    reduced
}
