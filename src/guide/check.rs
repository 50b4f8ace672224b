// For the examples of the guides: inputs, and the float64 reference beside them.

pub use pollster::block_on;
use wgpu_attention::catalogue::{Tolerance, normal};
pub use wgpu_attention::reference::At;
use wgpu_attention::reference::{FlashProblem, flash};
pub use wgpu_attention::*;

pub const HEADS: usize = 2;
pub const N: usize = 150;
pub const D: usize = 16;

pub fn gpu() -> Gpu {
    block_on(Gpu::request()).unwrap()
}

fn values(seed: u64) -> Vec<f32> {
    normal(seed, HEADS * N * D, 2.0, DType::F32)
}

/// Runs attention with `params`, and fails if it is not what the reference says of `known`, `score_mod` and `mask_mod`.
pub fn check(
    gpu: &Gpu,
    params: FlashParams,
    known: FlashParams,
    score_mod: &dyn Fn(f64, At) -> f64,
    mask_mod: &dyn Fn(At) -> bool,
) {
    let all = [values(1), values(2), values(3)];
    let [q, k, v] = all.each_ref().map(|x| block_on(Tensor::upload(gpu, [1, HEADS, N, D], DType::F32, x)).unwrap());
    let out = block_on(async { FlashAttention::new(gpu, params)?.forward(&q, &k, &v).await?.read().await }).unwrap();
    let problem = FlashProblem {
        score_mod: Some(score_mod),
        mask_mod: Some(mask_mod),
        ..FlashProblem::new(all.each_ref().map(|x| &x[..]), [[1, HEADS, N, D]; 3])
    };
    let expected = flash(&known, &problem);
    assert!(Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: expected.magnitude }.compare(&out, &expected.out).passed());
}

pub fn same(score: f64, _: At) -> f64 {
    score
}

pub fn all(_: At) -> bool {
    true
}
