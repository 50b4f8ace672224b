//! Gates and betas of linear attention.

use crate::LinearGateActivation;

/// What gates or betas are made of: x [batch, heads, tokens, width], a_log, one per head, dt_bias, one per head and channel.
#[derive(Clone, Copy, Debug)]
pub struct LinearGateProblem<'a> {
    /// What a model computes.
    pub x: &'a [f32],
    /// Its shape.
    pub shape: [usize; 4],
    /// Logarithms of rates, with softplus.
    pub a_log: Option<&'a [f32]>,
    /// What is added to x.
    pub dt_bias: Option<&'a [f32]>,
}

/// Gradients of x, a_log and dt_bias.
#[derive(Clone, Debug)]
pub struct LinearGateGradientsReference {
    /// Of x.
    pub dx: Vec<f64>,
    /// Of a_log.
    pub da_log: Vec<f64>,
    /// Of dt_bias.
    pub ddt_bias: Vec<f64>,
}

impl LinearGateProblem<'_> {
    /// Element i, its derivative by x, and which of a_log and of dt_bias it has to do with.
    fn element(&self, activation: LinearGateActivation, i: usize) -> (f64, f64, [usize; 2]) {
        let [_, heads, tokens, width] = self.shape;
        let head = i / width / tokens % heads;
        let places = [head, head * width + i % width];
        let of = |values: Option<&[f32]>, at: usize| values.map_or(0.0, |values| f64::from(values[at]));
        let x = f64::from(self.x[i]) + of(self.dt_bias, places[1]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (y, slope) = match activation {
            LinearGateActivation::Softplus => {
                let rate = of(self.a_log, head).exp();
                (-rate * (x.max(0.0) + (-x.abs()).exp().ln_1p()), -rate * sigmoid(x))
            }
            LinearGateActivation::Sigmoid { factor } => {
                let factor = f64::from(factor);
                (factor * sigmoid(x), factor * sigmoid(x) * sigmoid(-x))
            }
        };
        (y, slope, places)
    }
}

/// Gates or betas.
pub fn linear_gate(activation: LinearGateActivation, problem: &LinearGateProblem) -> Vec<f64> {
    (0..problem.x.len()).map(|i| problem.element(activation, i).0).collect()
}

/// Their gradients, from `dy`.
pub fn linear_gate_backward(
    activation: LinearGateActivation,
    problem: &LinearGateProblem,
    dy: &[f32],
) -> LinearGateGradientsReference {
    let [_, heads, _, width] = problem.shape;
    let (mut dx, mut da_log, mut ddt_bias) = (vec![], vec![0.0; heads], vec![0.0; heads * width]);
    for (i, &dy) in dy.iter().enumerate() {
        let (y, slope, [head, channel]) = problem.element(activation, i);
        dx.push(f64::from(dy) * slope);
        da_log[head] += f64::from(dy) * y;
        ddt_bias[channel] += f64::from(dy) * slope;
    }
    LinearGateGradientsReference { dx, da_log, ddt_bias }
}
