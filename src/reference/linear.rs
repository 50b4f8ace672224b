//! Linear attention, token by token.

use crate::LinearParams;

/// What linear attention works on: tokens [batch, heads, tokens, width], gates [batch, heads, tokens], states [sequences, heads,
/// head_dim, value_dim].
#[derive(Clone, Copy, Debug)]
pub struct LinearProblem<'a> {
    /// Queries, keys, values.
    pub tokens: [&'a [f32]; 3],
    /// Their shapes.
    pub shapes: [[usize; 4]; 3],
    /// Log-space gates of tokens.
    pub g: Option<&'a [f32]>,
    /// Initial state.
    pub h0: Option<&'a [f32]>,
    /// (batch entry, first row, tokens) of each sequence.
    pub sequences: &'a [[usize; 3]],
}

/// Outputs [batch, heads, tokens, value_dim], 0 in rows of no sequence, and last states.
#[derive(Clone, Debug)]
pub struct LinearReference {
    /// The output.
    pub o: Vec<f64>,
    /// The last states.
    pub ht: Vec<f64>,
}

impl LinearProblem<'_> {
    /// Heads of the state.
    pub fn heads(&self) -> usize {
        self.shapes.iter().map(|shape| shape[1]).max().unwrap_or(0)
    }

    /// Head of q, k or v that a head of the state uses.
    pub(super) fn own(&self, which: usize, head: usize) -> usize {
        head / (self.heads() / self.shapes[which][1])
    }

    /// The gate of a token.
    pub(super) fn gate(&self, params: &LinearParams, batch: usize, head: usize, token: usize) -> f64 {
        let of_head = params.slopes.as_ref().map_or(0.0, |slopes| -f64::from(slopes[head]));
        self.g.map_or(of_head, |g| f64::from(g[(batch * self.heads() + head) * self.shapes[0][2] + token]))
    }

    pub(super) fn row(&self, which: usize, batch: usize, head: usize, token: usize) -> &[f32] {
        let ([_, heads, tokens, width], own) = (self.shapes[which], self.own(which, head));
        &self.tokens[which][((batch * heads + own) * tokens + token) * width..][..width]
    }
}

/// The recurrence S ← e^g · S + k vᵀ, o = scale · Sᵀ q.
///
/// ```
/// use wgpu_attention::reference::{LinearProblem, linear};
/// use wgpu_attention::LinearParams;
/// let (q, k, v) = ([1.0, 1.0], [1.0, 2.0], [3.0, 5.0]);
/// let (g, shape) = ([0.0, 0.5f32.ln()], [1, 1, 2, 1]);
/// let problem =
///     LinearProblem { tokens: [&q, &k, &v], shapes: [shape; 3], g: Some(&g), h0: None, sequences: &[[0, 0, 2]] };
/// let found = linear(&LinearParams::default(), &problem);
/// assert!((found.o[0] - 3.0).abs() < 1e-9 && (found.o[1] - 11.5).abs() < 1e-6); // 3, then 3 / 2 + 2 · 5
/// ```
pub fn linear(params: &LinearParams, p: &LinearProblem) -> LinearReference {
    let ([batch, _, tokens, d], dv, heads) = (p.shapes[0], p.shapes[2][3], p.heads());
    let scale = params.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
    let mut o = vec![0.0; batch * heads * tokens * dv];
    let mut ht = vec![];
    for (s, &[b, first, count]) in p.sequences.iter().enumerate() {
        for h in 0..heads {
            let start = p.h0.map(|h0| &h0[(s * heads + h) * d * dv..][..d * dv]);
            let mut state: Vec<f64> = start.map_or(vec![0.0; d * dv], |h0| h0.iter().map(|&x| f64::from(x)).collect());
            let mut order: Vec<usize> = (first..first + count).collect();
            if params.reverse {
                order.reverse();
            }
            let absorb = |state: &mut Vec<f64>, t: usize| {
                let g = p.gate(params, b, h, t);
                for (row, &k) in state.chunks_mut(dv).zip(p.row(1, b, h, t)) {
                    for (x, &v) in row.iter_mut().zip(p.row(2, b, h, t)) {
                        *x = *x * g.exp() + f64::from(k) * f64::from(v);
                    }
                }
            };
            if !params.causal {
                order.iter().for_each(|&t| absorb(&mut state, t));
            }
            for &t in &order {
                if params.causal {
                    absorb(&mut state, t);
                }
                let out = &mut o[((b * heads + h) * tokens + t) * dv..][..dv];
                for (row, &q) in state.chunks(dv).zip(p.row(0, b, h, t)) {
                    out.iter_mut().zip(row).for_each(|(o, x)| *o += scale * f64::from(q) * x);
                }
            }
            ht.extend(state);
        }
    }
    LinearReference { o, ht }
}
