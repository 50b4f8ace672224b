use crate::{Causal, FlashParams};

/// Where a pair of query and key stands: what a caller's function is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Batch entry, or number of the packed sequence.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Place of the query in its sequence.
    pub query: usize,
    /// Place of the key in its sequence.
    pub key: usize,
    /// Queries of the sequence.
    pub queries: usize,
    /// Keys of the sequence.
    pub keys: usize,
}

/// One flash attention problem on the host: contiguous [batch, heads, sequence, head_dim] values.
#[derive(Clone, Copy, Default)]
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
    /// Packed sequences in the one batch entry: offsets of the queries and of the keys.
    pub cu_seqlens: Option<[&'a [u32]; 2]>,
    /// Added to the scores: [batch, heads_q, queries, keys]; of packed sequences [sequences, heads_q, longest queries,
    /// longest keys].
    pub bias: Option<&'a [f32]>,
    /// Zero where a key is not seen; shaped likewise.
    pub mask: Option<&'a [f32]>,
    /// Changes a score, after all else that does; −∞ hides the key.
    pub score_mod: Option<&'a dyn Fn(f64, At) -> f64>,
    /// Whether a key is seen, besides all else.
    pub mask_mod: Option<&'a dyn Fn(At) -> bool>,
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
    let sequences = sequences(p);
    let longest = match p.cu_seqlens {
        None => (p.queries, p.keys),
        Some(_) => sequences.iter().fold((0, 0), |(q, k), s| (q.max(s.queries), k.max(s.keys))),
    };
    let rows = p.batch * p.heads_q * p.queries;
    let (out, lse) = (vec![0.0; rows * p.value_dim], vec![f64::NEG_INFINITY; rows]);
    let mut result = FlashReference { out, lse, magnitude: 0.0, visible: 0 };
    for (batch, sequence) in sequences.iter().enumerate() {
        for head in 0..p.heads_q {
            for query in 0..sequence.queries {
                let at = At { batch, head, query, key: 0, queries: sequence.queries, keys: sequence.keys };
                let pairs = ((batch * p.heads_q + head) * longest.0 + query) * longest.1;
                attend(params, p, sequence, at, pairs, &mut result);
            }
        }
    }
    result
}

/// The rows of one sequence.
struct Sequence {
    entry: usize,
    first_query: usize,
    queries: usize,
    first_key: usize,
    keys: usize,
}

fn sequences(p: &FlashProblem) -> Vec<Sequence> {
    match p.cu_seqlens {
        None => (0..p.batch)
            .map(|b| Sequence {
                entry: b,
                first_query: 0,
                queries: p.seqlens_q.map_or(p.queries, |s| s[b]),
                first_key: 0,
                keys: p.seqlens_k.map_or(p.keys, |s| s[b]),
            })
            .collect(),
        Some([q, k]) => q
            .windows(2)
            .zip(k.windows(2))
            .map(|(q, k)| Sequence {
                entry: 0,
                first_query: q[0] as usize,
                queries: (q[1] - q[0]) as usize,
                first_key: k[0] as usize,
                keys: (k[1] - k[0]) as usize,
            })
            .collect(),
    }
}

/// One row of the output. `pairs` is where the row's part of bias and mask begins.
fn attend(
    params: &FlashParams,
    p: &FlashProblem,
    sequence: &Sequence,
    at: At,
    pairs: usize,
    result: &mut FlashReference,
) {
    let scale = params.scale.map_or(1.0 / (p.head_dim as f64).sqrt(), f64::from);
    let kv = (sequence.entry * p.heads_kv + at.head / (p.heads_q / p.heads_kv)) * p.keys + sequence.first_key;
    let index = (sequence.entry * p.heads_q + at.head) * p.queries + sequence.first_query + at.query;
    let q = row(p.q, index, p.head_dim);
    let (mut scores, mut seen) = (vec![], vec![]);
    for j in 0..at.keys {
        let at = At { key: j, ..at };
        let masked = p.mask.is_some_and(|mask| mask[pairs + j] == 0.0) || p.mask_mod.is_some_and(|sees| !sees(at));
        if masked || !sees(params, at.query, j, at.queries, at.keys) {
            continue;
        }
        let products = q.iter().zip(row(p.k, kv + j, p.head_dim)).map(|(&q, &k)| f64::from(q) * f64::from(k));
        let mut score = scale * products.clone().sum::<f64>();
        if let Some(cap) = params.softcap.map(f64::from) {
            score = cap * (score / cap).tanh();
        }
        if let Some(slopes) = &params.alibi_slopes {
            let distance = (at.query + at.keys).abs_diff(at.queries + j);
            score -= f64::from(slopes[at.head]) * distance as f64;
        }
        score += p.bias.map_or(0.0, |bias| f64::from(bias[pairs + j]));
        if let Some(change) = p.score_mod.filter(|_| score != f64::NEG_INFINITY) {
            score = change(score, at);
        }
        if score != f64::NEG_INFINITY {
            scores.push(score);
            seen.push(j);
            result.magnitude = result.magnitude.max(scale.abs() * products.map(f64::abs).sum::<f64>());
        }
    }
    if seen.is_empty() {
        return;
    }
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    for (&j, weight) in seen.iter().zip(&weights) {
        let out = &mut result.out[index * p.value_dim..(index + 1) * p.value_dim];
        for (o, &v) in out.iter_mut().zip(row(p.v, kv + j, p.value_dim)) {
            *o += weight / sum * f64::from(v);
        }
    }
    result.lse[index] = top + sum.ln();
    result.visible += seen.len() as u64;
}

fn row(values: &[f32], index: usize, width: usize) -> &[f32] {
    &values[index * width..(index + 1) * width]
}
