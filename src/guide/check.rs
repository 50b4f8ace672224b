// For the examples of the guides: inputs, and the float64 reference beside them.

pub use pollster::block_on;
use wgpu_attention::catalogue::{Tolerance, normal};
pub use wgpu_attention::reference::At;
use wgpu_attention::reference::{FlashProblem, flash};
pub use wgpu_attention::score_reduction::*;
pub use wgpu_attention::*;

pub const HEADS: usize = 2;
pub const N: usize = 150;
pub const D: usize = 16;

pub fn gpu() -> Gpu {
    block_on(Gpu::request()).unwrap()
}

pub fn up(gpu: &Gpu, shape: [usize; 4], values: &[f32]) -> Tensor {
    block_on(Tensor::upload(gpu, shape, DType::F32, values)).unwrap()
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

/// Reduces the probabilities of random queries (4 heads) and keys (2), and fails if the values are not the reference's.
pub fn reduce(gpu: &Gpu, params: ScoreReductionParams, segments: Option<&[u32]>) -> ReducedScores {
    let shapes = [[1, 4, N, D], [1, 2, N, D], [1, 2, N, D]];
    let all = [1, 2, 3].map(|i| normal(i as u64, shapes[i - 1].iter().product(), 2.0, DType::F32));
    let up = |i: usize| block_on(Tensor::upload(gpu, shapes[i], DType::F32, &all[i])).unwrap();
    let [q, k, v] = [0, 1, 2].map(up);
    let attention = AttentionInputs::new(&q, &k, &v);
    let flash = FlashAttention::new(gpu, params.attention.clone()).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&attention)).unwrap();
    let of_keys = segments.map(|numbers| block_on(Tensor::upload_u32(gpu, numbers)).unwrap());
    let of_keys = of_keys.map(|numbers| numbers.view(Layout::heads_first(DType::U32, [1, 1, 1, N])).unwrap());
    let inputs = ScoreReductionInputs { attention, lse: &lse, segments: of_keys.as_ref() };
    let reduced = block_on(ScoreReduction::new(gpu, params.clone()).unwrap().forward(&inputs)).unwrap();
    if params.top_k.is_none() {
        let problem = FlashProblem::new(all.each_ref().map(|x| &x[..]), shapes);
        let lse = block_on(lse.read()).unwrap();
        let expected = wgpu_attention::reference::score_reduction(&params, &problem, &lse, segments.unwrap_or_default());
        let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: 64.0 };
        assert!(tolerance.compare(&block_on(reduced.values.read()).unwrap(), &expected).passed());
    }
    reduced
}

pub fn same(score: f64, _: At) -> f64 {
    score
}

pub fn all(_: At) -> bool {
    true
}
