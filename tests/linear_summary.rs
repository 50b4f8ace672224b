//! What spans of tokens do to a state.

mod common;

use common::{gpu, random, ratio, read, says, tensor};
use pollster::block_on;
use wgpu_attention::*;

/// Tokens in the order [head, token].
struct Problem {
    params: LinearParams,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
}

const HEADS: usize = 2;
const TOKENS: usize = 150;
const DIM: usize = 12;
const VALUE_DIM: usize = 10;

impl Problem {
    fn of(rule: LinearRule, gate_dim: usize) -> Self {
        let mut k = random(1, HEADS * TOKENS * DIM);
        for key in k.chunks_exact_mut(DIM) {
            let length = key.iter().map(|x| x * x).sum::<f32>().sqrt();
            key.iter_mut().for_each(|x| *x /= length);
        }
        let gates = random(3, HEADS * TOKENS * gate_dim).into_iter().map(|x| -0.05 * x.abs()).collect();
        let betas = random(4, HEADS * TOKENS).into_iter().map(|x| (1.0 + 0.4 * x).clamp(0.0, 2.0)).collect();
        Self {
            params: LinearParams { rule, scale: Some(1.0), ..LinearParams::default() },
            k,
            v: random(2, HEADS * TOKENS * VALUE_DIM),
            g: (gate_dim > 0).then_some(gates),
            beta: (rule == LinearRule::Delta).then_some(betas),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        [LinearRule::Linear, LinearRule::Delta]
            .into_iter()
            .flat_map(|rule| [0, 1, DIM].map(|gate_dim| Self::of(rule, gate_dim)))
    }

    /// Some of its tokens: k, v, g and beta.
    fn tokens(&self, range: std::ops::Range<usize>) -> (Tensor, Tensor, Option<Tensor>, Option<Tensor>) {
        let cut = |values: &[f32]| {
            let width = values.len() / HEADS / TOKENS;
            common::tokens(values, [1, HEADS, TOKENS, width], range.clone())
        };
        (cut(&self.k), cut(&self.v), self.g.as_deref().map(cut), self.beta.as_deref().map(cut))
    }
}

fn inputs<'a>((k, v, g, beta): &'a (Tensor, Tensor, Option<Tensor>, Option<Tensor>)) -> LinearInputs<'a> {
    LinearInputs { g: g.as_ref(), beta: beta.as_ref(), ..LinearInputs::new(k, k, v) }
}

/// M · S + ΔS, in f64.
fn after(summary: &LinearSummary, state: &[f64], columns: usize) -> Vec<f64> {
    let (m, added) = (read(&summary.transition), read(&summary.added));
    let diagonal = summary.transition.shape()[3] == 1;
    let at = |head: usize, row: usize, d: usize| match diagonal {
        true => f64::from(u8::from(row == d)) * f64::from(m[head * DIM + row]),
        false => f64::from(m[(head * DIM + row) * DIM + d]),
    };
    let rows = (0..HEADS).flat_map(|head| (0..DIM).map(move |row| (head, row)));
    let cells = rows.flat_map(|(head, row)| (0..columns).map(move |column| (head, row, column)));
    cells
        .map(|(head, row, column)| {
            let kept: f64 = (0..DIM).map(|d| at(head, row, d) * state[(head * DIM + d) * columns + column]).sum();
            kept + f64::from(added[(head * DIM + row) * columns + column])
        })
        .collect()
}

/// Three spans, one after another, as all of their tokens; by every algorithm and both ways.
#[test]
fn summaries_compose() {
    for (problem, reverse) in Problem::all().zip([false, true].into_iter().cycle()) {
        let h0 = random(5, HEADS * DIM * VALUE_DIM);
        let state = tensor([1, HEADS, DIM, VALUE_DIM], &h0);
        let params = LinearParams { reverse, ..problem.params.clone() };
        let all = problem.tokens(0..TOKENS);
        let attention = LinearAttention::new(gpu(), params.clone()).unwrap();
        let (_, last) = block_on(attention.forward_with_state(&inputs(&all).with_state(&state))).unwrap();
        for algorithm in [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass] {
            let attention =
                LinearAttention::new(gpu(), LinearParams { algorithm: Some(algorithm), ..params.clone() }).unwrap();
            let mut spans = [0..7, 7..107, 107..TOKENS];
            if reverse {
                spans.reverse();
            }
            let mut state: Vec<f64> = h0.iter().map(|&x| x.into()).collect();
            for span in spans {
                let part = problem.tokens(span);
                let summary = block_on(attention.summary(&inputs(&part))).unwrap();
                let delta = params.rule == LinearRule::Delta;
                assert_eq!(summary.transition.shape(), [1, HEADS, DIM, if delta { DIM } else { 1 }]);
                state = after(&summary, &state, VALUE_DIM);
            }
            let state: Vec<f32> = state.into_iter().map(|x| x as f32).collect();
            let off = ratio(&state, &read(&last));
            assert!(off < 2e-6, "{params:?} {algorithm:?}: {off}");
        }
    }
}

/// As those of attention whose values and states have M's columns as well, and whose output nothing follows from.
#[test]
fn gradients_are_those_of_wider_states() {
    for problem in Problem::all() {
        let (rule, columns) = (problem.params.rule, if problem.params.rule == LinearRule::Delta { DIM } else { 1 });
        let all = problem.tokens(0..TOKENS);
        let attention = LinearAttention::new(gpu(), problem.params.clone()).unwrap();
        let [added, transition] =
            [(6, VALUE_DIM), (7, columns)].map(|(seed, columns)| (columns, random(seed, HEADS * DIM * columns)));
        let of = |(columns, values): &(usize, Vec<f32>)| tensor([1, HEADS, DIM, *columns], values);
        let gradient = LinearSummary { added: of(&added), transition: of(&transition) };
        let found = block_on(attention.summary_backward(&inputs(&all), &gradient)).unwrap();
        // Beside one another.
        let wide = VALUE_DIM + columns;
        let join = |a: &[f32], b: &[f32]| -> Vec<f32> {
            a.chunks(VALUE_DIM).zip(b.chunks(columns)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let v = tensor([1, HEADS, TOKENS, wide], &join(&problem.v, &vec![0.0; HEADS * TOKENS * columns]));
        let unit: Vec<f32> = (0..HEADS * DIM * columns)
            .map(|i| f32::from(u8::from(columns == 1 || i / columns % DIM == i % columns)))
            .collect();
        let h0 = tensor([1, HEADS, DIM, wide], &join(&vec![0.0; HEADS * DIM * VALUE_DIM], &unit));
        let dht = tensor([1, HEADS, DIM, wide], &join(&added.1, &transition.1));
        let dout = tensor([1, HEADS, TOKENS, wide], &vec![0.0; HEADS * TOKENS * wide]);
        let (k, _, g, beta) = &all;
        let wider = LinearInputs { g: g.as_ref(), beta: beta.as_ref(), ..LinearInputs::new(k, k, &v) };
        let expected = block_on(attention.backward(&wider.with_state(&h0), &dout, Some(&dht))).unwrap();
        let near = |what: &str, found: &[f32], expected: &[f32]| {
            let off = ratio(found, expected);
            assert!(off < 1e-5, "{rule:?} {what}: {off}");
        };
        near("dk", &read(&found.dk), &read(&expected.dk));
        let dv: Vec<f32> = read(&expected.dv).chunks(wide).flat_map(|row| row[..VALUE_DIM].to_vec()).collect();
        near("dv", &read(&found.dv), &dv);
        for (what, found, expected) in [("dg", &found.dg, &expected.dg), ("dbeta", &found.dbeta, &expected.dbeta)] {
            assert_eq!(found.is_some(), expected.is_some());
            if let (Some(found), Some(expected)) = (found, expected) {
                near(what, &read(found), &read(expected));
            }
        }
    }
}

/// Grouped values, features, slopes, packed sequences; what a summary has not.
#[test]
fn summaries_of_every_kind() {
    let problem = Problem::of(LinearRule::Linear, 0);
    let params =
        LinearParams { feature_map: FeatureMap::Elu1, slopes: Some(vec![0.1, 0.02]), ..problem.params.clone() };
    let (k, v, ..) = problem.tokens(0..TOKENS);
    let one = k.view(k.layout().clone().narrow(1, 0..1).unwrap()).unwrap();
    let attention = LinearAttention::new(gpu(), params.clone()).unwrap();
    let offsets = [0, 70, TOKENS];
    let inputs = LinearInputs { cu_seqlens: Some((&offsets).into()), ..LinearInputs::new(&one, &one, &v) };
    let summary = block_on(attention.summary(&inputs)).unwrap();
    let (_, last) = block_on(attention.forward_with_state(&inputs)).unwrap();
    let off = ratio(&read(&summary.added), &read(&last));
    assert!(off < 2e-6, "{off}");
    let left = read(&summary.transition);
    assert_eq!(summary.transition.shape(), [2, HEADS, DIM, 1]);
    for (i, left) in left.iter().enumerate() {
        let expected = (-[70.0, 80.0][i / DIM / HEADS] * [0.1f32, 0.02][i / DIM % HEADS]).exp();
        assert!((left / expected - 1.0).abs() < 1e-5, "{left} {expected}");
    }
    let found = block_on(attention.summary_backward(&inputs, &summary)).unwrap();
    assert_eq!((found.dk.shape(), found.dv.shape()), ([1, 1, TOKENS, DIM], v.shape()));
    assert!(found.dslopes.is_some_and(|slopes| read(&slopes).iter().all(|x| x.is_finite() && *x != 0.0)));
    let of = |params| block_on(LinearAttention::new(gpu(), params).unwrap().summary(&inputs));
    says(of(LinearParams { normalize: Some(1e-6), ..params.clone() }), &["normalize is 0.000001", "a column of ones"]);
    let open = LinearParams { causal: false, slopes: None, ..params };
    says(of(open), &["causal is false", "true for a summary"]);
    let state = tensor([2, HEADS, DIM, VALUE_DIM], &vec![0.0; 2 * HEADS * DIM * VALUE_DIM]);
    says(block_on(attention.summary(&inputs.with_state(&state))), &["h0 is set", "holds for every state"]);
    let wrong = tensor([1, HEADS, TOKENS, 1], &vec![0.5; HEADS * TOKENS]);
    let plain = LinearAttention::new(gpu(), LinearParams { slopes: None, ..attention.params().clone() }).unwrap();
    let positive = block_on(plain.summary(&inputs.with_gates(&wrong))).unwrap();
    says(block_on(positive.added.read()), &["g[0][0][0]", "at most 0"]);
}
