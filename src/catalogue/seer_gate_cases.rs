//! The catalogue of SeerAttention's gate.

use super::SeerGateCase;
use crate::{Causal, DType, Pool, SeerGateParams, Selector};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use Pool::{Avg, Max, Min};
use Selector::{Budget, Density, Threshold, TopP};

fn params(block: usize, selector: Selector) -> SeerGateParams {
    SeerGateParams { block: [block; 2], selector, ..SeerGateParams::default() }
}

/// Every selector, every set of poolings, both forms of the linear maps, both diagonals and none, switches, lengths, packed sequences,
/// types; rows and blocks around words, tiles and ends.
pub fn seer_gate_cases() -> Vec<SeerGateCase> {
    let base = SeerGateCase::default();
    let mut cases = vec![];
    for (i, selector) in [
        Threshold(0.0),
        Threshold(0.02),
        Threshold(0.3),
        Threshold(1.0),
        Density(0.1),
        Density(0.5),
        Density(1.0),
        TopP(0.0),
        TopP(0.6),
        TopP(0.95),
        TopP(1.0),
        Budget(16),
        Budget(100),
        Budget(100_000),
    ]
    .into_iter()
    .enumerate()
    {
        let plain = SeerGateParams { last_rows_dense: i % 2 == 0, ..params(16, selector) };
        cases.push(SeerGateCase { params: plain.clone(), amplitude: 2.0, ..base.clone() });
        // No causal mask, other switches, more than a word of blocks, one short.
        let open = SeerGateParams {
            block: [16, 8],
            causal: None,
            sink: i % 2 == 0,
            diagonal: i % 3 == 0,
            last_rows_dense: i % 4 == 0,
            ..plain
        };
        let (lengths, heads) = ((70, 8 * 33 + 3), (4, 2));
        cases.push(SeerGateCase { params: open, lengths, heads, wk_per_query_head: i % 2 == 0, ..base.clone() });
    }
    // Poolings, with and without a map of queries.
    for (i, (pool_q, pool_k)) in [
        (vec![Max], vec![Avg]),
        (vec![Min], vec![Max]),
        (vec![Avg], vec![Min]),
        (vec![Max, Min, Avg], vec![Avg, Max]),
        (vec![Min, Avg], vec![Min, Max]),
        (vec![Avg, Max], vec![Max, Min, Avg]),
    ]
    .into_iter()
    .enumerate()
    {
        let wq = pool_q.len() > 1 || i == 0;
        let params = SeerGateParams { pool_q, pool_k, sink: true, diagonal: true, ..params(32, Density(0.3)) };
        let (dims, heads) = if wq { ((20, 24), (4, 2)) } else { ((18, 18), (3, 1)) };
        cases.push(SeerGateCase { params, wq, wk_per_query_head: i % 2 == 0, dims, heads, ..base.clone() });
    }
    // Widths, blocks and lengths.
    for (dims, wq, block, lengths, theta) in [
        ((64, 64), false, 64, (8 * 64, 8 * 64), Some(10_000.0)),
        ((128, 128), false, 64, (300, 300), Some(500_000.0)),
        ((128, 32), true, 16, (130, 700), Some(10_000.0)),
        ((256, 256), true, 128, (500, 200), Some(10_000.0)),
        ((7, 5), true, 8, (65, 65), None),
        ((1, 1), false, 4, (33, 70), None),
        ((40, 10), true, 1, (70, 40), Some(100.0)),
        ((16, 16), false, 256, (50, 60), Some(10_000.0)),
        ((16, 16), false, 16, (0, 20), Some(10_000.0)),
        ((16, 16), false, 16, (20, 0), Some(10_000.0)),
    ] {
        for causal in [Some(Causal::BottomRight), Some(Causal::TopLeft)] {
            let params = SeerGateParams { rope_theta: theta, causal, diagonal: true, ..params(block, TopP(0.8)) };
            cases.push(SeerGateCase { params, dims, wq, lengths, heads: (2, 1), ..base.clone() });
        }
    }
    // Lengths of batch entries, packed and not, none and full among them.
    for packed in [false, true] {
        for selector in [Threshold(0.05), Density(0.3), Budget(48)] {
            let params = SeerGateParams { block: [16, 32], diagonal: true, ..params(16, selector) };
            let sequences = vec![[100, 130], [0, 40], [130, 130], [17, 0], [1, 129], [90, 33]];
            let case = SeerGateCase { batch: 6, lengths: (130, 130), sequences, packed, params, ..base.clone() };
            cases.push(SeerGateCase { heads: (4, 2), wq: true, wk_per_query_head: false, ..case });
        }
    }
    // Types and strides.
    for (tokens, weights) in [(DType::F16, DType::F32), (DType::Bf16, DType::F16), (DType::F32, DType::Bf16)] {
        let params = params(32, Threshold(0.05));
        let dtypes = [tokens, weights];
        cases.push(SeerGateCase { batch: 2, params, dtypes, strided: true, wq: true, dims: (32, 16), ..base.clone() });
    }
    let training: Vec<_> = cases
        .iter()
        .filter(|case| matches!(case.params.selector, Threshold(0.02) | Density(0.3) | TopP(0.8) | Threshold(0.05)))
        .map(|case| SeerGateCase { training: true, ..case.clone() })
        .collect();
    cases.extend(training);
    for (seed, case) in (9000..).step_by(10).zip(&mut cases) {
        case.seed = seed;
    }
    cases
}

/// Random shapes, params and types.
pub fn random_seer_gate_cases(count: usize, seed: u64) -> Vec<SeerGateCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> SeerGateCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let mut pools = || {
        let mut all = vec![Max, Min, Avg];
        all.shuffle(r);
        all.truncate(r.random_range(1..=3));
        all
    };
    let (pool_q, pool_k) = (pools(), pools());
    let selector = match r.random_range(0..4) {
        0 => Threshold(r.random_range(0.0..0.3)),
        1 => Density(r.random_range(0.01..1.0)),
        2 => TopP(r.random_range(0.0..1.0)),
        _ => Budget(r.random_range(64..2000)),
    };
    let mut flip = || r.random_range(0..2) == 0;
    let (rope, sink, diagonal, last_rows_dense) = (flip(), flip(), flip(), flip());
    let (wq, wk_per_query_head, strided, packed, training) = (flip(), flip(), flip(), flip(), flip());
    let with_lengths = flip();
    let wq = wq || pool_q.len() > 1;
    let params = SeerGateParams {
        block: [(); 2].map(|()| 1 << r.random_range(2..7)),
        pool_q,
        pool_k,
        rope_theta: rope.then(|| r.random_range(10.0..1e6)),
        causal: *[None, Some(Causal::BottomRight), Some(Causal::TopLeft)].choose(r).expect("three"),
        selector,
        sink,
        diagonal,
        last_rows_dense,
    };
    let kv = r.random_range(1..3);
    let lengths = (r.random_range(1..400), r.random_range(1..400));
    let batch = r.random_range(1..4);
    let sequence = |r: &mut SmallRng| [r.random_range(0..=lengths.0), r.random_range(0..=lengths.1)];
    let sequences = if with_lengths { (0..batch).map(|_| sequence(r)).collect() } else { vec![] };
    let head_dim = 2 * r.random_range(1..50);
    let types = [DType::F32, DType::F16, DType::Bf16];
    SeerGateCase {
        batch,
        heads: (kv * r.random_range(1..4), kv),
        lengths,
        dims: (head_dim, if wq { 2 * r.random_range(1..50) } else { head_dim }),
        wq,
        wk_per_query_head,
        packed: packed && with_lengths,
        sequences,
        params,
        dtypes: [(); 2].map(|()| *types.choose(r).expect("three")),
        strided,
        amplitude: r.random_range(0.5..3.0),
        training,
        seed,
    }
}

pub(super) fn typical() -> SeerGateCase {
    SeerGateCase {
        lengths: (8192, 8192),
        dims: (64, 64),
        params: params(64, Threshold(2e-3)),
        ..SeerGateCase::default()
    }
}
