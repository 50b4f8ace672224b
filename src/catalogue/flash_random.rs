//! Random cases of flash attention.

use super::data::DTYPES;
use super::{AttentionCase, KnownHook, Scores};
use crate::{Causal, FlashParams, Window};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::OnceLock;

/// Random shapes, params, types, lengths and layouts: at most 2·10⁷ multiply-adds each.
pub fn random_flash_cases(count: usize, seed: u64) -> Vec<AttentionCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> AttentionCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let mut pick = |most: usize| r.random_range(1..=most);
    let (group, heads_kv, batch) = (pick(3), pick(2), pick(2));
    let mut width = || {
        let most = if pick(3) == 1 { 256 } else { 80 };
        pick(most)
    };
    let (d, dv) = (width(), width());
    let dims = if pick(3) == 1 { (d, dv) } else { (d, d) };
    let heads = (group * heads_kv, heads_kv);
    // Long sequences, so that several tiles of keys are common, within 2·10⁷ multiply-adds.
    let budget = 20_000_000 / (batch * heads.0 * (dims.0 + dims.1));
    let queries = pick(budget.isqrt().max(2));
    let keys = pick((budget / queries).clamp(1, 1500));
    let lengths = (queries, keys);
    let bound = |r: &mut SmallRng| (r.random_range(0..3) == 0).then(|| r.random_range(0..keys + 3));
    let some_lengths = |r: &mut SmallRng, most: usize| {
        (r.random_range(0..3) == 0).then(|| (0..batch).map(|_| r.random_range(0..=most)).collect::<Vec<_>>())
    };
    let causal = *[None, Some(Causal::BottomRight), Some(Causal::TopLeft)].choose(r).expect("three");
    let window = Window { left: bound(r), right: bound(r) };
    let scale = (r.random_range(0..4) == 0).then(|| r.random_range(-0.5f32..0.5));
    let softcap = (r.random_range(0..4) == 0).then(|| r.random_range(0.5f32..50.0));
    let alibi_slopes =
        (r.random_range(0..4) == 0).then(|| (0..heads.0).map(|_| r.random_range(-0.05f32..0.5)).collect());
    let cu_seqlens = (r.random_range(0..4) == 0).then(|| {
        let sequences = r.random_range(1..8);
        [queries, keys].map(|rows| {
            let mut offsets: Vec<usize> = (1..sequences).map(|_| r.random_range(0..=rows)).collect();
            offsets.extend([0, rows]);
            offsets.sort_unstable();
            offsets
        })
    });
    let batch = if cu_seqlens.is_some() { 1 } else { batch };
    let padded = cu_seqlens.is_none();
    let mut hooks = Vec::new();
    if r.random_range(0..3) == 0 {
        hooks = KnownHook::ALL.into_iter().filter(|_| r.random_range(0..3) == 0).collect();
    }
    let pairs = |r: &mut SmallRng| {
        let repeated = (r.random_range(0..4) == 0).then(|| [(); 3].map(|()| r.random_range(0..2) == 0));
        repeated.map(|[batch, heads, queries]| [batch, heads, queries, seed.is_multiple_of(3)])
    };
    let (bias, mask) = (pairs(r), pairs(r));
    // Within the eight storage buffers that every device has: q, k, v, out and lse are five.
    let reads = |hook: &KnownHook| matches!(hook, KnownHook::Relative | KnownHook::Documents(_));
    let mut room = 3 - [!padded, bias.is_some(), mask.is_some()].into_iter().filter(|&used| used).count();
    hooks.retain(|hook| {
        let fits = !reads(hook) || room > 0;
        room -= usize::from(reads(hook) && fits);
        fits
    });
    AttentionCase {
        label: "random",
        batch,
        heads,
        lengths,
        dims,
        dtypes: [(); 3].map(|()| *DTYPES.choose(r).expect("three")),
        params: FlashParams { causal, window, scale, softcap, alibi_slopes, ..FlashParams::default() },
        seqlens_q: some_lengths(r, queries).filter(|_| padded),
        seqlens_k: some_lengths(r, keys).filter(|_| padded),
        additional: if cu_seqlens.is_none() && r.random_range(0..6) == 0 { r.random_range(1..=90) } else { 0 },
        cu_seqlens,
        on_gpu: r.random_range(0..2) == 0,
        hooks,
        bias,
        mask,
        scores: Scores::Normal(*[1.0, 3.0, 6.0].choose(r).expect("three")),
        strided: r.random_range(0..2) == 0,
        heads_last: r.random_range(0..3) == 0,
        seed,
        axes: vec![],
        blocks: None,
        token_lists: None,
        known: OnceLock::new(),
    }
}
