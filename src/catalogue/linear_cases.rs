//! The catalogue of linear attention.

use super::LinearCase;
use crate::{DType, FeatureMap, LinearAlgorithm, LinearParams, LinearRule};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Every algorithm, and the one that planning chooses.
const ALGORITHMS: [Option<LinearAlgorithm>; 4] =
    [None, Some(LinearAlgorithm::Recurrent), Some(LinearAlgorithm::OnePass), Some(LinearAlgorithm::ThreePass)];

/// Lengths around the tokens between two sums, gates of every kind, hard ones among slow ones, both directions, states, grouped heads,
/// packed sequences, widths that do and do not divide, types, strides.
pub fn linear_cases() -> Vec<LinearCase> {
    let base = LinearCase::default();
    let slopes = |heads: usize| LinearParams::lightning_slopes(heads, 3, 12).expect("a layer of twelve");
    let mut cases = vec![];
    for (i, tokens) in [1, 7, 8, 9, 15, 63, 64, 65, 127, 500, 1000].into_iter().enumerate() {
        let params = LinearParams { slopes: (i % 3 == 1).then(|| slopes(2)), ..LinearParams::default() };
        let gates = (i % 3 == 2).then_some((1.0, 20));
        cases.push(LinearCase { tokens, params, gates, h0: i % 2 == 0, in_place: i % 4 == 1, ..base.clone() });
    }
    for (i, dims) in
        [(64, 64), (128, 128), (256, 256), (16, 273 - 17), (1, 1), (7, 20), (33, 18)].into_iter().enumerate()
    {
        cases.push(LinearCase { dims, gates: Some((1.5, 9)), h0: i % 2 == 0, strided: i % 2 == 1, ..base.clone() });
    }
    for (causal, reverse) in [(true, true), (false, false), (false, true)] {
        for h0 in [false, true] {
            let params = LinearParams { causal, reverse, scale: Some(1.0), ..LinearParams::default() };
            let gates = causal.then_some((1.0, 30));
            cases.push(LinearCase { batch: 2, params, gates, h0, ..base.clone() });
        }
    }
    for heads in [[6, 2, 2], [2, 2, 6], [1, 1, 4], [4, 1, 2]] {
        let most = heads.into_iter().max().expect("three");
        let params = LinearParams { slopes: Some(slopes(most)), ..LinearParams::default() };
        cases.push(LinearCase { batch: 2, heads, params, h0: true, ..base.clone() });
        cases.push(LinearCase { batch: 2, heads, gates: Some((1.0, 11)), in_place: true, ..base.clone() });
    }
    for packed in [false, true] {
        for reverse in [false, true] {
            let params = LinearParams { reverse, ..LinearParams::default() };
            let sequences = vec![30, 0, 65, 1, 64];
            let case = LinearCase { batch: 5, sequences, packed, params, h0: true, ..base.clone() };
            cases.push(LinearCase { gates: Some((1.0, 13)), on_gpu: reverse, ..case.clone() });
            cases.push(LinearCase { in_place: true, h0: false, strided: true, ..case });
        }
    }
    for (i, dtypes) in
        [[DType::F16; 2], [DType::Bf16; 2], [DType::Bf16, DType::F32], [DType::F32, DType::F16]].into_iter().enumerate()
    {
        cases.push(LinearCase { dtypes, gates: Some((1.0, 40)), strided: i % 2 == 0, dims: (30, 34), ..base.clone() });
    }
    cases.push(LinearCase { tokens: 0, h0: true, ..base.clone() });
    cases.push(LinearCase { batch: 0, ..base });
    for (i, case) in cases.iter_mut().enumerate() {
        case.params.algorithm = ALGORITHMS[i % 4];
    }
    for tokens in [1, 15, 63, 64, 65, 127, 500, 1000] {
        for algorithm in ALGORITHMS {
            let params = LinearParams { algorithm, ..LinearParams::default() };
            cases.push(LinearCase { tokens, params, gates: Some((1.0, 20)), h0: true, ..LinearCase::default() });
        }
    }
    for (tokens, dims, algorithm) in
        [(70, (64, 64), LinearAlgorithm::OnePass), (300, (20, 33), LinearAlgorithm::ThreePass)]
    {
        let params = LinearParams { algorithm: Some(algorithm), chunk: Some(32), ..LinearParams::default() };
        cases.push(LinearCase { tokens, dims, params, gates: Some((1.0, 20)), h0: true, ..LinearCase::default() });
    }
    for (i, algorithm) in ALGORITHMS.into_iter().enumerate() {
        let by_head = i % 2 == 1;
        let slopes = by_head.then(|| slopes(2));
        cases.push(LinearCase {
            heads: if by_head { [2, 1, 1] } else { [1, 2, 1] },
            params: LinearParams { algorithm, reverse: i > 1, slopes, ..LinearParams::default() },
            gates: (!by_head).then_some((1.0, 13)),
            sequences: vec![9, 0, 70],
            packed: true,
            spare: 40,
            h0: true,
            ..LinearCase::default()
        });
    }
    cases.extend(delta_cases());
    cases.extend(feature_cases());
    cases.extend(state_cases());
    for (seed, case) in (9700..).step_by(10).zip(&mut cases) {
        case.seed = seed;
    }
    cases
}

/// The delta rule and gates of channels: lengths, widths, heads, directions, states, packed sequences, types, strides.
fn delta_cases() -> Vec<LinearCase> {
    let delta = LinearParams { rule: LinearRule::Delta, ..LinearParams::default() };
    let base = LinearCase { params: delta.clone(), betas: Some(2), h0: true, ..LinearCase::default() };
    let gated = LinearCase { gates: Some((1.0, 20)), ..base.clone() };
    let kda = LinearCase { by_channel: true, gates: Some((1.0, 200)), ..base.clone() };
    let gla = LinearCase { params: LinearParams::default(), betas: None, ..kda.clone() };
    let mut cases = vec![];
    for tokens in [1, 15, 63, 65, 127, 500] {
        cases.extend([&base, &gated, &kda, &gla].map(|case| LinearCase { tokens, ..case.clone() }));
    }
    for (i, dims) in [(64, 64), (128, 128), (256, 20), (16, 256), (1, 1), (7, 20), (33, 18)].into_iter().enumerate() {
        let case = [&gated, &kda, &gla][i % 3];
        cases.push(LinearCase { dims, tokens: 40, h0: i % 2 == 0, strided: i % 2 == 1, ..case.clone() });
    }
    cases.push(LinearCase { betas: None, h0: false, ..base.clone() });
    for case in [&gated, &kda, &gla] {
        cases.push(LinearCase { heads: [4, 2, 1], gate_heads: Some(2), betas: case.betas.map(|_| 1), ..case.clone() });
    }
    let params = LinearParams::default();
    cases.push(LinearCase { heads: [1, 4, 2], gate_heads: Some(1), params, betas: None, ..gated.clone() });
    cases.push(LinearCase { betas: Some(1), params: LinearParams { reverse: true, ..delta.clone() }, ..gated.clone() });
    let slopes = Some(vec![0.05, 0.2, 0.0, 0.4]);
    let params = LinearParams { slopes, scale: Some(1.0), ..delta.clone() };
    cases.push(LinearCase { heads: [1, 4, 2], betas: Some(4), params, in_place: true, h0: false, ..base.clone() });
    let sequences = vec![30, 0, 65, 1];
    for (i, case) in [&gated, &kda, &gla].into_iter().enumerate() {
        let reverse = i == 1;
        let params = LinearParams { reverse, ..case.params.clone() };
        let case = LinearCase { batch: 4, sequences: sequences.clone(), heads: [2, 1, 2], params, ..case.clone() };
        cases.push(LinearCase { packed: true, spare: 9, ..case.clone() });
        let on_gpu = LinearCase { packed: i != 1, on_gpu: true, spare: if i == 1 { 0 } else { 7 }, ..case.clone() };
        cases.push(on_gpu);
        let betas = case.betas.map(|_| 1);
        cases.push(LinearCase {
            betas,
            in_place: true,
            h0: false,
            strided: true,
            dtypes: [DType::F16, DType::Bf16],
            ..case
        });
    }
    cases.push(LinearCase { tokens: 0, ..gated.clone() });
    cases.push(LinearCase { batch: 0, h0: false, ..kda.clone() });
    for (i, case) in cases.iter_mut().enumerate() {
        case.params.algorithm = ALGORITHMS[i % 4];
    }
    for (i, tokens) in [63, 64, 65, 127, 300, 1000].into_iter().enumerate() {
        let case = [&gated, &kda, &gla][i % 3];
        for algorithm in &ALGORITHMS[2..] {
            let params = LinearParams { algorithm: *algorithm, reverse: i > 2, ..case.params.clone() };
            cases.push(LinearCase { tokens, params, ..case.clone() });
        }
    }
    for (i, case) in [&gated, &kda].into_iter().enumerate() {
        let params = LinearParams { algorithm: ALGORITHMS[2], reverse: i == 1, ..delta.clone() };
        cases.push(LinearCase { tokens: 100, params, in_place: true, h0: false, ..case.clone() });
    }
    let params = LinearParams { algorithm: ALGORITHMS[3], chunk: Some(32), ..delta };
    cases.push(LinearCase { tokens: 300, params, by_channel: true, ..gated });
    cases
}

/// States of 16 bits: in place and initial ones, a few tokens and more than a dispatch goes over.
fn state_cases() -> Vec<LinearCase> {
    let delta = LinearParams { rule: LinearRule::Delta, ..LinearParams::default() };
    let mut cases = vec![];
    for (i, (tokens, of_states)) in
        [(1, DType::F16), (8, DType::Bf16), (70, DType::F16), (1100, DType::Bf16)].into_iter().enumerate()
    {
        let base = LinearCase { tokens, of_states, dims: (20, 33), gates: Some((1.0, 20)), ..LinearCase::default() };
        let params = LinearParams { algorithm: ALGORITHMS[i], ..LinearParams::default() };
        cases.push(LinearCase { params, in_place: i % 2 == 0, h0: i % 2 == 1, ..base.clone() });
        cases.push(LinearCase { params: delta.clone(), betas: Some(2), in_place: true, ..base });
    }
    let params = LinearParams { feature_map: FeatureMap::Elu1, normalize: Some(1e-6), ..LinearParams::default() };
    cases.push(LinearCase { params, of_states: DType::F16, in_place: true, ..LinearCase::default() });
    cases
}

/// Feature maps, unit lengths and normalisers: with states and gates, both directions, grouped heads, packed sequences, types, strides.
fn feature_cases() -> Vec<LinearCase> {
    let of = |feature_map: FeatureMap, l2_norm: bool, normalize: Option<f32>| LinearParams {
        feature_map,
        l2_norm,
        normalize,
        ..LinearParams::default()
    };
    let elu = LinearCase { params: of(FeatureMap::Elu1, false, Some(1e-6)), ..LinearCase::default() };
    let taylor =
        LinearCase { params: of(FeatureMap::Taylor2, false, Some(1e-6)), dims: (16, 24), ..LinearCase::default() };
    let mut cases = vec![];
    for (i, tokens) in [1, 40, 65, 300].into_iter().enumerate() {
        cases.push(LinearCase { tokens, h0: i % 2 == 0, z0: i % 2 == 0, in_place: i == 1, ..elu.clone() });
        cases.push(LinearCase { tokens, h0: i % 3 == 0, z0: i % 3 == 0, in_place: i == 2, ..taylor.clone() });
    }
    for (causal, reverse) in [(true, true), (false, false)] {
        let params = LinearParams { causal, reverse, ..elu.params.clone() };
        let gates = causal.then_some((1.0, 30));
        let heads = [4, 1, 2];
        cases.push(LinearCase {
            params,
            gates,
            heads,
            h0: true,
            z0: true,
            dims: (20, 33),
            strided: reverse,
            ..elu.clone()
        });
    }
    let sequences = vec![30, 0, 65, 1];
    let packed = LinearCase { batch: 4, sequences, packed: true, spare: 5, gates: Some((1.0, 13)), ..elu.clone() };
    cases.push(LinearCase { h0: true, z0: true, ..packed.clone() });
    cases.push(LinearCase { packed: false, in_place: true, dtypes: [DType::F16, DType::Bf16], ..packed });
    cases.push(LinearCase { dims: (7, 256), tokens: 20, ..elu.clone() });
    cases.push(LinearCase { dims: (21, 6), tokens: 20, params: of(FeatureMap::Taylor2, true, None), ..taylor.clone() });
    cases.push(LinearCase {
        params: of(FeatureMap::Relu, false, None),
        h0: true,
        gates: Some((1.0, 20)),
        ..elu.clone()
    });
    let params = LinearParams { rule: LinearRule::Delta, ..of(FeatureMap::Identity, true, None) };
    let delta = LinearCase { params, betas: Some(2), gates: Some((1.0, 20)), h0: true, ..LinearCase::default() };
    cases.push(LinearCase { heads: [1, 2, 2], ..delta.clone() });
    cases.push(LinearCase { by_channel: true, dtypes: [DType::F16; 2], strided: true, ..delta });
    cases.push(LinearCase { tokens: 0, h0: true, z0: true, ..elu });
    cases
}

/// Random shapes, params and types.
pub fn random_linear_cases(count: usize, seed: u64) -> Vec<LinearCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> LinearCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let most = *[1, 2, 4, 6].choose(r).expect("four");
    let divisors: Vec<usize> = (1..=most).filter(|n| most % n == 0).collect();
    let mut heads = [(); 3].map(|()| *divisors.choose(r).expect("one at least"));
    heads[r.random_range(0..3)] = most;
    let causal = r.random_range(0..4) > 0;
    let kind = if causal { r.random_range(0..4) } else { 0 };
    let rule = if causal && r.random_range(0..2) == 0 { LinearRule::Delta } else { LinearRule::Linear };
    let maps = [FeatureMap::Identity, FeatureMap::Identity, FeatureMap::Elu1, FeatureMap::Relu, FeatureMap::Taylor2];
    let feature_map = *maps.choose(r).expect("five");
    // What is divided by is positive.
    let positive = [FeatureMap::Elu1, FeatureMap::Taylor2].contains(&feature_map);
    let normalized = rule == LinearRule::Linear && positive && r.random_range(0..2) == 0;
    let batch = r.random_range(1..4);
    let tokens = r.random_range(1..300);
    let with_lengths = r.random_range(0..2) == 0;
    let sequences = if with_lengths { (0..batch).map(|_| r.random_range(0..=tokens)).collect() } else { vec![] };
    let in_place = r.random_range(0..2) == 0;
    let types = [DType::F32, DType::F16, DType::Bf16];
    // The output of a first token is its value, whatever the query: gradients of that would be rounding errors alone.
    let h0 = !in_place && (normalized || r.random_range(0..2) == 0);
    LinearCase {
        batch,
        heads,
        tokens,
        dims: (r.random_range(1..if feature_map == FeatureMap::Taylor2 { 22 } else { 130 }), r.random_range(1..70)),
        betas: (rule == LinearRule::Delta).then(|| *divisors.choose(r).expect("one at least")),
        by_channel: kind == 3,
        gate_heads: (kind > 1 && r.random_range(0..3) == 0).then(|| *divisors.choose(r).expect("one at least")),
        params: LinearParams {
            rule,
            feature_map,
            l2_norm: r.random_range(0..4) == 0,
            normalize: normalized.then_some(1e-6),
            causal,
            reverse: r.random_range(0..2) == 0,
            scale: (r.random_range(0..2) == 0).then_some(0.7),
            slopes: (kind == 1).then(|| (0..most).map(|_| r.random_range(0.0..0.5)).collect()),
            algorithm: ALGORITHMS[r.random_range(0..4)],
            chunk: None,
        },
        gates: (kind > 1).then(|| (r.random_range(0.0..2.0), r.random_range(2..50))),
        h0,
        z0: h0 && normalized,
        in_place,
        packed: with_lengths && r.random_range(0..2) == 0,
        sequences,
        dtypes: if r.random_range(0..2) == 0 {
            [DType::F32; 2]
        } else {
            [(); 2].map(|()| *types.choose(r).expect("three"))
        },
        strided: r.random_range(0..2) == 0,
        of_states: if r.random_range(0..4) == 0 { DType::F16 } else { DType::F32 },
        spare: r.random_range(0..3) * r.random_range(0..40),
        on_gpu: with_lengths && r.random_range(0..2) == 0,
        seed,
    }
}

pub(super) fn typical() -> LinearCase {
    LinearCase { heads: [4; 3], tokens: 8192, dims: (64, 64), ..LinearCase::default() }
}
