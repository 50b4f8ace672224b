//! Cases of few queries: heads that share a key head as rows of a tile, keys in parts.

use super::data::DTYPES;
use super::{AttentionCase, KnownHook, Scores};
use crate::{Causal, FlashParams, Window};

/// With everything that goes with it, and with what keeps heads apart: windows, slopes, hooks, the other diagonal.
pub(super) fn few_queries() -> Vec<AttentionCase> {
    let causal = |causal| FlashParams { causal: Some(causal), ..FlashParams::default() };
    let last = causal(Causal::BottomRight);
    let window = FlashParams { window: Window { left: Some(1500), right: None }, ..last.clone() };
    let slopes = FlashParams { alibi_slopes: Some((0..8).map(|h| 0.001 * h as f32).collect()), ..last.clone() };
    let capped = FlashParams { softcap: Some(20.0), ..last.clone() };
    let of = |heads, lengths, params| AttentionCase { batch: 2, heads, lengths, params, ..AttentionCase::default() };
    let cases = [
        AttentionCase { bias: Some([true, false, true, false]), ..of((8, 2), (1, 2100), last.clone()) },
        AttentionCase { mask: Some([false, false, false, false]), strided: true, ..of((8, 2), (1, 1100), capped) },
        AttentionCase { additional: 70, ..of((6, 3), (1, 1300), last.clone()) },
        AttentionCase {
            seqlens_q: Some(vec![1, 0]),
            seqlens_k: Some(vec![40, 1500]),
            on_gpu: true,
            ..of((32, 2), (1, 2000), last.clone())
        },
        AttentionCase { dims: (128, 40), strided: true, ..of((4, 1), (1, 1030), FlashParams::default()) },
        of((8, 2), (1, 2100), window),
        of((8, 4), (8, 2100), slopes),
        of((8, 4), (1, 1100), causal(Causal::TopLeft)),
        AttentionCase { hooks: vec![KnownHook::Fields], ..of((4, 2), (1, 1100), last.clone()) },
        AttentionCase {
            hooks: vec![KnownHook::Stripes],
            seqlens_k: Some(vec![900, 70]),
            ..of((4, 2), (3, 1100), last)
        },
    ];
    let case = |(i, case): (usize, AttentionCase)| AttentionCase {
        label: "few queries",
        scores: Scores::Normal([3.0, 6.0, 1.0][i % 3]),
        seed: 7000 + 10 * i as u64,
        ..case.of_type(DTYPES[[0, 0, 1, 0, 2][i % 5]])
    };
    cases.into_iter().enumerate().map(case).collect()
}
