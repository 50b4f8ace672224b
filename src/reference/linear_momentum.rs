//! Titans' linear memory with momentum, token by token.

use super::LinearProblem;
use super::linear::{outer_scale, read};
use crate::LinearParams;

/// What memory with momentum works on.
#[derive(Clone, Copy, Debug)]
pub struct LinearMomentumProblem<'a> {
    /// Tokens, the initial memory as `h0`, and sequences; no gates, no betas.
    pub tokens: LinearProblem<'a>,
    /// α, η and θ [batch, their heads, tokens], and those heads.
    pub steps: [(&'a [f32], usize); 3],
    /// The initial momentum [sequences, heads, head_dim, value_dim].
    pub s0: Option<&'a [f32]>,
}

/// Outputs [batch, heads, tokens, value_dim], 0 in rows of no sequence, and both last states.
#[derive(Clone, Debug, Default)]
pub struct LinearMomentumReference {
    /// The output.
    pub o: Vec<f64>,
    /// The last memories.
    pub ht: Vec<f64>,
    /// The last momenta.
    pub st: Vec<f64>,
}

/// Gradients, shaped like what they are of.
#[derive(Clone, Debug, Default)]
pub struct LinearMomentumGradientsReference {
    /// Of q, k and v.
    pub tokens: [Vec<f64>; 3],
    /// Of α, η and θ.
    pub steps: [Vec<f64>; 3],
    /// Of the initial memories.
    pub dh0: Vec<f64>,
    /// Of the initial momenta.
    pub ds0: Vec<f64>,
}

/// One head of one sequence.
struct Head<'a> {
    params: &'a LinearParams,
    p: &'a LinearMomentumProblem<'a>,
    /// Batch entry, head.
    at: [usize; 2],
    /// Tokens in the order of the walk.
    order: Vec<usize>,
    /// Memory and momentum before each token, and after the last.
    states: Vec<[Vec<f64>; 2]>,
    errors: Vec<Vec<f64>>,
}

/// e = M'ᵀ k − v, S ← η S − θ k eᵀ, M ← (1 − α) M + S, o = scale · Mᵀ q, with M' the memory that the token's chunk begins with.
///
/// ```
/// use wgpu_attention::reference::{LinearMomentumProblem, LinearProblem, linear_momentum};
/// use wgpu_attention::{LinearParams, LinearRule};
/// let (q, k, v, shape) = ([1.0, 1.0], [1.0, 1.0], [4.0, 6.0], [1, 1, 2, 1]);
/// let tokens: [&[f32]; 3] = [&q, &k, &v];
/// let (alpha, eta, theta): ([f32; 2], [f32; 2], [f32; 2]) = ([0.0, 0.5], [0.0, 1.0], [0.5, 0.5]);
/// let tokens = LinearProblem { tokens, shapes: [shape; 3], g: None, beta: None, h0: None, z0: None, sequences: &[[0, 0, 2]] };
/// let problem = LinearMomentumProblem { tokens, steps: [(&alpha, 1), (&eta, 1), (&theta, 1)], s0: None };
/// let found = linear_momentum(&LinearParams { rule: LinearRule::Momentum, ..LinearParams::default() }, &problem);
/// assert_eq!(found.o, [2.0, 5.0]); // S 2, M 2; then e −4, S 2 + 2, M 1 + 4
/// ```
pub fn linear_momentum(params: &LinearParams, p: &LinearMomentumProblem) -> LinearMomentumReference {
    let ([batch, _, tokens, d], width, heads) = (p.tokens.shapes[0], p.tokens.shapes[2][3], p.tokens.heads());
    let mut found = LinearMomentumReference { o: vec![0.0; batch * heads * tokens * width], ..Default::default() };
    for head in p.heads(params) {
        let [b, h] = head.at;
        for (&t, [memory, _]) in head.order.iter().zip(&head.states[1..]) {
            let (_, q) = p.tokens.features(params, 0, [b, h, t]);
            let to = &mut found.o[((b * heads + h) * tokens + t) * width..][..width];
            to.copy_from_slice(&read(outer_scale(params, d), &q, memory));
        }
        let [memory, momentum] = head.states.last().expect("the first at least");
        found.ht.extend(memory);
        found.st.extend(momentum);
    }
    found
}

/// Gradients of a loss from those of the output, `dout`, and of the last memories and momenta.
pub fn linear_momentum_backward(
    params: &LinearParams,
    p: &LinearMomentumProblem,
    dout: &[f32],
    last: [Option<&[f32]>; 2],
) -> LinearMomentumGradientsReference {
    let mut to = LinearMomentumGradientsReference {
        tokens: p.tokens.tokens.map(|of| vec![0.0; of.len()]),
        steps: p.steps.map(|(step, _)| vec![0.0; step.len()]),
        ..Default::default()
    };
    for (n, head) in p.heads(params).enumerate() {
        let size = head.states[0][0].len();
        let [dm, ds] = last.map(|of| state(of, n, size));
        let [dm, ds] = head.backward(dout, [dm, ds], &mut to);
        to.dh0.extend(dm);
        to.ds0.extend(ds);
    }
    to
}

/// State number n, or an empty one.
fn state(of: Option<&[f32]>, n: usize, size: usize) -> Vec<f64> {
    of.map_or(vec![0.0; size], |of| of[n * size..][..size].iter().map(|&x| f64::from(x)).collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// x += factor · k eᵀ.
fn add_product(x: &mut [f64], factor: f64, k: &[f64], e: &[f64]) {
    for (row, k) in x.chunks_mut(e.len()).zip(k) {
        row.iter_mut().zip(e).for_each(|(x, e)| *x += factor * k * e);
    }
}

impl LinearMomentumProblem<'_> {
    /// All heads of all sequences, walked through.
    fn heads<'a>(&'a self, params: &'a LinearParams) -> impl Iterator<Item = Head<'a>> {
        let heads = self.tokens.heads();
        let sequences = self.tokens.sequences.iter().enumerate();
        sequences.flat_map(move |(s, &place)| (0..heads).map(move |h| self.head(params, s * heads + h, place, h)))
    }

    fn head<'a>(
        &'a self,
        params: &'a LinearParams,
        n: usize,
        [batch, first, count]: [usize; 3],
        head: usize,
    ) -> Head<'a> {
        let (d, width) = (self.tokens.shapes[0][3], self.tokens.shapes[2][3]);
        let size = params.feature_map.features(d) * width;
        let mut order: Vec<usize> = (first..first + count).collect();
        if params.reverse {
            order.reverse();
        }
        let start = [self.tokens.h0, self.s0].map(|of| state(of, n, size));
        let mut of = Head { params, p: self, at: [batch, head], order, states: vec![start], errors: vec![] };
        for i in 0..of.order.len() {
            of.pass(i);
        }
        of
    }

    /// Where α, η and θ of a token are.
    fn places(&self, [batch, head]: [usize; 2], token: usize) -> [usize; 3] {
        let ([.., tokens, _], all) = (self.tokens.shapes[0], self.tokens.heads());
        self.steps.map(|(_, own)| (batch * own + head * own / all) * tokens + token)
    }
}

impl Head<'_> {
    /// α, η and θ of a token.
    fn steps(&self, token: usize) -> [f64; 3] {
        let places = self.p.places(self.at, token);
        std::array::from_fn(|i| f64::from(self.p.steps[i].0[places[i]]))
    }

    fn row(&self, which: usize, token: usize) -> Vec<f64> {
        let [b, h] = self.at;
        match which {
            2 => self.p.tokens.row(2, b, h, token).iter().map(|&x| f64::from(x)).collect(),
            _ => self.p.tokens.features(self.params, which, [b, h, token]).1,
        }
    }

    /// The token that the chunk of token n begins with.
    fn start(&self, n: usize) -> usize {
        n - n % self.params.chunk.unwrap_or(1)
    }

    fn pass(&mut self, n: usize) {
        let t = self.order[n];
        let ([alpha, eta, theta], k, v) = (self.steps(t), self.row(1, t), self.row(2, t));
        let [before, _] = &self.states[self.start(n)];
        let error: Vec<f64> = read(1.0, &k, before).iter().zip(v).map(|(read, v)| read - v).collect();
        let [memory, momentum] = &self.states[n];
        let mut next: Vec<f64> = momentum.iter().map(|s| eta * s).collect();
        add_product(&mut next, -theta, &k, &error);
        let memory = memory.iter().zip(&next).map(|(m, s)| (1.0 - alpha) * m + s).collect();
        self.states.push([memory, next]);
        self.errors.push(error);
    }

    /// Adds to the gradients of the tokens; returns those of the initial states. dM' is kept apart until its chunk begins.
    fn backward(
        &self,
        dout: &[f32],
        [mut dm, mut ds]: [Vec<f64>; 2],
        to: &mut LinearMomentumGradientsReference,
    ) -> [Vec<f64>; 2] {
        let ([.., tokens, d], all, [b, h]) = (self.p.tokens.shapes[0], self.p.tokens.heads(), self.at);
        let mut dstart = vec![0.0; dm.len()];
        for (n, &t) in self.order.iter().enumerate().rev() {
            let ([alpha, eta, theta], q, k) = (self.steps(t), self.row(0, t), self.row(1, t));
            let ([memory, momentum], error) = (&self.states[n], &self.errors[n]);
            let width = error.len();
            let scale = outer_scale(self.params, d);
            let dout = dout[((b * all + h) * tokens + t) * width..][..width].iter();
            let dout: Vec<f64> = dout.map(|&x| scale * f64::from(x)).collect();
            let dq = self.states[n + 1][0].chunks(width).map(|row| dot(row, &dout)).collect();
            add_product(&mut dm, 1.0, &q, &dout);
            ds.iter_mut().zip(&dm).for_each(|(s, m)| *s += m);
            let weights = read(1.0, &k, &ds);
            let of_steps = [-dot(&dm, memory), dot(&ds, momentum), -dot(&weights, error)];
            for (i, place) in self.p.places(self.at, t).into_iter().enumerate() {
                to.steps[i][place] += of_steps[i];
            }
            let before = &self.states[self.start(n)][0];
            let rows = ds.chunks(width).zip(before.chunks(width));
            let dk = rows.map(|(ds, before)| -theta * (dot(ds, error) + dot(before, &weights))).collect();
            let dv: Vec<f64> = weights.iter().map(|w| theta * w).collect();
            for (which, gradient) in [dq, dk, dv].into_iter().enumerate() {
                self.p.tokens.add_to_row(self.params, &mut to.tokens[which], which, [b, h, t], gradient);
            }
            add_product(&mut dstart, -theta, &k, &weights);
            dm.iter_mut().for_each(|x| *x *= 1.0 - alpha);
            ds.iter_mut().for_each(|x| *x *= eta);
            if self.start(n) == n {
                dm.iter_mut().zip(&mut dstart).for_each(|(m, start)| *m += std::mem::take(start));
            }
        }
        [dm, ds]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinearRule;
    use crate::reference::{assert_slopes, numbers};

    /// Every gradient against central differences, with errors of the memory before the token and of that before its chunk.
    #[test]
    fn gradients_are_what_central_differences_say() {
        let (heads, n, d, dv) = (2, 7, 3, 4);
        let within = |seed: usize| numbers(seed, heads * n).into_iter().map(|x| 0.5 + 0.375 * x).collect::<Vec<f32>>();
        for chunk in [1, 3] {
            let [q, k, v] = [(1, d), (2, d), (3, dv)].map(|(seed, width)| numbers(seed, heads * n * width));
            let [h0, s0, dht, dst] = [4, 5, 6, 7].map(|seed| numbers(seed, heads * d * dv));
            let dout = numbers(8, heads * n * dv);
            let mut inputs = [q, k, v, within(9), within(10), within(11), h0, s0];
            let params = LinearParams { rule: LinearRule::Momentum, chunk: Some(chunk), ..LinearParams::default() };
            let shape = |width| [1, heads, n, width];
            fn problem(inputs: &[Vec<f32>; 8], shapes: [[usize; 4]; 3]) -> LinearMomentumProblem<'_> {
                let [q, k, v, alpha, eta, theta, h0, s0] = inputs;
                let steps = [(&alpha[..], 2), (&eta[..], 2), (&theta[..], 2)];
                let (tokens, sequences) = ([&q[..], k, v], &[[0, 0, 7]]);
                let tokens = LinearProblem { tokens, shapes, g: None, beta: None, h0: Some(h0), z0: None, sequences };
                LinearMomentumProblem { tokens, steps, s0: Some(s0) }
            }
            let shapes = [shape(d), shape(d), shape(dv)];
            let weighed = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
            let loss = |inputs: &[Vec<f32>; 8]| {
                let found = linear_momentum(&params, &problem(inputs, shapes));
                weighed(&found.o, &dout) + weighed(&found.ht, &dht) + weighed(&found.st, &dst)
            };
            let found = linear_momentum_backward(&params, &problem(&inputs, shapes), &dout, [Some(&dht), Some(&dst)]);
            let all = found.tokens.into_iter().chain(found.steps).chain([found.dh0, found.ds0]);
            assert_slopes(&mut inputs, all, loss, 1e-3);
        }
    }
}
