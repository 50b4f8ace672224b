//! What tokens do to a state of linear attention.

use super::{LinearGradientsReference, LinearProblem, linear, linear_backward};
use crate::{LinearParams, LinearRule};

/// ΔS [sequences, heads, head_dim, value_dim] and M [.., head_dim, head_dim], or with the linear rule its diagonal.
pub fn linear_summary(params: &LinearParams, problem: &LinearProblem) -> [Vec<f64>; 2] {
    let (wide, [width, more]) = (Wide::of(params, problem), Wide::widths(params, problem));
    let state = linear(params, &wide.problem(problem)).ht;
    let part =
        |from: usize, to: usize| state.chunks(width + more).flat_map(move |row| row[from..to].to_vec()).collect();
    [part(0, width), part(width, width + more)]
}

/// Gradients of k, v, gates, betas and slopes from those of both; v's has more columns, which mean nothing.
pub fn linear_summary_backward(
    params: &LinearParams,
    problem: &LinearProblem,
    [dadded, dtransition]: [&[f32]; 2],
) -> LinearGradientsReference {
    let (wide, [width, more]) = (Wide::of(params, problem), Wide::widths(params, problem));
    let rows = dadded.chunks(width.max(1)).zip(dtransition.chunks(more.max(1)));
    let dht: Vec<f32> = rows.flat_map(|(a, b)| [a, b].concat()).collect();
    let [batch, _, tokens, _] = problem.shapes[0];
    let dout = vec![0.0; batch * problem.heads() * tokens * (width + more)];
    let mut found = linear_backward(params, &wide.problem(problem), &dout, [Some(&dht), None]);
    let dv = &mut found.tokens[2];
    *dv = dv.chunks(width + more).flat_map(|row| row[..width].to_vec()).collect();
    found
}

/// Values with more columns, of 0, and states with M's, the identity.
struct Wide {
    v: Vec<f32>,
    h0: Vec<f32>,
    width: usize,
}

impl Wide {
    fn widths(params: &LinearParams, problem: &LinearProblem) -> [usize; 2] {
        let features = params.feature_map.features(problem.shapes[0][3]);
        [problem.shapes[2][3], if params.rule == LinearRule::Delta { features } else { 1 }]
    }

    fn of(params: &LinearParams, problem: &LinearProblem) -> Self {
        let [width, more] = Self::widths(params, problem);
        let features = params.feature_map.features(problem.shapes[0][3]);
        let wider = |row: &[f32]| [row, &vec![0.0; more]].concat();
        let v = problem.tokens[2].chunks(width.max(1)).flat_map(wider).collect();
        let unit = |row: usize, column: usize| f32::from(u8::from(column == width + if more == 1 { 0 } else { row }));
        let states = problem.sequences.len() * problem.heads();
        let rows = (0..states).flat_map(|_| 0..features);
        let h0 = rows.flat_map(|row| (0..width + more).map(move |column| unit(row, column))).collect();
        Self { v, h0, width: width + more }
    }

    fn problem<'a>(&'a self, problem: &LinearProblem<'a>) -> LinearProblem<'a> {
        let mut wide = LinearProblem { h0: Some(&self.h0), z0: None, ..*problem };
        wide.tokens[2] = &self.v;
        wide.shapes[2][3] = self.width;
        wide
    }
}
