//! The list of neighborhood attention cases, and random ones.

use super::data::DTYPES;
use super::{AttentionCase, BackwardCase, KnownHook, Scores};
use crate::{DType, FlashParams, NeighborhoodAxis};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Length, window, stride, dilation.
type Numbers = (usize, usize, usize, usize);

fn axis((length, window, stride, dilation): Numbers, causal: bool) -> NeighborhoodAxis {
    NeighborhoodAxis { length, window, stride, dilation, causal }
}

/// What breaks kernels: partial tiles, even strides, even windows, unequal dilation groups, truncated causal groups.
const SPACES: &[&[Numbers]] = &[
    &[(2, 2, 1, 1)],
    &[(128, 8, 7, 5)],
    &[(128, 3, 2, 10)],
    &[(256, 255, 82, 1)],
    &[(128, 63, 31, 1)],
    &[(125, 15, 1, 1)],
    &[(300, 20, 20, 1)],
    &[(131, 16, 4, 8)],
    &[(5, 5, 1, 1), (25, 16, 16, 1)],
    &[(84, 7, 1, 5), (19, 3, 1, 1)],
    &[(19, 8, 1, 2), (29, 8, 1, 3)],
    &[(36, 36, 12, 1), (40, 40, 13, 1)],
    &[(23, 7, 1, 1), (31, 7, 1, 1)],
    &[(30, 6, 2, 2), (14, 13, 3, 1)],
    &[(13, 3, 2, 3), (11, 4, 3, 2), (9, 3, 3, 2)],
    &[(9, 2, 1, 1), (7, 7, 2, 1), (10, 5, 4, 2)],
    &[(6, 3, 1, 2), (17, 5, 5, 3), (5, 2, 2, 1)],
];

/// The catalogue: the spaces that break kernels with every combination of causal axes, every type, GQA, widths, additional keys,
/// hooks.
pub fn neighborhood_cases() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    for space in SPACES {
        for causal in 0..1 << space.len() {
            let i = cases.len();
            let axes: Vec<_> = space.iter().enumerate().map(|(a, &n)| axis(n, causal >> a & 1 == 1)).collect();
            let odd = i % 9 == 4;
            let large = axes.iter().map(|axis| axis.length).product::<usize>() > 1000;
            cases.push(AttentionCase {
                label: "space",
                batch: 1 + i % 2,
                heads: if large { (1, 1) } else { [(2, 2), (4, 2), (3, 1)][i % 3] },
                dims: if odd { (20, 33) } else { [(16, 16), (32, 32), (16, 16)][axes.len() - 1] },
                scores: Scores::Normal([1.0, 3.0, 6.0][i % 3]),
                additional: [0, 0, 70, 0, 3][i % 5],
                strided: odd,
                seed: 500 + i as u64,
                ..AttentionCase::neighborhood(&axes)
            });
        }
    }
    let numbers: &[Numbers] = &[(67, 12, 8, 5), (80, 7, 4, 11)];
    let axes: Vec<_> = numbers.iter().map(|&n| axis(n, false)).collect();
    let whole =
        AttentionCase { label: "large space", heads: (1, 1), dims: (32, 32), ..AttentionCase::neighborhood(&axes) };
    cases.push(AttentionCase { seed: 600, ..whole });
    // As much workgroup memory as there can be.
    let numbers: &[Numbers] = &[(5, 3, 1, 1), (6, 3, 1, 2), (7, 3, 2, 1)];
    let axes: Vec<_> = numbers.iter().map(|&n| axis(n, false)).collect();
    cases.push(AttentionCase { label: "wide", dims: (256, 256), seed: 601, ..AttentionCase::neighborhood(&axes) });
    let space: &[Numbers] = &[(17, 7, 1, 1), (22, 5, 2, 2)];
    let axes: Vec<_> = space.iter().enumerate().map(|(a, &n)| axis(n, a == 1)).collect();
    use KnownHook::{Checks, Coordinates, Fields, TanhCap};
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        for (dims, strided, hooks, additional) in [
            ((64, 64), false, vec![Coordinates, Checks], 0),
            ((31, 59), true, vec![TanhCap, Fields], 5),
            ((128, 128), false, vec![], 0),
            ((160, 200), false, vec![], 64),
        ] {
            cases.push(AttentionCase {
                label: "types",
                heads: (4, 2),
                dims,
                strided,
                hooks,
                additional,
                params: FlashParams { scale: (i == 1).then_some(0.3), ..FlashParams::default() },
                scores: Scores::Normal(3.0),
                seed: 700 + cases.len() as u64,
                ..AttentionCase::neighborhood(&axes).of_type(dtype)
            });
        }
    }
    cases
}

/// The gradients of the forward catalogue's smaller cases.
pub fn neighborhood_backward_cases() -> Vec<BackwardCase> {
    // Compilation takes most of the time: of the types other than f32 one layout each, and of wide heads one.
    let chosen = |case: &AttentionCase| match case.label {
        "types" if case.dtypes[0] == DType::F32 => case.dims.0 <= 128,
        "types" => case.strided,
        _ => case.lengths.0 <= 1500 && case.dims.0 <= 128,
    };
    neighborhood_cases().into_iter().filter(chosen).map(BackwardCase::of).collect()
}

/// Random spaces, params, types, additional keys and layouts: at most 2·10⁷ multiply-adds each.
pub fn random_neighborhood_cases(count: usize, seed: u64) -> Vec<AttentionCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

/// The gradients of random cases.
pub fn random_neighborhood_backward_cases(count: usize, seed: u64) -> Vec<BackwardCase> {
    random_neighborhood_cases(count, seed).into_iter().map(BackwardCase::of).collect()
}

fn random_case(seed: u64) -> AttentionCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let count = r.random_range(1..=3);
    let longest = [600, 40, 14][count - 1];
    let axes: Vec<_> = (0..count)
        .map(|_| {
            let length = r.random_range(2..=longest);
            // Small windows are common.
            let most = if r.random_range(0..3) == 0 { length } else { length.min(13) };
            let window = r.random_range(2..=most);
            let stride = if r.random_range(0..2) == 0 { 1 } else { r.random_range(1..=window) };
            let dilation = if r.random_range(0..2) == 0 { 1 } else { r.random_range(1..=length / window) };
            NeighborhoodAxis { length, window, stride, dilation, causal: r.random_range(0..3) == 0 }
        })
        .collect();
    let case = AttentionCase::neighborhood(&axes);
    let keys: usize = axes.iter().map(|axis| axis.window).product();
    let additional = if r.random_range(0..3) == 0 { r.random_range(1..=100) } else { 0 };
    let group = r.random_range(1..=3);
    // Few widths, types and layouts, so that few shaders serve many spaces: those are flash attention's to try.
    let dims = *[(16, 16), (16, 16), (32, 32), (64, 64), (7, 7), (20, 33)].choose(r).expect("six");
    let budget = 20_000_000 / (case.lengths.0 * (keys + additional) * (dims.0 + dims.1)).max(1);
    let (batch, heads_kv) = (r.random_range(1..=2), r.random_range(1..=2));
    let (batch, heads) =
        if budget < batch * group * heads_kv { (1, (1, 1)) } else { (batch, (group * heads_kv, heads_kv)) };
    use KnownHook::{Checks, Coordinates, Fields, TanhCap};
    let hooks = match r.random_range(0..4) {
        0 => [Coordinates, Checks, TanhCap, Fields].into_iter().filter(|_| r.random_range(0..2) == 0).collect(),
        _ => vec![],
    };
    AttentionCase {
        label: "random",
        batch,
        heads,
        dims,
        dtypes: [if r.random_range(0..3) == 0 { *DTYPES.choose(r).expect("three") } else { DType::F32 }; 3],
        params: FlashParams {
            scale: (r.random_range(0..4) == 0).then(|| r.random_range(-0.5f32..0.5)),
            ..FlashParams::default()
        },
        additional,
        hooks,
        scores: Scores::Normal(*[1.0, 3.0, 6.0].choose(r).expect("three")),
        strided: r.random_range(0..4) == 0,
        heads_last: r.random_range(0..4) == 0,
        seed,
        ..case
    }
}

/// The variants at head dim 64, in words.
pub(super) fn typical() -> AttentionCase {
    let axes = [NeighborhoodAxis::new(56, 7); 2];
    AttentionCase { heads: (8, 8), dims: (64, 64), dtypes: [DType::F32; 3], ..AttentionCase::neighborhood(&axes) }
}
