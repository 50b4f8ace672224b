//! Gates and betas from what models compute.

mod common;

use common::{gpu, random, ratio, read, says, tensor};
use pollster::block_on;
use wgpu_attention::reference::{LinearGateProblem, linear_gate, linear_gate_backward};
use wgpu_attention::*;

const BATCH: usize = 2;
const HEADS: usize = 3;
const TOKENS: usize = 37;

/// Far from 0 on either side, among others.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let far = |(i, x): (usize, f32)| match i % 17 {
        3 => 40.0 * x,
        5 => -18.0 - x.abs(),
        _ => 2.0 * x,
    };
    random(seed, count).into_iter().enumerate().map(far).collect()
}

fn near(what: &str, found: &[f32], expected: &[f64], bound: f64) {
    let expected: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
    let off = ratio(found, &expected);
    assert!(off < bound, "{what}: {off}");
}

#[test]
fn the_reference_agrees() {
    let sigmoid = LinearGateActivation::Sigmoid { factor: 2.0 };
    for (activation, width, dtype) in [
        (LinearGateActivation::Softplus, 1, DType::F32),
        (LinearGateActivation::Softplus, 10, DType::F32),
        (LinearGateActivation::Softplus, 8, DType::F16),
        (sigmoid, 1, DType::F32),
        (sigmoid, 1, DType::Bf16),
    ] {
        let shape = [BATCH, HEADS, TOKENS, width];
        let x: Vec<f32> = values(1, shape.iter().product()).into_iter().map(|x| dtype.round(x)).collect();
        let dy = random(2, x.len());
        let softplus = activation == LinearGateActivation::Softplus;
        let [a_log, dt_bias] = [(3, HEADS), (4, HEADS * width)].map(|(seed, n)| softplus.then(|| random(seed, n)));
        let problem = LinearGateProblem { x: &x, shape, a_log: a_log.as_deref(), dt_bias: dt_bias.as_deref() };
        let uploaded = block_on(Tensor::upload(gpu(), shape, dtype, &x)).unwrap();
        let a_log = a_log.as_ref().map(|values| tensor([1, HEADS, 1, 1], values));
        let dt_bias = dt_bias.as_ref().map(|values| tensor([1, HEADS, 1, width], values));
        let inputs =
            LinearGateInputs { a_log: a_log.as_ref(), dt_bias: dt_bias.as_ref(), ..LinearGateInputs::new(&uploaded) };
        let gate = LinearGate::new(gpu(), activation).unwrap();
        let found = read(&block_on(gate.forward(&inputs)).unwrap());
        let expected = linear_gate(activation, &problem);
        near("out", &found, &expected, 1e-6);
        // Each to a few places, the smallest too, but for x + dt_bias, which is rounded; factors of those below 1e-30 may
        // have fewer in f32.
        for (found, expected) in found.iter().zip(&expected).filter(|(_, expected)| expected.abs() > 1e-30) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-5, "{activation:?}: {found} {expected}");
        }
        let gradient = linear_gate_backward(activation, &problem, &dy);
        let found = block_on(gate.backward(&inputs, &tensor(shape, &dy))).unwrap();
        near("dx", &read(&found.dx), &gradient.dx, if dtype == DType::F32 { 1e-6 } else { 4e-3 });
        assert_eq!((found.da_log.is_some(), found.ddt_bias.is_some()), (softplus, softplus));
        if let (Some(da_log), Some(ddt_bias)) = (found.da_log, found.ddt_bias) {
            near("da_log", &read(&da_log), &gradient.da_log, 1e-5);
            near("ddt_bias", &read(&ddt_bias), &gradient.ddt_bias, 1e-5);
        }
    }
}

/// Rows of no sequence count for nothing.
#[test]
fn sums_are_over_sequences() {
    let x = values(5, HEADS * TOKENS);
    let dy: Vec<f32> =
        random(6, x.len()).into_iter().enumerate().map(|(i, x)| if i % TOKENS < 30 { x } else { f32::NAN }).collect();
    let (uploaded, a_log) = (tensor([1, HEADS, TOKENS, 1], &x), tensor([1, HEADS, 1, 1], &[0.1, -0.5, 1.0]));
    let offsets = [0, 11, 11, 30];
    let inputs = LinearGateInputs {
        cu_seqlens: Some((&offsets).into()),
        ..LinearGateInputs::new(&uploaded).with_rates(&a_log, None)
    };
    let gate = LinearGate::new(gpu(), LinearGateActivation::Softplus).unwrap();
    let found = block_on(gate.backward(&inputs, &tensor([1, HEADS, TOKENS, 1], &dy))).unwrap();
    let dy: Vec<f32> = dy.into_iter().map(|x| if x.is_nan() { 0.0 } else { x }).collect();
    let rates = [0.1, -0.5, 1.0];
    let problem = LinearGateProblem { x: &x, shape: [1, HEADS, TOKENS, 1], a_log: Some(&rates), dt_bias: None };
    let expected = linear_gate_backward(LinearGateActivation::Softplus, &problem, &dy);
    near("da_log", &read(&found.da_log.unwrap()), &expected.da_log, 1e-5);
    assert!(found.ddt_bias.is_none());
}

#[test]
fn bad_input() {
    let x = tensor([1, HEADS, TOKENS, 1], &values(1, HEADS * TOKENS));
    let a_log = tensor([1, HEADS, 1, 1], &[0.0; HEADS]);
    let new = |activation| LinearGate::new(gpu(), activation);
    says(new(LinearGateActivation::Sigmoid { factor: 2.5 }), &["factor is 2.5", "within [0, 2]"]);
    says(new(LinearGateActivation::Sigmoid { factor: f32::NAN }), &["factor is NaN", "within [0, 2]"]);
    let (softplus, sigmoid) =
        (new(LinearGateActivation::Softplus).unwrap(), new(LinearGateActivation::Sigmoid { factor: 1.0 }).unwrap());
    let inputs = LinearGateInputs::new(&x);
    says(block_on(softplus.forward(&inputs)), &["a_log is unset", "set with softplus"]);
    says(block_on(sigmoid.forward(&inputs.with_rates(&a_log, None))), &["a_log is set", "only there"]);
    let wide = tensor([1, HEADS, 1, 4], &[0.0; 4 * HEADS]);
    says(
        block_on(softplus.forward(&inputs.with_rates(&a_log, Some(&wide)))),
        &["dt_bias.shape is [1, 3, 1, 4]", "[1, 3, 1, 1]"],
    );
    says(block_on(softplus.forward(&inputs.with_rates(&wide, None))), &["a_log.shape is [1, 3, 1, 4]"]);
    let lengths = [38];
    let long = LinearGateInputs { seqlens: Some((&lengths).into()), ..inputs.with_rates(&a_log, None) };
    says(block_on(softplus.forward(&long)), &["seqlens[0] is 38", "at most 37"]);
    // What is no number is none in the gates either, which attention reports.
    let none = tensor([1, 1, 2, 1], &[f32::NAN, 1.0]);
    let rate = tensor([1, 1, 1, 1], &[0.0]);
    let g = block_on(softplus.forward(&LinearGateInputs::new(&none).with_rates(&rate, None))).unwrap();
    let values = read(&g);
    assert!(values[0].is_nan() && values[1] < 0.0);
    let attention = LinearAttention::new(gpu(), LinearParams::default()).unwrap();
    let o = block_on(attention.forward(&LinearInputs::new(&none, &rows(), &rows()).with_gates(&g))).unwrap();
    says(block_on(o.read()), &["g[0][0][0]", "NaN"]);
}

fn rows() -> Tensor {
    tensor([1, 1, 2, 1], &[1.0, 2.0])
}
