//! Golden files of patterns.
#![allow(dead_code)] // each test program uses its part

use super::golden::floats;
use super::tensor;
use safetensors::SafeTensors;
use wgpu_attention::Tensor;

/// A tensor of a file; one of three dimensions has one batch entry.
pub fn of_file(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    let shape: [usize; 4] = [vec![1; 4 - shape.len()], shape].concat().try_into().expect("four dimensions at most");
    tensor(shape, &floats(file, name))
}

pub fn integers(file: &SafeTensors, name: &str) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data())
}

/// Within 2e-5 of the largest value, gradients (whose names begin with a d) within 5e-5.
#[track_caller]
pub fn near(name: &str, found: &[f32], known: &[f32]) {
    assert_eq!(found.len(), known.len(), "{name}");
    let largest = known.iter().fold(1f32, |most, x| most.max(x.abs()));
    let bound = largest * if name.starts_with('d') { 5e-5 } else { 2e-5 };
    for (i, (a, b)) in found.iter().zip(known).enumerate() {
        assert!((a - b).abs() <= bound, "{name}[{i}]: {a}, not {b}");
    }
}
