use crate::{Causal, FlashParams};

/// One flash attention problem on the host: contiguous [batch, heads, sequence, head_dim] values.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlashProblem<'a> {
    /// Queries [batch, heads_q, queries, head_dim].
    pub q: &'a [f32],
    /// Keys [batch, heads_kv, keys, head_dim].
    pub k: &'a [f32],
    /// Values [batch, heads_kv, keys, value_dim].
    pub v: &'a [f32],
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub heads_q: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Width of q and k.
    pub head_dim: usize,
    /// Width of v.
    pub value_dim: usize,
    /// Queries that count, for each batch entry.
    pub seqlens_q: Option<&'a [usize]>,
    /// Keys that count, for each batch entry.
    pub seqlens_k: Option<&'a [usize]>,
    /// Added to the scores: [batch, heads_q, queries, keys].
    pub bias: Option<&'a [f32]>,
    /// Zero where a key is not seen: [batch, heads_q, queries, keys].
    pub mask: Option<&'a [f32]>,
}

/// What [`flash`] computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlashReference {
    /// [batch, heads_q, queries, value_dim].
    pub out: Vec<f64>,
    /// [batch, heads_q, queries].
    pub lse: Vec<f64>,
    /// Largest scale·Σ|q·k| of a visible key: a rounded score of size A costs an f32 kernel about A/64 units.
    pub magnitude: f64,
    /// Pairs of query and key that see each other.
    pub visible: u64,
}

/// Whether query `i` sees key `j` among `queries` and `keys` of one batch entry.
fn sees(params: &FlashParams, i: usize, j: usize, queries: usize, keys: usize) -> bool {
    let (i, j) = (i as i64, j as i64);
    let diagonal = i + keys as i64 - queries as i64;
    let causal = match params.causal {
        None => true,
        Some(Causal::BottomRight) => j <= diagonal,
        Some(Causal::TopLeft) => j <= i,
    };
    let left = params.window.left.is_none_or(|n| i128::from(j) >= i128::from(diagonal) - n as i128);
    let right = params.window.right.is_none_or(|n| i128::from(j) <= i128::from(diagonal) + n as i128);
    i < queries as i64 && j < keys as i64 && causal && left && right
}

/// Attention by its formula, row by row. A row that sees no key has output 0 and LSE −∞.
///
/// ```
/// use wgpu_attention::reference::{FlashProblem, flash};
/// use wgpu_attention::FlashParams;
/// let (q, k, v) = ([1.0], [0.0, f32::ln(3.0)], [0.0, 4.0]);
/// let problem = FlashProblem {
///     q: &q, k: &k, v: &v, batch: 1, heads_q: 1, heads_kv: 1, queries: 1, keys: 2, head_dim: 1, value_dim: 1,
///     ..Default::default()
/// };
/// let result = flash(&FlashParams::default(), &problem); // weights 1/4 and 3/4
/// assert!((result.out[0] - 3.0).abs() < 1e-6 && (result.lse[0] - 4f64.ln()).abs() < 1e-6);
/// ```
pub fn flash(params: &FlashParams, p: &FlashProblem) -> FlashReference {
    let scale = params.scale.map_or(1.0 / (p.head_dim as f64).sqrt(), f64::from);
    let mut result = FlashReference::default();
    for b in 0..p.batch {
        let queries = p.seqlens_q.map_or(p.queries, |s| s[b]);
        let keys = p.seqlens_k.map_or(p.keys, |s| s[b]);
        for h in 0..p.heads_q {
            let kv = b * p.heads_kv + h / (p.heads_q / p.heads_kv);
            for i in 0..p.queries {
                let q = row(p.q, (b * p.heads_q + h) * p.queries + i, p.head_dim);
                let pairs = ((b * p.heads_q + h) * p.queries + i) * p.keys;
                let biased = |j: usize| p.bias.map_or(0.0, |bias| f64::from(bias[pairs + j]));
                let masked =
                    |j: usize| p.mask.is_some_and(|mask| mask[pairs + j] == 0.0) || biased(j) == f64::NEG_INFINITY;
                let seen = (0..p.keys).filter(|&j| sees(params, i, j, queries, keys) && !masked(j));
                let seen: Vec<usize> = seen.collect();
                let mut scores = Vec::with_capacity(seen.len());
                for &j in &seen {
                    let k = row(p.k, kv * p.keys + j, p.head_dim);
                    let products = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k));
                    let mut score = scale * products.clone().sum::<f64>();
                    if let Some(cap) = params.softcap.map(f64::from) {
                        score = cap * (score / cap).tanh();
                    }
                    if let Some(slopes) = &params.alibi_slopes {
                        let distance = (i + keys).abs_diff(queries + j);
                        score -= f64::from(slopes[h]) * distance as f64;
                    }
                    scores.push(score + biased(j));
                    result.magnitude = result.magnitude.max(scale.abs() * products.map(f64::abs).sum::<f64>());
                }
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut out = vec![0.0; p.value_dim];
                for (&j, weight) in seen.iter().zip(&weights) {
                    for (o, &v) in out.iter_mut().zip(row(p.v, kv * p.keys + j, p.value_dim)) {
                        *o += weight / sum * f64::from(v);
                    }
                }
                result.out.extend(out);
                result.lse.push(if seen.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() });
                result.visible += seen.len() as u64;
            }
        }
    }
    result
}

fn row(values: &[f32], index: usize, width: usize) -> &[f32] {
    &values[index * width..(index + 1) * width]
}
