//! Rotary embeddings against their float64 reference.

mod common;

use common::{gpu, random, read, run_all, says, tensor};
use pollster::block_on;
use wgpu_attention::catalogue::{random_rotary_cases, rotary_cases};
use wgpu_attention::{Positions, Rotary, RotaryParams, Tensor};

#[test]
fn catalogue() {
    run_all(&rotary_cases());
}

#[test]
fn random_cases() {
    run_all(&random_rotary_cases(20, 1));
}

/// What turns forward turns back; scores of queries and keys depend on their distance only.
#[test]
fn turns() {
    for interleaved in [false, true] {
        let rotary = Rotary::new(gpu(), RotaryParams { interleaved, ..Default::default() }).unwrap();
        let values = random(1, 2 * 3 * 8 * 16);
        let x = tensor([2, 3, 8, 16], &values);
        let there = block_on(rotary.forward(&x, Positions::Counted { start: 70_000, step: 3 })).unwrap();
        let back = block_on(rotary.backward(&there, Positions::Counted { start: 70_000, step: 3 })).unwrap();
        assert!(read(&back).iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5));
        let row = tensor([1, 1, 1, 16], &values[..16]);
        let other = tensor([1, 1, 1, 16], &values[16..32]);
        let at =
            |x: &Tensor, start: u32| read(&block_on(rotary.forward(x, Positions::Counted { start, step: 1 })).unwrap());
        let score = |p: u32, q: u32| -> f32 { at(&row, p).iter().zip(at(&other, q)).map(|(a, b)| a * b).sum() };
        assert!((score(5, 0) - score(100_005, 100_000)).abs() < 1e-4);
    }
}

#[test]
fn bad_input() {
    let x = tensor([1, 2, 3, 8], &[0.0; 48]);
    for theta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let params = RotaryParams { theta, ..Default::default() };
        says(Rotary::new(gpu(), params), &["theta is", &theta.to_string(), "finite and above 0"]);
    }
    for dim in [0, 3] {
        let refused = Rotary::new(gpu(), RotaryParams { dim: Some(dim), ..Default::default() }).map(|_| ());
        says(refused, &["dim is", &dim.to_string(), "even, at least 2"]);
    }
    let rotary = Rotary::new(gpu(), RotaryParams { dim: Some(10), ..Default::default() }).unwrap();
    says(block_on(rotary.forward(&x, Positions::default())), &["dim is 10", "even, within 2..=8"]);
    let rotary = Rotary::new(gpu(), RotaryParams::default()).unwrap();
    let odd = tensor([1, 1, 1, 3], &[0.0; 3]);
    says(block_on(rotary.forward(&odd, Positions::default())), &["dim is 3", "even"]);
    let positions = block_on(Tensor::upload_u32(gpu(), &[0, 1])).unwrap();
    let words = ["positions.shape is [1, 1, 1, 2]", "[1 or 1, 2 or 1, 1, 3]"];
    says(block_on(rotary.forward(&x, Positions::Given(&positions))), &words);
    let floats = tensor([1, 1, 1, 3], &[0.0; 3]);
    says(block_on(rotary.forward(&x, Positions::Given(&floats))), &["positions.dtype is f32", "u32"]);
}
