//! SeerAttention-R's gate for decoding, query by query.

use super::seer_gate::{SeerGateReference, choose, linear, pool, seer_gate_scores, turn};
use crate::SeerDecodeGateParams;

/// What a gate for decoding reads: tokens [batch, heads, tokens, head_dim], weights [key heads, features, gate_dim].
#[derive(Clone, Copy, Debug)]
pub struct SeerDecodeProblem<'a> {
    /// Queries before their rotary embedding: the last tokens of each sequence.
    pub q: &'a [f32],
    /// Their shape.
    pub q_shape: [usize; 4],
    /// All keys before their rotary embedding.
    pub k: &'a [f32],
    /// Their shape.
    pub k_shape: [usize; 4],
    /// Linear map of the queries of the heads that share a key head.
    pub wq: &'a [f32],
    /// Linear map of pooled keys.
    pub wk: &'a [f32],
    /// Weights of the RMS norms.
    pub norms: [Option<&'a [f32]>; 2],
    /// Width of the gate.
    pub gate_dim: usize,
    /// Keys of each batch entry.
    pub seqlens_k: &'a [usize],
    /// Whether a query sees only blocks before its own, as in training.
    pub past: bool,
}

/// A vector of the gate: the features behind it, after the linear map, and at the end.
struct Row {
    features: Vec<f64>,
    mapped: Vec<f64>,
    turned: Vec<f64>,
    position: f64,
}

/// 1 / √(mean(y²) + ε).
fn factor(params: &SeerDecodeGateParams, y: &[f64]) -> f64 {
    let mean = y.iter().map(|y| y * y).sum::<f64>() / y.len() as f64;
    1.0 / (mean + f64::from(params.norm_epsilon)).sqrt()
}

impl SeerDecodeProblem<'_> {
    /// [batch, key heads, queries, blocks of keys].
    pub fn shape(&self, params: &SeerDecodeGateParams) -> [usize; 4] {
        [self.q_shape[0], self.k_shape[1], self.q_shape[2], self.k_shape[2].div_ceil(params.block)]
    }

    fn row(&self, params: &SeerDecodeGateParams, side: usize, h: usize, features: Vec<f64>, position: usize) -> Row {
        let size = features.len() * self.gate_dim;
        let weights = [self.wq, self.wk][side];
        let mapped = linear(&features, &weights[h * size..][..size], self.gate_dim);
        let normed = match self.norms[side] {
            None => mapped.clone(),
            Some(norm) => {
                let factor = factor(params, &mapped);
                mapped.iter().zip(norm).map(|(y, w)| y * factor * f64::from(*w)).collect()
            }
        };
        let turned = turn(params.rope_theta, &normed, position as f64, 1.0);
        Row { features, mapped, turned, position: position as f64 }
    }

    fn position(&self, b: usize, query: usize) -> Option<usize> {
        (self.seqlens_k[b] + query).checked_sub(self.q_shape[2])
    }

    fn query(&self, params: &SeerDecodeGateParams, b: usize, h: usize, i: usize) -> Option<Row> {
        let [_, heads, queries, width] = self.q_shape;
        let group = heads / self.k_shape[1];
        let of_head = |g: usize| &self.q[((b * heads + h * group + g) * queries + i) * width..][..width];
        let features = (0..group).flat_map(|g| of_head(g).iter().map(|&x| f64::from(x))).collect();
        Some(self.row(params, 0, h, features, self.position(b, i)?))
    }

    /// The vector of a block, which has all its tokens.
    fn key(&self, params: &SeerDecodeGateParams, b: usize, h: usize, j: usize) -> Row {
        let [_, heads, keys, width] = self.k_shape;
        let token = |t: usize| &self.k[((b * heads + h) * keys + t) * width..][..width];
        let tokens: Vec<_> = (j * params.block..(j + 1) * params.block).map(token).collect();
        self.row(params, 1, h, pool(&params.pool_k, &tokens), j * params.block)
    }

    /// The vector of every full block, 0 for the others: [batch, key heads, blocks, gate_dim].
    pub fn compressed(&self, params: &SeerDecodeGateParams, blocks: usize) -> Vec<f64> {
        let [batch, heads, ..] = self.k_shape;
        let row = |n: usize| {
            let (b, h, j) = (n / blocks / heads, n / blocks % heads, n % blocks);
            let full = (j + 1) * params.block <= self.seqlens_k[b];
            if full { self.key(params, b, h, j).turned } else { vec![0.0; self.gate_dim] }
        };
        (0..batch * heads * blocks).flat_map(row).collect()
    }

    /// (Blocks that a query sees, those of them that are full).
    fn seen(&self, params: &SeerDecodeGateParams, b: usize, query: usize) -> (usize, usize) {
        let Some(position) = self.position(b, query) else { return (0, 0) };
        let own = position / params.block;
        let seen = if self.past { own } else { own + 1 };
        (seen, seen.min((position + 1) / params.block))
    }
}

/// The logits of a gate for decoding.
pub fn seer_decode_gate(params: &SeerDecodeGateParams, p: &SeerDecodeProblem) -> SeerGateReference {
    let shape = p.shape(params);
    let [batch, heads, queries, cols] = shape;
    let (mut logits, mut magnitude) = (vec![f64::NEG_INFINITY; shape.iter().product()], 0.0f64);
    let scale = 1.0 / (p.gate_dim as f64).sqrt();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let keys: Vec<Row> = (0..p.seqlens_k[b] / params.block).map(|j| p.key(params, b, h, j)).collect();
        for i in 0..queries {
            let Some(query) = p.query(params, b, h, i) else { continue };
            let (seen, full) = p.seen(params, b, i);
            for j in 0..seen {
                let terms = |key: &Row| -> Vec<f64> {
                    query.turned.iter().zip(&key.turned).map(|(a, b)| a * b * scale).collect()
                };
                let terms = if j < full { terms(&keys[j]) } else { vec![] };
                magnitude = magnitude.max(terms.iter().map(|x| x.abs()).sum());
                logits[((b * heads + h) * queries + i) * cols + j] = terms.iter().sum();
            }
        }
    }
    SeerGateReference { shape, logits, magnitude }
}

/// Which blocks these logits choose, and whether that depends on rounding: see [`super::seer_gate_choice`].
pub fn seer_decode_choice(params: &SeerDecodeGateParams, p: &SeerDecodeProblem, logits: &[f64]) -> Vec<(bool, bool)> {
    let [_, heads, queries, cols] = p.shape(params);
    let scores = seer_gate_scores(logits, cols);
    let mut all = Vec::with_capacity(logits.len());
    for (n, (z, scores)) in logits.chunks(cols.max(1)).zip(scores.chunks(cols.max(1))).enumerate() {
        let (b, i) = (n / queries / heads, n % queries);
        let (seen, _) = p.seen(params, b, i);
        let blocks = p.seqlens_k[b].div_ceil(params.block);
        let mut row = choose(params.selector, (params.block, blocks, false), &z[..seen], scores);
        row.resize(cols, (false, false));
        if seen > 0 {
            row[seen - 1] = (true, false);
            row[0].0 |= params.sink;
            row[0].1 &= !params.sink;
        }
        all.extend(row);
    }
    all
}

/// The target of a row's blocks divided by its sum over those before the query's own; 0 elsewhere.
pub fn seer_decode_target(params: &SeerDecodeGateParams, p: &SeerDecodeProblem, wanted: &[f64]) -> Vec<f64> {
    let [_, heads, queries, cols] = p.shape(params);
    let row = |(n, row): (usize, &[f64])| -> Vec<f64> {
        let (seen, _) = p.seen(params, n / queries / heads, n % queries);
        let sum: f64 = row[..seen].iter().sum();
        (0..cols).map(|j| if j < seen { row[j] / (sum + 1e-9) } else { 0.0 }).collect()
    };
    wanted.chunks(cols.max(1)).enumerate().flat_map(row).collect()
}

/// Gradients of both linear maps and of both norms from that of the logits.
pub fn seer_decode_gradients(
    params: &SeerDecodeGateParams,
    p: &SeerDecodeProblem,
    gradient: &[f64],
) -> [[Vec<f64>; 2]; 2] {
    let [batch, heads, queries, cols] = p.shape(params);
    let (width, scale) = (p.gate_dim, 1.0 / (p.gate_dim as f64).sqrt());
    let mut weights = [vec![0.0; p.wq.len()], vec![0.0; p.wk.len()]];
    let mut norms = p.norms.map(|norm| vec![0.0; norm.map_or(0, <[f32]>::len)]);
    let mut through = |side: usize, h: usize, row: &Row, turned: &[f64]| {
        let straight = turn(params.rope_theta, turned, row.position, -1.0);
        let mapped = match p.norms[side] {
            None => straight,
            Some(norm) => {
                let factor = factor(params, &row.mapped);
                let parts = || straight.iter().zip(norm).zip(&row.mapped);
                for (sum, ((u, _), y)) in norms[side].iter_mut().zip(parts()) {
                    *sum += u * y * factor;
                }
                let mean: f64 = parts().map(|((u, w), y)| u * f64::from(*w) * y).sum::<f64>() / width as f64;
                parts().map(|((u, w), y)| factor * (u * f64::from(*w) - y * factor * factor * mean)).collect()
            }
        };
        let size = row.features.len() * width;
        for (x, to) in row.features.iter().zip(weights[side][h * size..][..size].chunks_mut(width)) {
            to.iter_mut().zip(&mapped).for_each(|(sum, y)| *sum += x * y);
        }
    };
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let keys: Vec<Row> = (0..p.seqlens_k[b] / params.block).map(|j| p.key(params, b, h, j)).collect();
        let mut of_keys = vec![vec![0.0; width]; keys.len()];
        for i in 0..queries {
            let Some(query) = p.query(params, b, h, i) else { continue };
            let mut of_query = vec![0.0; width];
            for j in 0..p.seen(params, b, i).1 {
                let g = gradient[((b * heads + h) * queries + i) * cols + j] * scale;
                for d in 0..width {
                    of_query[d] += g * keys[j].turned[d];
                    of_keys[j][d] += g * query.turned[d];
                }
            }
            through(0, h, &query, &of_query);
        }
        for (key, of_key) in keys.iter().zip(&of_keys) {
            through(1, h, key, of_key);
        }
    }
    [weights, norms]
}
