//! Linear attention, token by token.

use crate::{FeatureMap, LinearParams, LinearRule};

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
    /// Initial sum of keys, of a normaliser.
    pub z0: Option<&'a [f32]>,
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
    /// The last sums of keys, with a normaliser.
    pub zt: Vec<f64>,
}

impl LinearProblem<'_> {
    /// Heads of the state.
    pub fn heads(&self) -> usize {
        self.shapes.iter().map(|shape| shape[1]).max().unwrap_or(0)
    }

    /// Head of q, k or v that a head of the state uses.
    fn own(&self, which: usize, head: usize) -> usize {
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
    fn step(&self, params: &LinearParams, at: [usize; 3]) -> Step {
        let ([_, head, _], [first, of_beta]) = (at, self.places(at));
        let slope = params.slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
        let ([_, width], features) = (self.gates(), params.feature_map.features(self.shapes[0][3]));
        let gate = |row: usize| self.g.map_or(-slope, |(g, _)| f64::from(g[first + row.min(width - 1)]));
        Step {
            fade: (0..features).map(|row| gate(row).exp()).collect(),
            beta: self.beta.map_or(1.0, |(beta, _)| f64::from(beta[of_beta])),
            delta: params.rule == LinearRule::Delta,
            k: self.features(params, 1, at).1,
            v: self.value(params, at),
        }
    }

    /// The step of every token of a head, in order.
    pub(super) fn steps(&self, params: &LinearParams, [batch, head]: [usize; 2], order: &[usize]) -> Vec<Step> {
        order.iter().map(|&token| self.step(params, [batch, head, token])).collect()
    }

    pub(super) fn row(&self, which: usize, batch: usize, head: usize, token: usize) -> &[f32] {
        let ([_, heads, tokens, width], own) = (self.shapes[which], self.own(which, head));
        &self.tokens[which][((batch * heads + own) * tokens + token) * width..][..width]
    }

    /// A row of q or k, of unit length where the params say so, what it was multiplied by, and its features.
    pub(super) fn features(&self, params: &LinearParams, which: usize, [b, h, t]: [usize; 3]) -> (f64, Vec<f64>) {
        let (factor, row) = self.unit(params, which, [b, h, t]);
        (factor, phi(params.feature_map, scale_of(params, row.len()), &row))
    }

    /// The row that is mapped to features, and what it was multiplied by.
    fn unit(&self, params: &LinearParams, which: usize, [b, h, t]: [usize; 3]) -> (f64, Vec<f64>) {
        let row: Vec<f64> = self.row(which, b, h, t).iter().map(|&x| f64::from(x)).collect();
        let squares: f64 = row.iter().map(|x| x * x).sum();
        let factor = if params.l2_norm { 1.0 / (squares + 1e-6).sqrt() } else { 1.0 };
        (factor, row.into_iter().map(|x| factor * x).collect())
    }

    /// Adds the gradient of a row of v, or of q or k from that of its features.
    pub(super) fn add_to_row(
        &self,
        params: &LinearParams,
        to: &mut [f64],
        which: usize,
        [b, h, t]: [usize; 3],
        dy: Vec<f64>,
    ) {
        let gradient = if which < 2 { self.of_row(params, which, [b, h, t], &dy) } else { dy };
        let [_, heads, tokens, width] = self.shapes[which];
        let at = ((b * heads + self.own(which, h)) * tokens + t) * width;
        to[at..][..width].iter_mut().zip(gradient).for_each(|(to, x)| *to += x);
    }

    fn of_row(&self, params: &LinearParams, which: usize, at: [usize; 3], dy: &[f64]) -> Vec<f64> {
        let (factor, n) = self.unit(params, which, at);
        let dn = pull_back(params.feature_map, scale_of(params, n.len()), &n, dy);
        let along: f64 = if params.l2_norm { n.iter().zip(&dn).map(|(a, b)| a * b).sum() } else { 0.0 };
        dn.iter().zip(&n).map(|(dn, n)| factor * (dn - along * n)).collect()
    }

    /// A row of v, with 1 behind it where there is a normaliser.
    fn value(&self, params: &LinearParams, [b, h, t]: [usize; 3]) -> Vec<f64> {
        let row = self.row(2, b, h, t).iter().map(|&x| f64::from(x));
        row.chain(params.normalize.map(|_| 1.0)).collect()
    }

    /// What the state of a head begins with: rows of h0, with one of z0 behind each where there is a normaliser.
    pub(super) fn start(&self, params: &LinearParams, states: [Option<&[f32]>; 2], at: usize) -> Vec<f64> {
        let (rows, width) = (params.feature_map.features(self.shapes[0][3]), self.shapes[2][3]);
        let number = |of: Option<&[f32]>, i: usize| of.map_or(0.0, |of| f64::from(of[i]));
        let row = |r: usize| {
            let row = (0..width).map(move |c| number(states[0], (at * rows + r) * width + c));
            row.chain(params.normalize.map(|_| number(states[1], at * rows + r)))
        };
        (0..rows).flat_map(row).collect()
    }

    /// The opposite.
    pub(super) fn split(&self, params: &LinearParams, state: &[f64], [to, sums]: [&mut Vec<f64>; 2]) {
        let width = self.shapes[2][3];
        for row in state.chunks(width + usize::from(params.normalize.is_some())) {
            to.extend(&row[..width]);
            sums.extend(&row[width..]);
        }
    }
}

/// The factor that holds where none is set.
fn scale_of(params: &LinearParams, head_dim: usize) -> f64 {
    let default = if params.rule == LinearRule::Momentum { 1.0 } else { 1.0 / (head_dim as f64).sqrt() };
    params.scale.map_or(default, f64::from)
}

/// Factor of Sᵀ φ(q): the Taylor map has the scale inside.
pub(super) fn outer_scale(params: &LinearParams, head_dim: usize) -> f64 {
    if params.feature_map == FeatureMap::Taylor2 { 1.0 } else { scale_of(params, head_dim) }
}

/// Features of a row.
fn phi(map: FeatureMap, scale: f64, n: &[f64]) -> Vec<f64> {
    match map {
        FeatureMap::Identity => n.to_vec(),
        FeatureMap::Elu1 => n.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect(),
        FeatureMap::Relu => n.iter().map(|x| x.max(0.0)).collect(),
        FeatureMap::Taylor2 => {
            let pairs = pairs(n.len()).map(|(i, j)| pair_factor(scale, i, j) * n[i] * n[j]);
            [1.0].into_iter().chain(n.iter().map(|x| scale.sqrt() * x)).chain(pairs).collect()
        }
    }
}

/// The gradient of a row from that of its features.
fn pull_back(map: FeatureMap, scale: f64, n: &[f64], dy: &[f64]) -> Vec<f64> {
    let each = |slope: fn(f64) -> f64| n.iter().zip(dy).map(|(&n, dy)| slope(n) * dy).collect();
    match map {
        FeatureMap::Identity => dy.to_vec(),
        FeatureMap::Elu1 => each(|n| if n > 0.0 { 1.0 } else { n.exp() }),
        FeatureMap::Relu => each(|n| if n > 0.0 { 1.0 } else { 0.0 }),
        FeatureMap::Taylor2 => {
            let mut dn: Vec<f64> = dy[1..=n.len()].iter().map(|dy| scale.sqrt() * dy).collect();
            for ((i, j), dy) in pairs(n.len()).zip(&dy[1 + n.len()..]) {
                dn[i] += pair_factor(scale, i, j) * dy * n[j];
                dn[j] += pair_factor(scale, i, j) * dy * n[i];
            }
            dn
        }
    }
}

fn pairs(width: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..width).flat_map(move |i| (i..width).map(move |j| (i, j)))
}

fn pair_factor(scale: f64, i: usize, j: usize) -> f64 {
    if i == j { scale / 2f64.sqrt() } else { scale }
}

/// What one token does to the state of a head.
pub(super) struct Step {
    /// Of each row.
    pub fade: Vec<f64>,
    pub beta: f64,
    pub delta: bool,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

impl Step {
    /// The state that has faded.
    pub fn faded(&self, state: &[f64]) -> Vec<f64> {
        let rows = state.chunks(self.v.len()).zip(&self.fade);
        rows.flat_map(|(row, fade)| row.iter().map(move |x| fade * x)).collect()
    }

    /// v, less, by the delta rule, what the faded state has for k.
    pub fn error(&self, faded: &[f64]) -> Vec<f64> {
        let mut error = self.v.clone();
        for (row, k) in faded.chunks(self.v.len()).zip(&self.k).filter(|_| self.delta) {
            error.iter_mut().zip(row).for_each(|(e, x)| *e -= k * x);
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
        for (row, k) in state.chunks_mut(error.len()).zip(&self.k) {
            row.iter_mut().zip(&error).for_each(|(x, e)| *x += k * self.share() * e);
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
///     LinearProblem { tokens: [&q, &k, &v], shapes: [shape; 3], g: Some((&g, [1, 1])), beta: None, h0: None, z0: None, sequences: &[[0, 0, 2]] };
/// let found = linear(&LinearParams::default(), &problem);
/// assert!((found.o[0] - 3.0).abs() < 1e-9 && (found.o[1] - 11.5).abs() < 1e-6); // 3, then 3 / 2 + 2 · 5
/// ```
pub fn linear(params: &LinearParams, p: &LinearProblem) -> LinearReference {
    let ([batch, _, tokens, d], dv, heads) = (p.shapes[0], p.shapes[2][3], p.heads());
    let scale = outer_scale(params, d);
    let mut found = LinearReference { o: vec![0.0; batch * heads * tokens * dv], ht: vec![], zt: vec![] };
    for (s, &[b, first, count]) in p.sequences.iter().enumerate() {
        for h in 0..heads {
            let mut state = p.start(params, [p.h0, p.z0], s * heads + h);
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
                let (_, q) = p.features(params, 0, [b, h, t]);
                let mut out = read(scale, &q, &state);
                let divisor = params.normalize.map_or(1.0, |epsilon| out[dv] + f64::from(epsilon));
                out.truncate(dv);
                let to = &mut found.o[((b * heads + h) * tokens + t) * dv..][..dv];
                to.iter_mut().zip(out).for_each(|(to, x)| *to = x / divisor);
            }
            p.split(params, &state, [&mut found.ht, &mut found.zt]);
        }
    }
    found
}

/// scale · Sᵀ q.
pub(super) fn read(scale: f64, q: &[f64], state: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; state.len() / q.len()];
    for (row, q) in state.chunks(out.len()).zip(q) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += scale * q * x);
    }
    out
}
