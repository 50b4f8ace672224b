//! SeerAttention's gate, block by block.

use crate::{Causal, Pool, SeerGateParams, Selector};

/// What a gate reads: tokens [batch, heads, tokens, head_dim], weights [heads, features, gate_dim].
#[derive(Clone, Copy, Debug)]
pub struct SeerGateProblem<'a> {
    /// Queries before their rotary embedding.
    pub q: &'a [f32],
    /// Their shape.
    pub q_shape: [usize; 4],
    /// Keys before theirs.
    pub k: &'a [f32],
    /// Their shape.
    pub k_shape: [usize; 4],
    /// Linear map of pooled queries, one matrix for each query head.
    pub wq: Option<&'a [f32]>,
    /// Linear map of pooled keys.
    pub wk: &'a [f32],
    /// Its number of heads.
    pub wk_heads: usize,
    /// Width of the gate.
    pub gate_dim: usize,
    /// (batch entry, first query, queries, first key, keys) of each sequence.
    pub sequences: &'a [[usize; 5]],
}

/// Logits [sequences, heads_q, rows, blocks of keys], sized for the longest sequence, and what they come from.
#[derive(Clone, Debug)]
pub struct SeerGateReference {
    /// Rows and blocks of keys.
    pub shape: [usize; 4],
    /// −∞ where a row does not see a block.
    pub logits: Vec<f64>,
    /// Largest Σ |query · key| / √gate_dim of a pair.
    pub magnitude: f64,
}

/// A row of the gate before and after its linear map, its turn included.
struct Row {
    pooled: Vec<f64>,
    turned: Vec<f64>,
}

pub(super) fn pool(kinds: &[Pool], tokens: &[&[f32]]) -> Vec<f64> {
    let width = tokens[0].len();
    let column = |d: usize| tokens.iter().map(move |token| f64::from(token[d]));
    let kind = |kind: &Pool| -> Vec<f64> {
        let of = |d: usize| match kind {
            Pool::Max => column(d).fold(f64::MIN, f64::max),
            Pool::Min => column(d).fold(f64::MAX, f64::min),
            Pool::Avg => column(d).sum::<f64>() / tokens.len() as f64,
        };
        (0..width).map(of).collect()
    };
    kinds.iter().flat_map(kind).collect()
}

/// Half-split rotary embedding; backwards where `sign` is −1.
pub(super) fn turn(theta: Option<f32>, x: &[f64], position: f64, sign: f64) -> Vec<f64> {
    let Some(theta) = theta else { return x.to_vec() };
    let (width, half) = (x.len(), x.len() / 2);
    let mut out = vec![0.0; width];
    for i in 0..half {
        let (sin, cos) = (position * f64::from(theta).powf(-2.0 * i as f64 / width as f64)).sin_cos();
        out[i] = x[i] * cos - sign * x[i + half] * sin;
        out[i + half] = x[i + half] * cos + sign * x[i] * sin;
    }
    out
}

/// x · weights, a row of them an element of x.
pub(super) fn linear(x: &[f64], weights: &[f32], width: usize) -> Vec<f64> {
    let mut out = vec![0.0; width];
    for (x, row) in x.iter().zip(weights.chunks(width)) {
        out.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * f64::from(*w));
    }
    out
}

impl SeerGateProblem<'_> {
    fn offset(&self, params: &SeerGateParams, s: usize) -> i64 {
        let [_, _, queries, _, keys] = self.sequences[s];
        if params.causal == Some(Causal::BottomRight) { keys as i64 - queries as i64 } else { 0 }
    }

    fn token(values: &[f32], shape: [usize; 4], batch: usize, head: usize, token: usize) -> &[f32] {
        &values[((batch * shape[1] + head) * shape[2] + token) * shape[3]..][..shape[3]]
    }

    /// [sequences, heads_q, rows, blocks of keys].
    pub fn shape(&self, params: &SeerGateParams) -> [usize; 4] {
        let longest = |i: usize, block: usize| self.sequences.iter().map(|s| s[i].div_ceil(block)).max().unwrap_or(0);
        let packed = self.sequences.len() != self.q_shape[0];
        let [rows, cols] = if packed {
            [longest(2, params.block[0]), longest(4, params.block[1])]
        } else {
            [self.q_shape[2].div_ceil(params.block[0]), self.k_shape[2].div_ceil(params.block[1])]
        };
        [self.sequences.len(), self.q_shape[1], rows, cols]
    }

    fn query_row(&self, params: &SeerGateParams, s: usize, head: usize, row: usize) -> Option<Row> {
        let [batch, first, queries, ..] = self.sequences[s];
        let start = row * params.block[0];
        let tokens = start..queries.min(start + params.block[0]);
        let tokens: Vec<_> = tokens.map(|t| Self::token(self.q, self.q_shape, batch, head, first + t)).collect();
        let pooled = (!tokens.is_empty()).then(|| pool(&params.pool_q, &tokens))?;
        let size = pooled.len() * self.gate_dim;
        let mapped = self.wq.map_or(pooled.clone(), |wq| linear(&pooled, &wq[head * size..][..size], self.gate_dim));
        let turned = turn(params.rope_theta, &mapped, (self.offset(params, s) + start as i64) as f64, 1.0);
        Some(Row { pooled, turned })
    }

    fn key_row(&self, params: &SeerGateParams, s: usize, head: usize, col: usize) -> Option<Row> {
        let [batch, _, _, first, keys] = self.sequences[s];
        let start = col * params.block[1];
        let of_tokens = head / (self.wk_heads / self.k_shape[1]);
        let tokens = start..keys.min(start + params.block[1]);
        let tokens: Vec<_> = tokens.map(|t| Self::token(self.k, self.k_shape, batch, of_tokens, first + t)).collect();
        let pooled = (!tokens.is_empty()).then(|| pool(&params.pool_k, &tokens))?;
        let size = pooled.len() * self.gate_dim;
        let mapped = linear(&pooled, &self.wk[head * size..][..size], self.gate_dim);
        let turned = turn(params.rope_theta, &mapped, start as f64, 1.0);
        Some(Row { pooled, turned })
    }

    /// How many blocks of keys a row sees: the first ones.
    pub fn seen(&self, params: &SeerGateParams, s: usize, row: usize) -> usize {
        let [_, _, queries, _, keys] = self.sequences[s];
        let start = row * params.block[0];
        if start >= queries {
            return 0;
        }
        let last = queries.min(start + params.block[0]) as i64 - 1 + self.offset(params, s);
        let sees = |j: &usize| params.causal.is_none() || (j * params.block[1]) as i64 <= last;
        (0..keys.div_ceil(params.block[1])).filter(sees).count()
    }
}

/// The logits of a gate.
pub fn seer_gate(params: &SeerGateParams, p: &SeerGateProblem) -> SeerGateReference {
    let shape = p.shape(params);
    let [batch, heads, rows, cols] = shape;
    let (mut logits, mut magnitude) = (vec![f64::NEG_INFINITY; shape.iter().product()], 0.0f64);
    let scale = 1.0 / (p.gate_dim as f64).sqrt();
    for s in 0..batch {
        let of_keys = |h: usize| (0..cols).map(|j| p.key_row(params, s, h, j)).collect::<Vec<_>>();
        let keys: Vec<_> = (0..p.wk_heads).map(of_keys).collect();
        for (h, i) in (0..heads).flat_map(|h| (0..rows).map(move |i| (h, i))) {
            let Some(query) = p.query_row(params, s, h, i) else { continue };
            for (j, key) in keys[h / (heads / p.wk_heads)][..p.seen(params, s, i)].iter().enumerate() {
                let key = key.as_ref().expect("a block that is seen has tokens");
                let terms = query.turned.iter().zip(&key.turned).map(|(a, b)| a * b * scale);
                magnitude = magnitude.max(terms.clone().map(f64::abs).sum());
                logits[((s * heads + h) * rows + i) * cols + j] = terms.sum();
            }
        }
    }
    SeerGateReference { shape, logits, magnitude }
}

/// The softmax of logits, which are −∞ where nothing is seen.
pub fn seer_gate_scores(logits: &[f64], cols: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|z| if z.is_finite() { (z - top).exp() } else { 0.0 }).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| if sum > 0.0 { w / sum } else { 0.0 }).collect()
    };
    logits.chunks(cols.max(1)).flat_map(row).collect()
}

/// Which blocks a selector chooses of those that a row sees, and whether that hangs on less than 1e-5 of a probability. `of` has the
/// keys of a block, the sequence's blocks of keys, and whether rows see a triangle.
pub(super) fn choose(
    selector: Selector,
    (size, blocks, causal): (usize, usize, bool),
    z: &[f64],
    scores: &[f64],
) -> Vec<(bool, bool)> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    let mut row = vec![(false, false); z.len()];
    let mut best = |count: usize| order.iter().take(count).for_each(|&j| row[j].0 = true);
    match selector {
        Selector::Density(r) => {
            let share = if causal { 1.0 - (1.0 - r).sqrt() } else { r };
            best(((share * blocks as f64) as usize).max(1));
        }
        Selector::Budget(tokens) => best(tokens / size),
        Selector::Threshold(t) => {
            let t = f64::from(t as f32);
            for (cell, p) in row.iter_mut().zip(scores) {
                *cell = (*p > t, (p - t).abs() < 1e-5 * t.max(1e-3));
            }
        }
        Selector::TopP(bound) => {
            let mut sum = 0.0;
            let near = |sum: f64| (sum - bound).abs() < 1e-5;
            for &j in &order {
                row[j] = (sum < bound, near(sum) || near(sum + scores[j]));
                sum += scores[j];
            }
        }
    }
    row
}

/// Which blocks these logits choose, [sequences, heads_q, rows, blocks of keys]; and whether that depends on less than 1e-5 of a
/// probability, so that f32 may choose otherwise.
pub fn seer_gate_choice(params: &SeerGateParams, p: &SeerGateProblem, logits: &[f64]) -> Vec<(bool, bool)> {
    let [_, heads, rows, cols] = p.shape(params);
    let scores = seer_gate_scores(logits, cols);
    let mut all = Vec::with_capacity(logits.len());
    for (n, (z, scores)) in logits.chunks(cols.max(1)).zip(scores.chunks(cols.max(1))).enumerate() {
        let (s, i) = (n / rows / heads, n % rows);
        let [_, _, queries, _, keys] = p.sequences[s];
        let seen = p.seen(params, s, i);
        let blocks = keys.div_ceil(params.block[1]);
        let mut row = choose(params.selector, (params.block[1], blocks, params.causal.is_some()), &z[..seen], scores);
        row.resize(cols, (false, false));
        let start = (i * params.block[0]) as i64 + p.offset(params, s);
        let end = queries.min((i + 1) * params.block[0]) as i64 + p.offset(params, s);
        for (j, cell) in row[..seen].iter_mut().enumerate() {
            let (first, behind) = ((j * params.block[1]) as i64, ((j + 1) * params.block[1]) as i64);
            let own = behind > start && first < end;
            let last = i + 2 >= queries.div_ceil(params.block[0]);
            if params.sink && j == 0 || params.diagonal && own || params.last_rows_dense && last {
                *cell = (true, false);
            }
        }
        all.extend(row);
    }
    all
}

/// The target of a row's blocks, not negative, divided by its sum over the blocks that it sees; 0 elsewhere.
pub fn seer_gate_target(params: &SeerGateParams, p: &SeerGateProblem, wanted: &[f64]) -> Vec<f64> {
    let [_, heads, rows, cols] = p.shape(params);
    let row = |(n, row): (usize, &[f64])| -> Vec<f64> {
        let seen = p.seen(params, n / rows / heads, n % rows);
        let sum: f64 = row[..seen].iter().sum();
        (0..cols).map(|j| if j < seen { row[j] / (sum + 1e-9) } else { 0.0 }).collect()
    };
    wanted.chunks(cols.max(1)).enumerate().flat_map(row).collect()
}

/// The divergence of the logits' softmax from a target, and its gradient.
pub fn seer_gate_loss(
    shape: [usize; 4],
    logits: &[f64],
    target: &[f32],
    weight: f64,
    from_row: usize,
) -> (f64, Vec<f64>) {
    let [batch, heads, rows, cols] = shape;
    let scale = weight / (batch * heads * (rows - from_row) * cols).max(1) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0; logits.len()]);
    for (n, scores) in seer_gate_scores(logits, cols).chunks(cols.max(1)).enumerate() {
        if n % rows < from_row {
            continue;
        }
        let cells = n * cols..(n + 1) * cols;
        let seen: Vec<usize> = cells.clone().filter(|&i| logits[i].is_finite()).collect();
        let mass: f64 = seen.iter().map(|&i| f64::from(target[i])).sum();
        for i in seen {
            let (t, p) = (f64::from(target[i]), scores[i - cells.start]);
            loss += if t > 0.0 { scale * t * (t / p).ln() } else { 0.0 };
            gradient[i] = scale * (p * mass - t);
        }
    }
    (loss, gradient)
}

/// Gradients of both linear maps from that of the logits.
pub fn seer_gate_gradients(params: &SeerGateParams, p: &SeerGateProblem, gradient: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let [batch, heads, rows, cols] = p.shape(params);
    let width = p.gate_dim;
    let scale = 1.0 / (width as f64).sqrt();
    let size = |pools: &[Pool]| pools.len() * p.q_shape[3] * width;
    let (size_q, size_k) = (size(&params.pool_q), size(&params.pool_k));
    let (mut dwq, mut dwk) = (vec![0.0; p.wq.map_or(0, |_| heads * size_q)], vec![0.0; p.wk_heads * size_k]);
    let outer = |to: &mut [f64], row: &Row, turned: &[f64], position: f64| {
        let straight = turn(params.rope_theta, turned, position, -1.0);
        for (x, to) in row.pooled.iter().zip(to.chunks_mut(width)) {
            to.iter_mut().zip(&straight).for_each(|(sum, y)| *sum += x * y);
        }
    };
    for (s, h) in (0..batch).flat_map(|s| (0..heads).map(move |h| (s, h))) {
        let of_keys = h / (heads / p.wk_heads);
        let queries: Vec<_> = (0..rows).map(|i| p.query_row(params, s, h, i)).collect();
        let keys: Vec<_> = (0..cols).map(|j| p.key_row(params, s, of_keys, j)).collect();
        let at = |i: usize, j: usize| gradient[((s * heads + h) * rows + i) * cols + j] * scale;
        let sum = |pairs: Vec<(f64, &Row)>| -> Vec<f64> {
            let mut total = vec![0.0; width];
            for (g, row) in pairs {
                total.iter_mut().zip(&row.turned).for_each(|(sum, x)| *sum += g * x);
            }
            total
        };
        for (i, query) in queries.iter().enumerate().filter_map(|(i, row)| Some((i, row.as_ref()?))) {
            let seen = p.seen(params, s, i);
            let pairs = (0..seen).filter_map(|j| Some((at(i, j), keys[j].as_ref()?))).collect();
            if !dwq.is_empty() {
                let position = (p.offset(params, s) + (i * params.block[0]) as i64) as f64;
                outer(&mut dwq[h * size_q..][..size_q], query, &sum(pairs), position);
            }
        }
        for (j, key) in keys.iter().enumerate().filter_map(|(j, row)| Some((j, row.as_ref()?))) {
            let sees = |i: &usize| j < p.seen(params, s, *i);
            let pairs = (0..rows).filter(sees).filter_map(|i| Some((at(i, j), queries[i].as_ref()?))).collect();
            outer(&mut dwk[of_keys * size_k..][..size_k], key, &sum(pairs), (j * params.block[1]) as f64);
        }
    }
    (dwq, dwk)
}
