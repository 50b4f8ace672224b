//! Gradients of linear attention, token by token, with the state after each of them.

use super::linear::LinearProblem;
use crate::LinearParams;

/// Gradients, shaped like q, k and v, `[batch, heads, tokens]`, `[heads]`, and the initial states.
#[derive(Clone, Debug)]
pub struct LinearGradientsReference {
    /// Of q, k and v.
    pub tokens: [Vec<f64>; 3],
    /// Of the gates, each token's.
    pub dg: Vec<f64>,
    /// Of the slopes.
    pub dslopes: Vec<f64>,
    /// Of the initial states.
    pub dh0: Vec<f64>,
}

/// One head of one sequence.
struct Head<'a> {
    params: &'a LinearParams,
    p: &'a LinearProblem<'a>,
    batch: usize,
    head: usize,
    scale: f64,
    /// Tokens in the order of the walk.
    order: Vec<usize>,
}

/// Gradients of a loss from those of the output `dout` [batch, heads, tokens, value_dim] and of the last states `dht`.
///
/// ```
/// use wgpu_attention::reference::{LinearProblem, linear_backward};
/// use wgpu_attention::LinearParams;
/// let (q, k, v, shape) = ([1.0, 1.0], [1.0, 2.0], [3.0, 5.0], [1, 1, 2, 1]);
/// let problem = LinearProblem { tokens: [&q, &k, &v], shapes: [shape; 3], g: None, h0: None, sequences: &[[0, 0, 2]] };
/// let found = linear_backward(&LinearParams::default(), &problem, &[1.0, 1.0], None);
/// assert_eq!(found.tokens, [vec![3.0, 13.0], vec![6.0, 5.0], vec![2.0, 2.0]]);
/// ```
pub fn linear_backward(
    params: &LinearParams,
    p: &LinearProblem,
    dout: &[f32],
    dht: Option<&[f32]>,
) -> LinearGradientsReference {
    let ([batch, _, tokens, d], dv, heads) = (p.shapes[0], p.shapes[2][3], p.heads());
    let size = |shape: [usize; 4]| shape.iter().product();
    let mut to = LinearGradientsReference {
        tokens: p.shapes.map(|shape| vec![0.0; size(shape)]),
        dg: vec![0.0; batch * heads * tokens],
        dslopes: vec![0.0; heads],
        dh0: vec![],
    };
    for (s, &[batch, first, count]) in p.sequences.iter().enumerate() {
        for head in 0..heads {
            let mut order: Vec<usize> = (first..first + count).collect();
            if params.reverse {
                order.reverse();
            }
            let scale = params.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
            let at = |states: &[f32]| {
                states[(s * heads + head) * d * dv..][..d * dv].iter().map(|&x| f64::from(x)).collect::<Vec<_>>()
            };
            let zeros = vec![0.0; d * dv];
            let (start, end) = (p.h0.map_or(zeros.clone(), at), dht.map_or(zeros, at));
            let of = Head { params, p, batch, head, scale, order };
            to.dh0.extend(of.backward(&start, end, dout, &mut to.tokens, &mut to.dg, &mut to.dslopes));
        }
    }
    to
}

impl Head<'_> {
    /// Adds to the gradients of the tokens; returns that of the initial state.
    fn backward(
        &self,
        start: &[f64],
        mut ds: Vec<f64>,
        dout: &[f32],
        to: &mut [Vec<f64>; 3],
        dg: &mut [f64],
        dslopes: &mut [f64],
    ) -> Vec<f64> {
        let ([.., tokens, _], dv, heads) = (self.p.shapes[0], self.p.shapes[2][3], self.p.heads());
        let row_of_heads = |t: usize| (self.batch * heads + self.head) * tokens + t;
        let states = self.states(start);
        if !self.params.causal {
            self.order.iter().for_each(|&t| self.reach(&mut ds, t, &dout[row_of_heads(t) * dv..][..dv]));
        }
        for (n, &t) in self.order.iter().enumerate().rev() {
            let dout = &dout[row_of_heads(t) * dv..][..dv];
            let after = if self.params.causal { &states[n + 1] } else { &states[self.order.len()] };
            if self.params.causal {
                self.reach(&mut ds, t, dout);
            }
            self.add(to, t, after, &ds, dout);
            if self.params.causal {
                let fade = self.p.gate(self.params, self.batch, self.head, t).exp();
                let gate: f64 = ds.iter().zip(&states[n]).map(|(a, b)| fade * a * b).sum();
                dg[row_of_heads(t)] = gate;
                dslopes[self.head] -= gate;
                ds.iter_mut().for_each(|x| *x *= fade);
            }
        }
        ds
    }

    /// The state before the first token, and after each.
    fn states(&self, start: &[f64]) -> Vec<Vec<f64>> {
        let mut states = vec![start.to_vec()];
        for &t in &self.order {
            let fade = self.p.gate(self.params, self.batch, self.head, t).exp();
            let mut state = states[states.len() - 1].clone();
            let (k, v) = (self.p.row(1, self.batch, self.head, t), self.p.row(2, self.batch, self.head, t));
            for (row, &k) in state.chunks_mut(v.len()).zip(k) {
                row.iter_mut().zip(v).for_each(|(x, &v)| *x = *x * fade + f64::from(k) * f64::from(v));
            }
            states.push(state);
        }
        states
    }

    /// dS += scale · q doutᵀ.
    fn reach(&self, ds: &mut [f64], t: usize, dout: &[f32]) {
        for (row, &q) in ds.chunks_mut(dout.len()).zip(self.p.row(0, self.batch, self.head, t)) {
            row.iter_mut().zip(dout).for_each(|(x, &o)| *x += self.scale * f64::from(q) * f64::from(o));
        }
    }

    /// dq += scale · S dout, dk += dS v, dv += dSᵀ k.
    fn add(&self, to: &mut [Vec<f64>; 3], t: usize, state: &[f64], ds: &[f64], dout: &[f32]) {
        let (k, v) = (self.p.row(1, self.batch, self.head, t), self.p.row(2, self.batch, self.head, t));
        let at = |which: usize| {
            let [_, heads, tokens, width] = self.p.shapes[which];
            ((self.batch * heads + self.p.own(which, self.head)) * tokens + t) * width
        };
        let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
        for (i, (state, ds)) in state.chunks(v.len()).zip(ds.chunks(v.len())).enumerate() {
            to[0][at(0) + i] += self.scale * dot(state, dout);
            to[1][at(1) + i] += dot(ds, v);
            for (j, x) in ds.iter().enumerate() {
                to[2][at(2) + j] += x * f64::from(k[i]);
            }
        }
    }
}
