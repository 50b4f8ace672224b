//! Softmax attention and its gradients, query by query.

use super::problem::{At, FlashProblem, Rows, for_each_query, row};
use crate::{Causal, FlashParams};

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
/// let problem = FlashProblem::new([&q, &k, &v], [[1, 1, 1, 1], [1, 1, 2, 1], [1, 1, 2, 1]]);
/// let result = flash(&FlashParams::default(), &problem); // weights 1/4 and 3/4
/// assert!((result.out[0] - 3.0).abs() < 1e-6 && (result.lse[0] - 4f64.ln()).abs() < 1e-6);
/// ```
pub fn flash(params: &FlashParams, p: &FlashProblem) -> FlashReference {
    let rows = p.batch * p.heads_q * p.queries;
    let (out, lse) = (vec![0.0; rows * p.value_dim], vec![f64::NEG_INFINITY; rows]);
    let mut result = FlashReference { out, lse, magnitude: 0.0, visible: 0 };
    for_each_query(p, |rows, at| {
        let found = Scores::of(params, p, rows, at);
        if found.seen.is_empty() {
            return;
        }
        let (lse, weights) = found.weigh();
        let out = &mut result.out[rows.query * p.value_dim..(rows.query + 1) * p.value_dim];
        for (&j, weight) in found.seen.iter().zip(&weights) {
            let (v, at) = p.value(rows, j);
            for (o, &v) in out.iter_mut().zip(&v[at..at + p.value_dim]) {
                *o += weight * f64::from(v);
            }
        }
        result.lse[rows.query] = lse;
        result.magnitude = result.magnitude.max(found.magnitude);
        result.visible += found.seen.len() as u64;
    });
    result
}

/// What [`flash_backward`] computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// Gradient of q, shaped like q.
    pub dq: Vec<f64>,
    /// Gradient of k, shaped like k.
    pub dk: Vec<f64>,
    /// Gradient of v, shaped like v.
    pub dv: Vec<f64>,
    /// Gradient of the bias, shaped like one that is not repeated; empty without a bias.
    pub dbias: Vec<f64>,
    /// Gradient of the additional keys, shaped like them.
    pub d_additional_k: Vec<f64>,
    /// Gradient of the additional values, shaped like them.
    pub d_additional_v: Vec<f64>,
}

/// The gradients of Σ dout · out + Σ dlse · lse with respect to q, k, v and bias, by the chain rule, query by query. `score_mod_grad` turns
/// the gradient of `score_mod`'s result (its third argument) into that of `score_mod`'s argument.
///
/// With p the weights of a query's keys: d score_j = p_j · (dout·v_j − Δ), Δ = dout·out − dlse. `out` is the output as it was
/// stored, rounded to its type: it is an input of the backward pass.
pub fn flash_backward(
    params: &FlashParams,
    p: &FlashProblem,
    out: &[f32],
    dout: &[f32],
    dlse: Option<&[f32]>,
    score_mod_grad: Option<&dyn Fn(f64, At, f64) -> f64>,
) -> Gradients {
    let scale = params.scale.map_or(1.0 / (p.head_dim as f64).sqrt(), f64::from);
    let zeros = |like: &[f32]| vec![0.0; like.len()];
    let mut g = Gradients {
        dq: zeros(p.q),
        dk: zeros(p.k),
        dv: zeros(p.v),
        dbias: p.bias.map_or(vec![], zeros),
        d_additional_k: zeros(p.additional_k),
        d_additional_v: zeros(p.additional_v),
    };
    for_each_query(p, |rows, at| {
        let found = Scores::of(params, p, rows, at);
        if found.seen.is_empty() {
            return;
        }
        let (_, weights) = found.weigh();
        let dout = row(dout, rows.query, p.value_dim);
        let dot = |j: usize| -> f64 {
            let (v, at) = p.value(rows, j);
            let products = dout.iter().zip(&v[at..at + p.value_dim]);
            products.map(|(&d, &v)| f64::from(d) * f64::from(v)).sum()
        };
        let products = dout.iter().zip(row(out, rows.query, p.value_dim));
        let mean: f64 = products.map(|(&d, &o)| f64::from(d) * f64::from(o)).sum();
        let delta = mean - dlse.map_or(0.0, |dlse| f64::from(dlse[rows.query]));
        for (n, &j) in found.seen.iter().enumerate() {
            let (k, at_k) = p.key(rows, j);
            let (_, at_v) = p.value(rows, j);
            let own = j < p.keys;
            let (dk, dv) = if own { (&mut g.dk, &mut g.dv) } else { (&mut g.d_additional_k, &mut g.d_additional_v) };
            for (dv, &d) in dv[at_v..].iter_mut().zip(dout) {
                *dv += weights[n] * f64::from(d);
            }
            let mut ds = weights[n] * (dot(j) - delta);
            if let Some(gradient) = score_mod_grad.filter(|_| own) {
                ds = gradient(found.biased[n], At { key: j, ..at }, ds);
            }
            if !g.dbias.is_empty() && own {
                g.dbias[rows.pairs + j] += ds;
            }
            if let Some(cap) = params.softcap.map(f64::from) {
                ds *= 1.0 - (found.raw[n] / cap).tanh().powi(2);
            }
            for d in 0..p.head_dim {
                let q = rows.query * p.head_dim + d;
                g.dq[q] += scale * ds * f64::from(k[at_k + d]);
                dk[at_k + d] += scale * ds * f64::from(p.q[q]);
            }
        }
    });
    g
}

/// The scores of one query: of the keys that it sees, and what they come from.
pub(super) struct Scores {
    pub(super) seen: Vec<usize>,
    /// scale · q·k.
    raw: Vec<f64>,
    /// After soft cap, ALiBi and bias.
    biased: Vec<f64>,
    /// After `score_mod`.
    pub(super) scores: Vec<f64>,
    /// Largest scale·Σ|q·k|.
    magnitude: f64,
}

impl Scores {
    pub(super) fn of(params: &FlashParams, p: &FlashProblem, rows: &Rows, at: At) -> Self {
        let scale = params.scale.map_or(1.0 / (p.head_dim as f64).sqrt(), f64::from);
        let mut found = Self { seen: vec![], raw: vec![], biased: vec![], scores: vec![], magnitude: 0.0 };
        let q = row(p.q, rows.query, p.head_dim);
        for j in (0..at.keys).chain(p.keys..p.keys + p.additional()) {
            let at = At { key: j, ..at };
            let additional = j >= p.keys;
            let masked =
                || p.mask.is_some_and(|mask| mask[rows.pairs + j] == 0.0) || p.mask_mod.is_some_and(|sees| !sees(at));
            if !additional && (masked() || !sees(params, at.query, j, at.queries, at.keys)) {
                continue;
            }
            let (k, at_k) = p.key(rows, j);
            let k = &k[at_k..at_k + p.head_dim];
            let products = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k));
            let raw = scale * products.clone().sum::<f64>();
            let mut score = params.softcap.map(f64::from).map_or(raw, |cap| cap * (raw / cap).tanh());
            let (slopes, bias) = (params.alibi_slopes.as_ref(), p.bias);
            if let Some(slopes) = slopes.filter(|_| !additional) {
                let distance = (at.query + at.keys).abs_diff(at.queries + j);
                score -= f64::from(slopes[at.head]) * distance as f64;
            }
            score += bias.filter(|_| !additional).map_or(0.0, |bias| f64::from(bias[rows.pairs + j]));
            let biased = score;
            if let Some(change) = p.score_mod.filter(|_| score != f64::NEG_INFINITY && !additional) {
                score = change(score, at);
            }
            if score != f64::NEG_INFINITY {
                found.seen.push(j);
                found.raw.push(raw);
                found.biased.push(biased);
                found.scores.push(score);
                found.magnitude = found.magnitude.max(scale.abs() * products.map(f64::abs).sum::<f64>());
            }
        }
        found
    }

    /// The log-sum-exp and the weight of each key.
    fn weigh(&self) -> (f64, Vec<f64>) {
        let top = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = self.scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (top + sum.ln(), weights.iter().map(|weight| weight / sum).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{assert_slopes, numbers};

    /// Every gradient against central differences, with every feature that a gradient goes through.
    #[test]
    fn gradients_are_what_central_differences_say() {
        let (batch, hq, hkv, nq, nk, d, dv) = (2, 4, 2, 5, 7, 3, 4);
        let mut inputs = [
            numbers(1, batch * hq * nq * d),
            numbers(2, batch * hkv * nk * d),
            numbers(3, batch * hkv * nk * dv),
            numbers(4, batch * hq * nq * nk),
        ];
        let (dout, dlse) = (numbers(5, batch * hq * nq * dv), numbers(6, batch * hq * nq));
        let params = FlashParams {
            causal: Some(Causal::BottomRight),
            softcap: Some(1.5),
            scale: Some(0.8),
            alibi_slopes: Some(vec![0.1, 0.2, 0.0, -0.1]),
            ..FlashParams::default()
        };
        let score_mod = |s: f64, at: At| (0.7 * s).sin() + 0.1 * at.key as f64;
        let score_mod_grad = |s: f64, _: At, d: f64| 0.7 * d * (0.7 * s).cos();
        let mask_mod = |at: At| (at.query + at.key) % 4 != 1;
        fn problem<'a>([q, k, v, bias]: &'a [Vec<f32>; 4]) -> FlashProblem<'a> {
            let whole = FlashProblem::new([q, k, v], [[2, 4, 5, 3], [2, 2, 7, 3], [2, 2, 7, 4]]);
            FlashProblem { seqlens_k: Some(&[7, 4]), bias: Some(bias), ..whole }
        }
        let loss = |inputs: &[Vec<f32>; 4]| -> f64 {
            let p = FlashProblem { score_mod: Some(&score_mod), mask_mod: Some(&mask_mod), ..problem(inputs) };
            let found = flash(&params, &p);
            let out: f64 = found.out.iter().zip(&dout).map(|(o, &d)| o * f64::from(d)).sum();
            let lse = found.lse.iter().zip(&dlse).filter(|(lse, _)| lse.is_finite());
            out + lse.map(|(lse, &d)| lse * f64::from(d)).sum::<f64>()
        };
        let p = FlashProblem { score_mod: Some(&score_mod), mask_mod: Some(&mask_mod), ..problem(&inputs) };
        let out: Vec<f32> = flash(&params, &p).out.iter().map(|&x| x as f32).collect();
        let g = flash_backward(&params, &p, &out, &dout, Some(&dlse), Some(&score_mod_grad));
        assert_slopes(&mut inputs, [g.dq, g.dk, g.dv, g.dbias], loss, 2e-6);
    }
}
