//! The catalogue of SeerAttention's gate for decoding.

use super::SeerDecodeCase;
use crate::{DType, Pool, SeerDecodeGateParams, Selector};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// Selectors, poolings, norms, rings, one query and several, widths, types, lengths at and between the ends of blocks.
pub fn seer_decode_cases() -> Vec<SeerDecodeCase> {
    use Pool::{Avg, Max, Min};
    let mut cases = vec![];
    for (i, selector) in [
        Selector::Budget(64),
        Selector::Budget(16),
        Selector::Threshold(0.1),
        Selector::TopP(0.7),
        Selector::Density(0.3),
        Selector::Budget(100_000),
    ]
    .into_iter()
    .enumerate()
    {
        let pool_k = [vec![Max, Min, Avg], vec![Avg], vec![Min, Max]][i % 3].clone();
        let rope_theta = (i != 4).then_some([10_000.0, 500_000.0][i % 2]);
        let params =
            SeerDecodeGateParams { block: 16, pool_k, rope_theta, selector, sink: i % 2 == 1, ..Default::default() };
        cases.push(SeerDecodeCase {
            heads: [(8, 2), (3, 3), (4, 1)][i % 3],
            lengths: ([1, 4, 2][i % 3], 130),
            dims: [(16, 16), (20, 12), (64, 64), (32, 6), (6, 130), (128, 128)][i],
            seqlens_k: [vec![101, 96, 130], vec![15, 16], vec![97]][i % 3].clone(),
            on_gpu: i % 2 == 0,
            norms: [[true, true], [false, false], [true, false], [false, true]][i % 4],
            params,
            dtypes: [[DType::F32; 2], [DType::F16, DType::F32], [DType::Bf16, DType::F16]][i / 2],
            ring: [0, 1, 2][i % 3],
            training: false,
            seed: 9500 + 10 * i as u64,
        });
    }
    // Many blocks, more than a word; a ring of one block.
    cases.push(SeerDecodeCase {
        lengths: (1, 8 * 70 + 5),
        seqlens_k: vec![8 * 70 + 4, 8 * 32, 3],
        params: SeerDecodeGateParams { block: 8, ..cases[0].params.clone() },
        ring: 1,
        seed: 9600,
        ..cases[0].clone()
    });
    let training = |case: &SeerDecodeCase| SeerDecodeCase {
        // Whole sequences.
        lengths: (case.lengths.1.min(75), case.lengths.1.min(75)),
        seqlens_k: vec![case.lengths.1.min(75); 2],
        training: true,
        ..case.clone()
    };
    let training: Vec<SeerDecodeCase> = cases.iter().map(training).collect();
    cases.extend(training);
    cases
}

/// Random shapes, params and types.
pub fn random_seer_decode_cases(count: usize, seed: u64) -> Vec<SeerDecodeCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> SeerDecodeCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let mut pool_k = vec![Pool::Max, Pool::Min, Pool::Avg];
    pool_k.shuffle(r);
    pool_k.truncate(r.random_range(1..=3));
    let block = 1 << r.random_range(2..7);
    let selector = match r.random_range(0..4) {
        0 => Selector::Threshold(r.random_range(0.0..0.3)),
        1 => Selector::Density(r.random_range(0.01..1.0)),
        2 => Selector::TopP(r.random_range(0.0..1.0)),
        _ => Selector::Budget(r.random_range(64..600)),
    };
    let (training, kv) = (r.random_range(0..3) == 0, r.random_range(1..3));
    let keys = r.random_range(1..if training { 80 } else { 400 });
    let queries = if training { keys } else { r.random_range(1..5) };
    let batch = r.random_range(1..4);
    let types = [DType::F32, DType::F16, DType::Bf16];
    let theta = r.random_range(10.0..1e6);
    SeerDecodeCase {
        heads: (kv * r.random_range(1..5), kv),
        lengths: (queries, keys),
        dims: (2 * r.random_range(1..50), 2 * r.random_range(1..50)),
        seqlens_k: (0..batch).map(|_| if training { keys } else { r.random_range(0..=keys) }).collect(),
        on_gpu: r.random_range(0..2) == 0,
        norms: [(); 2].map(|()| r.random_range(0..2) == 0),
        params: SeerDecodeGateParams {
            block,
            pool_k,
            rope_theta: (r.random_range(0..4) > 0).then_some(theta),
            norm_epsilon: 1e-6,
            selector,
            sink: r.random_range(0..2) == 0,
        },
        dtypes: [(); 2].map(|()| *types.choose(r).expect("three")),
        ring: r.random_range(0..4),
        training,
        seed,
    }
}
