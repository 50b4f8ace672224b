//! Gradients of linear attention, token by token, with the state after each of them.

use super::linear::{LinearProblem, Step};
use crate::LinearParams;

/// Gradients, shaped like q, k and v, the gates, the betas, `[heads]`, and the initial states.
#[derive(Clone, Debug)]
pub struct LinearGradientsReference {
    /// Of q, k and v.
    pub tokens: [Vec<f64>; 3],
    /// Of the gates, each token's (or channel's).
    pub dg: Vec<f64>,
    /// Of the betas, `[batch, heads, tokens]` where there are none.
    pub dbeta: Vec<f64>,
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
/// let problem = LinearProblem { tokens: [&q, &k, &v], shapes: [shape; 3], g: None, beta: None, h0: None, sequences: &[[0, 0, 2]] };
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
        dg: vec![0.0; batch * tokens * p.gates().iter().product::<usize>()],
        dbeta: vec![0.0; p.beta.map_or(batch * heads * tokens, |(beta, _)| beta.len())],
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
            let dh0 = of.backward(&start, end, dout, &mut to);
            to.dh0.extend(dh0);
        }
    }
    to
}

impl Head<'_> {
    /// Adds to the gradients of the tokens; returns that of the initial state.
    fn backward(&self, start: &[f64], mut ds: Vec<f64>, dout: &[f32], to: &mut LinearGradientsReference) -> Vec<f64> {
        let ([.., tokens, _], dv, heads) = (self.p.shapes[0], self.p.shapes[2][3], self.p.heads());
        let row_of_heads = |t: usize| (self.batch * heads + self.head) * tokens + t;
        let [_, gates] = self.p.gates();
        let steps = self.p.steps(self.params, [self.batch, self.head], &self.order);
        let states = Self::states(start, &steps);
        if !self.params.causal {
            self.order.iter().for_each(|&t| self.reach(&mut ds, t, &dout[row_of_heads(t) * dv..][..dv]));
        }
        for (n, (&t, step)) in self.order.iter().zip(&steps).enumerate().rev() {
            let dout = &dout[row_of_heads(t) * dv..][..dv];
            let after = if self.params.causal { &states[n + 1] } else { &states[self.order.len()] };
            if self.params.causal {
                self.reach(&mut ds, t, dout);
            }
            let faded = step.faded(&states[n]);
            let dbeta = self.add(&mut to.tokens, t, after, (step, &faded), &mut ds, dout);
            let [of_gates, of_beta] = self.p.places([self.batch, self.head, t]);
            to.dbeta[of_beta] += dbeta;
            if self.params.causal {
                for (row, (ds, faded)) in ds.chunks(dv).zip(faded.chunks(dv)).enumerate() {
                    let gate: f64 = ds.iter().zip(faded).map(|(a, b)| a * b).sum();
                    to.dg[of_gates + row.min(gates - 1)] += gate;
                    to.dslopes[self.head] -= gate;
                }
                ds = step.faded(&ds);
            }
        }
        ds
    }

    /// The state before the first token, and after each.
    fn states(start: &[f64], steps: &[Step]) -> Vec<Vec<f64>> {
        let mut states = vec![start.to_vec()];
        steps.iter().for_each(|step| states.push(step.after(&states[states.len() - 1])));
        states
    }

    /// dS += scale · q doutᵀ.
    fn reach(&self, ds: &mut [f64], t: usize, dout: &[f32]) {
        for (row, &q) in ds.chunks_mut(dout.len()).zip(self.p.row(0, self.batch, self.head, t)) {
            row.iter_mut().zip(dout).for_each(|(x, &o)| *x += self.scale * f64::from(q) * f64::from(o));
        }
    }

    /// dq += scale · S dout. With e = v − S̃ᵀ k by the delta rule, else v, u = β e and du = dSᵀ k: dv += β du, dk += dS u, and by the delta
    /// rule dk −= S̃ dv, and dS becomes dS − k dvᵀ, which reaches S̃. Returns dβ = du · e.
    fn add(
        &self,
        to: &mut [Vec<f64>; 3],
        t: usize,
        state: &[f64],
        (step, faded): (&Step, &[f64]),
        ds: &mut [f64],
        dout: &[f32],
    ) -> f64 {
        let width = step.v.len();
        let at = |which: usize| {
            let [_, heads, tokens, width] = self.p.shapes[which];
            ((self.batch * heads + self.p.own(which, self.head)) * tokens + t) * width
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (error, dout) = (step.error(faded), dout.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let mut du = vec![0.0; width];
        for (row, &k) in ds.chunks(width).zip(step.k) {
            du.iter_mut().zip(row).for_each(|(du, x)| *du += f64::from(k) * x);
        }
        let dv: Vec<f64> = du.iter().map(|x| step.share() * x).collect();
        to[2][at(2)..][..width].iter_mut().zip(&dv).for_each(|(to, x)| *to += x);
        for (i, (state, ds)) in state.chunks(width).zip(ds.chunks_mut(width)).enumerate() {
            to[0][at(0) + i] += self.scale * dot(state, &dout);
            to[1][at(1) + i] += step.share() * dot(ds, &error);
            if step.delta {
                to[1][at(1) + i] -= dot(&faded[i * width..][..width], &dv);
                ds.iter_mut().zip(&dv).for_each(|(x, dv)| *x -= f64::from(step.k[i]) * dv);
            }
        }
        dot(&du, &error)
    }
}
