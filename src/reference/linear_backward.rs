//! Gradients of linear attention, token by token, with the state after each of them.

use super::linear::{LinearProblem, Step, outer_scale, read};
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
    /// Of the initial sums of keys, with a normaliser.
    pub dz0: Vec<f64>,
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

/// Gradients of a loss from those of the output `dout` [batch, heads, tokens, value_dim], of the last states `dht` and, with a normaliser,
/// of the last sums of keys `dzt`.
///
/// ```
/// use wgpu_attention::reference::{LinearProblem, linear_backward};
/// use wgpu_attention::LinearParams;
/// let (q, k, v, shape) = ([1.0, 1.0], [1.0, 2.0], [3.0, 5.0], [1, 1, 2, 1]);
/// let tokens: [&[f32]; 3] = [&q, &k, &v];
/// let problem =
///     LinearProblem { tokens, shapes: [shape; 3], g: None, beta: None, h0: None, z0: None, sequences: &[[0, 0, 2]] };
/// let found = linear_backward(&LinearParams::default(), &problem, &[1.0, 1.0], [None; 2]);
/// assert_eq!(found.tokens, [vec![3.0, 13.0], vec![6.0, 5.0], vec![2.0, 2.0]]);
/// ```
pub fn linear_backward(
    params: &LinearParams,
    p: &LinearProblem,
    dout: &[f32],
    last: [Option<&[f32]>; 2],
) -> LinearGradientsReference {
    let ([batch, _, tokens, d], heads) = (p.shapes[0], p.heads());
    let size = |shape: [usize; 4]| shape.iter().product();
    let mut to = LinearGradientsReference {
        tokens: p.shapes.map(|shape| vec![0.0; size(shape)]),
        dg: vec![0.0; batch * tokens * p.gates().iter().product::<usize>()],
        dbeta: vec![0.0; p.beta.map_or(batch * heads * tokens, |(beta, _)| beta.len())],
        dslopes: vec![0.0; heads],
        dh0: vec![],
        dz0: vec![],
    };
    let scale = outer_scale(params, d);
    for (s, &[batch, first, count]) in p.sequences.iter().enumerate() {
        for head in 0..heads {
            let mut order: Vec<usize> = (first..first + count).collect();
            if params.reverse {
                order.reverse();
            }
            let (start, end) =
                (p.start(params, [p.h0, p.z0], s * heads + head), p.start(params, last, s * heads + head));
            let of = Head { params, p, batch, head, scale, order };
            let first = of.backward(&start, end, dout, &mut to);
            p.split(params, &first, [&mut to.dh0, &mut to.dz0]);
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
        let after = |n: usize| &states[if self.params.causal { n + 1 } else { self.order.len() }];
        let read = |n: usize, t: usize| self.read(t, after(n), &dout[row_of_heads(t) * dv..][..dv]);
        if !self.params.causal {
            self.order.iter().enumerate().for_each(|(n, &t)| self.reach(&mut ds, t, &read(n, t)));
        }
        for (n, (&t, step)) in self.order.iter().zip(&steps).enumerate().rev() {
            let dout = read(n, t);
            if self.params.causal {
                self.reach(&mut ds, t, &dout);
            }
            let faded = step.faded(&states[n]);
            let dbeta = self.add(&mut to.tokens, t, after(n), (step, &faded), &mut ds, &dout);
            let [of_gates, of_beta] = self.p.places([self.batch, self.head, t]);
            to.dbeta[of_beta] += dbeta;
            if self.params.causal {
                let width = dout.len();
                for (row, (ds, faded)) in ds.chunks(width).zip(faded.chunks(width)).enumerate() {
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

    /// The gradient of what is read from the state, with that of the divisor behind it.
    fn read(&self, t: usize, state: &[f64], dout: &[f32]) -> Vec<f64> {
        let dout: Vec<f64> = dout.iter().map(|&x| f64::from(x)).collect();
        let Some(epsilon) = self.params.normalize else { return dout };
        let (_, q) = self.p.features(self.params, 0, [self.batch, self.head, t]);
        let read = read(self.scale, &q, state);
        let divisor = read[dout.len()] + f64::from(epsilon);
        let dout: Vec<f64> = dout.iter().map(|x| x / divisor).collect();
        let of_divisor: f64 = dout.iter().zip(&read).map(|(a, b)| -a * b / divisor).sum();
        dout.into_iter().chain([of_divisor]).collect()
    }

    /// dS += scale · q doutᵀ.
    fn reach(&self, ds: &mut [f64], t: usize, dout: &[f64]) {
        let (_, q) = self.p.features(self.params, 0, [self.batch, self.head, t]);
        for (row, q) in ds.chunks_mut(dout.len()).zip(q) {
            row.iter_mut().zip(dout).for_each(|(x, o)| *x += self.scale * q * o);
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
        dout: &[f64],
    ) -> f64 {
        let width = step.v.len();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let error = step.error(faded);
        let du = read(1.0, &step.k, ds);
        let dv: Vec<f64> = du.iter().map(|x| step.share() * x).collect();
        let dq = state.chunks(width).map(|row| self.scale * dot(row, dout)).collect();
        let of_error = ds.chunks(width).map(|row| step.share() * dot(row, &error));
        let mut dk: Vec<f64> = of_error.collect();
        if step.delta {
            for (i, row) in ds.chunks_mut(width).enumerate() {
                dk[i] -= dot(&faded[i * width..][..width], &dv);
                row.iter_mut().zip(&dv).for_each(|(x, dv)| *x -= step.k[i] * dv);
            }
        }
        for (which, gradient) in [dq, dk, dv].into_iter().enumerate() {
            let at = [self.batch, self.head, t];
            self.p.add_to_row(self.params, &mut to[which], which, at, gradient);
        }
        dot(&du, &error)
    }
}
