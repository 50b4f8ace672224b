//! Score reduction against its float64 reference.

mod common;

use common::{bits, gpu, random, read, run_all, says, tensor};
use pollster::block_on;
use wgpu_attention::catalogue::{random_score_reduction_cases, score_reduction_cases};
use wgpu_attention::score_reduction::{
    KeyGroups, QueryGroups, ReducedScores, Reduction, ScoreReduction, ScoreReductionInputs, ScoreReductionParams,
};
use wgpu_attention::{AttentionInputs, FlashAttention, FlashParams, Hook, Result, Tensor};

#[test]
fn catalogue() {
    run_all(&score_reduction_cases());
}

#[test]
fn random_cases() {
    run_all(&random_score_reduction_cases(16, 1));
}

fn zeros(shape: [usize; 4]) -> Tensor {
    tensor(shape, &vec![0.0; shape.iter().product()])
}

fn reduce(params: ScoreReductionParams, [q, k, lse]: [&Tensor; 3], segments: Option<&Tensor>) -> Result<ReducedScores> {
    let inputs = ScoreReductionInputs { attention: AttentionInputs::new(q, k, k), lse, segments };
    block_on(ScoreReduction::new(gpu(), params)?.forward(&inputs))
}

#[test]
fn bad_input() {
    let [q, k, lse] = [zeros([1, 2, 5, 8]), zeros([1, 2, 9, 8]), zeros([1, 2, 5, 1])];
    let default = ScoreReductionParams::default;
    let refused = |params, words: &[&str]| says(reduce(params, [&q, &k, &lse], None), words);
    refused(
        ScoreReductionParams { queries: QueryGroups::Blocks(48), ..default() },
        &["queries: Blocks is 48", "a power of two"],
    );
    refused(ScoreReductionParams { keys: KeyGroups::Blocks(0), ..default() }, &["keys: Blocks is 0", "a power of two"]);
    refused(ScoreReductionParams { keys: KeyGroups::Segments(0), ..default() }, &["keys: Segments is 0", "at least 1"]);
    refused(ScoreReductionParams { keys: KeyGroups::Segments(3), ..default() }, &["segments is unset", "set"]);
    for above in [-0.5, 1.5, f32::NAN] {
        let reduction = Reduction::Count { above };
        let words = ["Count.above is", &above.to_string(), "within 0..=1"];
        refused(ScoreReductionParams { reduction, ..default() }, &words);
    }
    let keys = KeyGroups::Blocks(1);
    refused(ScoreReductionParams { keys, top_k: Some(0), ..default() }, &["top_k is 0", "at least 1"]);
    refused(ScoreReductionParams { keys, top_k: Some(10), ..default() }, &["top_k is 10", "at most 9"]);
    let reduction = Reduction::ArgMax;
    refused(ScoreReductionParams { reduction, top_k: Some(1), ..default() }, &["top_k is 1", "unset with ArgMax"]);
    let attention = FlashParams { scale: Some(f32::NAN), ..FlashParams::default() };
    refused(ScoreReductionParams { attention, ..default() }, &["scale is NaN", "finite"]);
    says(reduce(default(), [&q, &k, &zeros([1, 2, 4, 1])], None), &["lse.shape is [1, 2, 4, 1]", "[1, 2, 5, 1]"]);
    let segments = block_on(Tensor::upload_u32(gpu(), &[0; 9])).unwrap();
    says(reduce(default(), [&q, &k, &lse], Some(&segments)), &["segments is set", "unset"]);
    let params = ScoreReductionParams { keys: KeyGroups::Segments(2), ..default() };
    let short = block_on(Tensor::upload_u32(gpu(), &[0; 8])).unwrap();
    says(
        reduce(params.clone(), [&q, &k, &lse], Some(&short)),
        &["segments.shape is [1, 1, 1, 8]", "[1 or 1, 1, 1, 9]"],
    );
    says(reduce(params.clone(), [&q, &k, &lse], Some(&zeros([1, 1, 1, 9]))), &["segments.dtype is f32", "u32"]);
    // Numbers that only the GPU sees.
    let wrong = block_on(Tensor::upload_u32(gpu(), &[0, 1, 0, 1, 2, 1, 7, 0, 0])).unwrap();
    let reduced = reduce(params, [&q, &k, &lse], Some(&wrong)).unwrap();
    says(block_on(reduced.values.read()), &["segments[0][4] is 2", "below 2"]);
}

/// NaN where a row has seen one, and nowhere else; the same bits whatever stands beside in the batch.
#[test]
fn nan_and_batch() {
    let shape = [2, 2, 130, 16];
    let [mut q, k] = [1, 2].map(|seed| random(seed, shape.iter().product()));
    q[70 * 16] = f32::NAN;
    let [q, k] = [&q, &k].map(|x| tensor(shape, x));
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&AttentionInputs::new(&q, &k, &k))).unwrap();
    for reduction in [Reduction::Max, Reduction::Sum] {
        let params = || ScoreReductionParams { reduction, ..ScoreReductionParams::default() };
        let found = read(&reduce(params(), [&q, &k, &lse], None).unwrap().values);
        // The second of three blocks of queries of the first head.
        assert!(found.iter().enumerate().all(|(i, x)| x.is_nan() == (3..6).contains(&i)), "{found:?}");
        let second = |x: &Tensor| {
            let values = read(x);
            let [_, h, n, d] = x.shape();
            tensor([1, h, n, d], &values[values.len() / 2..])
        };
        let alone = read(&reduce(params(), [&q, &k, &lse].map(second).each_ref(), None).unwrap().values);
        assert_eq!(bits(&alone), bits(&found[found.len() / 2..]));
    }
}

/// Of equal values the first count, however many there are; what is not seen never does.
#[test]
fn the_largest_of_equal_ones() {
    let (n, k) = (300, 140);
    let [q, keys] = [1, 2].map(|seed| tensor([1, 1, n, 8], &random(seed, n * 8)));
    let attention = FlashParams { scale: Some(0.0), ..common::BOTTOM_RIGHT };
    let flash = FlashAttention::new(gpu(), attention.clone()).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&AttentionInputs::new(&q, &keys, &keys))).unwrap();
    let (queries, tokens) = (QueryGroups::Blocks(1), KeyGroups::Blocks(1));
    let params = ScoreReductionParams { attention, queries, keys: tokens, top_k: Some(k), ..Default::default() };
    let reduced = reduce(params.clone(), [&q, &keys, &lse], None).unwrap();
    let (values, indices) = (read(&reduced.values), block_on(reduced.indices.unwrap().read_u32()).unwrap());
    for query in 0..n {
        // All of its keys are equal: 1 / (query + 1) each.
        for place in 0..k {
            let (value, index) = (values[query * k + place], indices[query * k + place]);
            let seen = place <= query;
            assert_eq!(index, if seen { place as u32 } else { u32::MAX }, "query {query}");
            assert!((value - if seen { 1.0 / (query + 1) as f32 } else { 0.0 }).abs() < 1e-6);
        }
    }
    // One larger one behind many equal ones: it counts, and one of the equal ones less.
    let mut peaked = vec![0.0; n * 8];
    peaked[250 * 8] = 1.0;
    let (q, keys) = (tensor([1, 1, n, 8], &[1.0; 300 * 8]), tensor([1, 1, n, 8], &peaked));
    let attention = FlashParams::default();
    let flash = FlashAttention::new(gpu(), attention.clone()).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&AttentionInputs::new(&q, &keys, &keys))).unwrap();
    let reduced = reduce(ScoreReductionParams { attention, ..params }, [&q, &keys, &lse], None).unwrap();
    let indices = block_on(reduced.indices.unwrap().read_u32()).unwrap();
    let expected: Vec<u32> = (0..k as u32 - 1).chain([250]).collect();
    assert!(indices.chunks(k).all(|row| row == expected));
}

/// Without a key all segments have nothing: that is written, too.
#[test]
fn segments_of_no_keys() {
    let [q, k, lse] = [zeros([2, 2, 5, 8]), zeros([2, 2, 0, 8]), tensor([2, 2, 5, 1], &[f32::NEG_INFINITY; 20])];
    let segments = block_on(Tensor::upload_u32(gpu(), &[])).unwrap();
    let params = ScoreReductionParams { keys: KeyGroups::Segments(3), ..Default::default() };
    let inputs =
        ScoreReductionInputs { attention: AttentionInputs::new(&q, &k, &k), lse: &lse, segments: Some(&segments) };
    let to = ReducedScores { values: tensor([2, 2, 1, 3], &[7.0; 12]), indices: None };
    let reduction = ScoreReduction::new(gpu(), params).unwrap();
    let prepared = block_on(reduction.prepare((&inputs, &to))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    prepared.encode(&mut encoder, (&inputs, &to)).unwrap();
    gpu().queue().submit([encoder.finish()]);
    assert_eq!(read(&to.values), [0.0; 12]);
    block_on(prepared.check()).unwrap();
}

/// A reduction has no gradient, so its hooks need none.
#[test]
fn hooks_without_gradient() {
    let [q, k, lse] = [zeros([1, 1, 4, 8]), zeros([1, 1, 6, 8]), zeros([1, 1, 4, 1])];
    let source = "fn ahead(score: f32, at: Position) -> f32 { return score - f32(at.key) - 1.0; }";
    let attention = FlashParams { score_mod: vec![Hook::new("ahead", source)], ..FlashParams::default() };
    let params = ScoreReductionParams { attention, keys: KeyGroups::All, ..ScoreReductionParams::default() };
    let found = reduce(params, [&q, &k, &lse], None).unwrap();
    assert!((read(&found.values)[0] - (-1.0f32).exp()).abs() < 1e-6);
}
