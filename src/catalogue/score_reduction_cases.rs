//! The list of score reduction cases, and random ones.

use super::{AttentionCase, KnownHook, ScoreReductionCase, Scores};
use crate::{Causal, DType, FlashParams, HeadGroups, KeyGroups, QueryGroups, Reduction, Window};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Every reduction, size of groups and kind of result.
pub fn score_reduction_cases() -> Vec<ScoreReductionCase> {
    use {HeadGroups::*, Reduction::*};
    let causal = FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let blocks = QueryGroups::Blocks;
    let of_keys = KeyGroups::Blocks;
    let count = Count { above: 0.01 };
    let mut cases = Vec::new();
    for (i, (reduction, heads, queries, keys, top_k)) in [
        (Max, Each, blocks(64), of_keys(64), None),
        (Max, PerKvHead, blocks(1), of_keys(64), None),
        (Max, All, blocks(32), of_keys(16), None),
        (Max, Each, blocks(128), of_keys(128), None),
        (Max, Each, blocks(1), of_keys(1), None),
        (Sum, Each, blocks(16), of_keys(32), None),
        (Sum, All, QueryGroups::All, of_keys(1), None),
        (Sum, PerKvHead, blocks(256), KeyGroups::All, None),
        (count, Each, blocks(8), of_keys(64), None),
        (count, All, QueryGroups::All, KeyGroups::All, None),
        (ArgMax, Each, blocks(1), KeyGroups::All, None),
        (ArgMax, PerKvHead, blocks(32), of_keys(32), None),
        (ArgMax, All, QueryGroups::All, of_keys(1024), None),
        (Sum, Each, QueryGroups::All, KeyGroups::Segments(5), None),
        (Max, PerKvHead, blocks(4), KeyGroups::Segments(3), None),
        (count, Each, blocks(64), KeyGroups::Segments(9), None),
        (ArgMax, Each, blocks(16), KeyGroups::Segments(7), None),
        (Sum, All, QueryGroups::All, of_keys(1), Some(20)),
        (Max, PerKvHead, blocks(1), of_keys(1), Some(33)),
        (Max, Each, blocks(64), of_keys(16), Some(2)),
        (Sum, Each, blocks(32), KeyGroups::Segments(6), Some(2)),
    ]
    .into_iter()
    .enumerate()
    {
        let attention = AttentionCase {
            label: "reduction",
            batch: 1 + i % 2,
            heads: (4, 2),
            lengths: [(150, 200), (200, 150), (70, 300), (1, 290)][i % 4],
            dims: (32, 16),
            params: if i % 3 == 0 { causal.clone() } else { FlashParams::default() },
            scores: Scores::Normal([1.0, 3.0][i % 2]),
            seed: 4000 + 60 * i as u64,
            ..AttentionCase::default()
        };
        cases.push(ScoreReductionCase { attention, reduction, heads, queries, keys, top_k });
    }
    let packed = [vec![0, 100, 101, 101, 300], vec![0, 3, 190, 200, 340]];
    let hooks = vec![KnownHook::Fields, KnownHook::Stripes];
    let shared = || AttentionCase { heads: (4, 2), lengths: (120, 170), dims: (40, 24), ..AttentionCase::default() };
    let variants = [
        AttentionCase { label: "hooks", hooks, ..shared() },
        AttentionCase {
            label: "f16",
            strided: true,
            bias: Some([true, false, true, false]),
            ..shared().of_type(DType::F16)
        },
        AttentionCase {
            label: "packed",
            lengths: (300, 340),
            params: causal.clone(),
            cu_seqlens: Some(packed.clone()),
            ..shared()
        },
        AttentionCase { label: "packed", lengths: (300, 340), cu_seqlens: Some(packed), on_gpu: true, ..shared() },
        AttentionCase {
            label: "padding",
            batch: 4,
            seqlens_q: Some(vec![90, 1, 0, 65]),
            seqlens_k: Some(vec![140, 64, 3, 0]),
            on_gpu: true,
            params: FlashParams { window: Window { left: Some(70), right: None }, ..causal.clone() },
            ..shared()
        },
        AttentionCase { label: "bf16", dims: (200, 24), ..shared().of_type(DType::Bf16) },
        AttentionCase { label: "no keys", lengths: (70, 0), ..shared() },
        AttentionCase { label: "no queries", lengths: (0, 70), ..shared() },
    ];
    for (i, attention) in variants.into_iter().enumerate() {
        let attention = AttentionCase { seed: 6000 + 60 * i as u64, ..attention };
        let (reduction, keys, top_k) = [
            (Max, of_keys(32), None),
            (Sum, KeyGroups::Segments(4), None),
            (ArgMax, KeyGroups::All, None),
            (Max, of_keys(1), Some(3)),
        ][i % 4];
        let top_k = top_k.filter(|_| attention.lengths.1 > 0);
        cases.push(ScoreReductionCase { attention, reduction, heads: Each, queries: blocks(16), keys, top_k });
    }
    cases
}

/// Random attention problems with random groups: at most 2·10⁷ multiply-adds each.
pub fn random_score_reduction_cases(count: usize, seed: u64) -> Vec<ScoreReductionCase> {
    super::random_flash_cases(count, seed).into_iter().map(random_case).collect()
}

fn random_case(attention: AttentionCase) -> ScoreReductionCase {
    let mut random = SmallRng::seed_from_u64(attention.seed ^ 7);
    let r = &mut random;
    let size = |r: &mut SmallRng| 1 << r.random_range(0..=9);
    let reductions = [Reduction::Max, Reduction::Sum, Reduction::Count { above: 0.02 }, Reduction::ArgMax];
    let reduction = *reductions.choose(r).expect("four");
    let queries = if r.random_range(0..4) == 0 { QueryGroups::All } else { QueryGroups::Blocks(size(r)) };
    let keys = match r.random_range(0..5) {
        0 => KeyGroups::All,
        1 => KeyGroups::Segments(r.random_range(1..12)),
        _ => KeyGroups::Blocks(size(r)),
    };
    let heads = *[HeadGroups::Each, HeadGroups::PerKvHead, HeadGroups::All].choose(r).expect("three");
    let groups = match keys {
        KeyGroups::All => 1,
        KeyGroups::Blocks(size) => attention.pair_shape()[3].div_ceil(size).max(1),
        KeyGroups::Segments(count) => count,
    };
    let counts = matches!(reduction, Reduction::ArgMax | Reduction::Count { .. });
    let top_k = (!counts && r.random_range(0..3) == 0).then(|| r.random_range(1..=groups.min(40)));
    // Additional keys have a softmax of their own, and no buffer is left for the bias with packed sequences.
    let attention = AttentionCase { additional: 0, known: Default::default(), ..attention };
    ScoreReductionCase { attention, reduction, heads, queries, keys, top_k }
}

/// A typical size.
pub(super) fn typical() -> ScoreReductionCase {
    let attention = AttentionCase { heads: (8, 8), lengths: (8192, 8192), ..AttentionCase::default() };
    let (queries, keys) = (QueryGroups::Blocks(64), KeyGroups::Blocks(64));
    let (reduction, heads) = (Reduction::Max, HeadGroups::Each);
    ScoreReductionCase { attention, reduction, heads, queries, keys, top_k: None }
}
