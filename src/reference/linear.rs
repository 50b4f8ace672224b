//! Linear attention, token by token.

use crate::{LinearParams, LinearRule};

/// What linear attention works on: tokens [batch, heads, tokens, width], gates [batch, their heads, tokens, 1 or head_dim], betas
/// [batch, their heads, tokens], states [sequences, heads, head_dim, value_dim].
#[derive(Clone, Copy, Debug)]
pub struct LinearProblem<'a> {
    /// Queries, keys, values.
    pub tokens: [&'a [f32]; 3],
    /// Their shapes.
    pub shapes: [[usize; 4]; 3],
    /// Log-space gates, their heads, and how many a token has: 1 or head_dim.
    pub g: Option<(&'a [f32], [usize; 2])>,
    /// How much a token corrects the state, by the delta rule, and heads of that. Unset: 1.
    pub beta: Option<(&'a [f32], usize)>,
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

    /// Heads of the gates, and how many a token of a head has.
    pub(super) fn gates(&self) -> [usize; 2] {
        self.g.map_or([self.heads(), 1], |(_, shape)| shape)
    }

    /// Where the gates of a token begin, and its beta.
    pub(super) fn places(&self, [batch, head, token]: [usize; 3]) -> [usize; 2] {
        let ([gate_heads, width], tokens) = (self.gates(), self.shapes[0][2]);
        let betas = self.beta.map_or(self.heads(), |(_, heads)| heads);
        let of = |own: usize| (batch * own + head * own / self.heads()) * tokens + token;
        [of(gate_heads) * width, of(betas)]
    }

    /// What is left of a row of the state before a token, and how much the token corrects it.
    fn step(&self, params: &LinearParams, at: [usize; 3]) -> Step<'_> {
        let ([batch, head, token], [first, of_beta]) = (at, self.places(at));
        let slope = params.slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
        let [_, width] = self.gates();
        let gate = |row: usize| self.g.map_or(-slope, |(g, _)| f64::from(g[first + row.min(width - 1)]));
        Step {
            fade: (0..self.shapes[0][3]).map(|row| gate(row).exp()).collect(),
            beta: self.beta.map_or(1.0, |(beta, _)| f64::from(beta[of_beta])),
            delta: params.rule == LinearRule::Delta,
            k: self.row(1, batch, head, token),
            v: self.row(2, batch, head, token),
        }
    }

    /// The step of every token of a head, in order.
    pub(super) fn steps(&self, params: &LinearParams, [batch, head]: [usize; 2], order: &[usize]) -> Vec<Step<'_>> {
        order.iter().map(|&token| self.step(params, [batch, head, token])).collect()
    }

    pub(super) fn row(&self, which: usize, batch: usize, head: usize, token: usize) -> &[f32] {
        let ([_, heads, tokens, width], own) = (self.shapes[which], self.own(which, head));
        &self.tokens[which][((batch * heads + own) * tokens + token) * width..][..width]
    }
}

/// What one token does to the state of a head.
pub(super) struct Step<'a> {
    /// Of each row.
    pub fade: Vec<f64>,
    pub beta: f64,
    pub delta: bool,
    pub k: &'a [f32],
    pub v: &'a [f32],
}

impl Step<'_> {
    /// The state that has faded.
    pub fn faded(&self, state: &[f64]) -> Vec<f64> {
        let rows = state.chunks(self.v.len()).zip(&self.fade);
        rows.flat_map(|(row, fade)| row.iter().map(move |x| fade * x)).collect()
    }

    /// v, less, by the delta rule, what the faded state has for k.
    pub fn error(&self, faded: &[f64]) -> Vec<f64> {
        let mut error: Vec<f64> = self.v.iter().map(|&v| f64::from(v)).collect();
        for (row, &k) in faded.chunks(self.v.len()).zip(self.k).filter(|_| self.delta) {
            error.iter_mut().zip(row).for_each(|(e, x)| *e -= f64::from(k) * x);
        }
        error
    }

    /// Factor of the error.
    pub fn share(&self) -> f64 {
        if self.delta { self.beta } else { 1.0 }
    }

    /// The state after the token.
    pub fn after(&self, state: &[f64]) -> Vec<f64> {
        let mut state = self.faded(state);
        let error = self.error(&state);
        for (row, &k) in state.chunks_mut(error.len()).zip(self.k) {
            row.iter_mut().zip(&error).for_each(|(x, e)| *x += f64::from(k) * self.share() * e);
        }
        state
    }
}

/// The recurrence S ← e^g · S + k vᵀ, or by the delta rule S ← S̃ + β k (v − S̃ᵀ k)ᵀ with S̃ = e^g · S; o = scale · Sᵀ q.
///
/// ```
/// use wgpu_attention::reference::{LinearProblem, linear};
/// use wgpu_attention::LinearParams;
/// let (q, k, v) = ([1.0, 1.0], [1.0, 2.0], [3.0, 5.0]);
/// let (g, shape) = ([0.0, 0.5f32.ln()], [1, 1, 2, 1]);
/// let problem =
///     LinearProblem { tokens: [&q, &k, &v], shapes: [shape; 3], g: Some((&g, [1, 1])), beta: None, h0: None, sequences: &[[0, 0, 2]] };
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
            let steps = p.steps(params, [b, h], &order);
            if !params.causal {
                steps.iter().for_each(|step| state = step.after(&state));
            }
            for (&t, step) in order.iter().zip(&steps) {
                if params.causal {
                    state = step.after(&state);
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
