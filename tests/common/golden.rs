//! Golden files of SeerAttention's gates.
#![allow(dead_code)] // each test program uses its part

use super::{heads_first, read, tensor};
use safetensors::SafeTensors;
use wgpu_attention::Tensor;

pub fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("tests/data/{name}.safetensors")).expect("the repository has the file")
}

pub fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(name).expect(name).data())
}

/// [batch, tokens, heads, width] of a file as a tensor.
pub fn tokens(file: &SafeTensors, name: &str) -> Tensor {
    let [b, n, h, d] = file.tensor(name).expect(name).shape()[..] else { panic!("tokens of four dimensions") };
    tensor([b, h, n, d], &heads_first(&floats(file, name), [b, h, n, d]))
}

/// [heads, features, width] of a file as a tensor.
pub fn weights(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    let (heads, width) = (shape[0], shape[shape.len() - 1]);
    tensor([1, heads, shape[1..shape.len() - 1].iter().product(), width], &floats(file, name))
}

pub fn near(found: &Tensor, expected: &[f32]) {
    let found = read(found);
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        // What is masked is −∞ here and a large negative number there.
        assert!((a - b).abs() < 1e-5 || (*a == f32::NEG_INFINITY && *b < -1e29), "{i}: {a}, not {b}");
    }
}

pub fn zeros(shape: [usize; 4]) -> Tensor {
    tensor(shape, &vec![0.0; shape.iter().product()])
}
