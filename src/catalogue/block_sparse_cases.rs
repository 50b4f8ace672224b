//! The list of block-sparse attention cases, and random ones.

use super::data::DTYPES;
use super::{AttentionCase, BackwardCase, BlockCase, KnownHook, MaskSource, Scores, random_flash_cases};
use crate::{Causal, DType, FlashParams, HeadBlocks, Window};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Blocks as large as tiles, larger, smaller, not square, single tokens.
const BLOCKS: [[usize; 2]; 9] =
    [[64, 64], [128, 64], [64, 128], [32, 32], [16, 16], [1, 64], [128, 8], [2, 1], [512, 256]];

/// The catalogue: every size of blocks and density, causal and not, every way a mask is made, kinds of heads, lengths, packed
/// sequences, every type, hooks.
pub fn block_sparse_cases() -> Vec<AttentionCase> {
    use KnownHook::{Fields, Prefix, Relative, Stripes, TanhCap};
    use MaskSource::{Bits, GpuLists, Heads, Hooks, HostLists};
    let mut cases = Vec::new();
    let add = |cases: &mut Vec<AttentionCase>, case: AttentionCase| {
        let i = cases.len();
        cases.push(AttentionCase {
            scores: Scores::Normal([1.0, 3.0, 6.0][i % 3]),
            seed: 2000 + 51 * i as u64,
            ..case
        });
    };
    let causal = |diagonal| FlashParams { causal: diagonal, ..FlashParams::default() };
    let diagonals = [None, Some(Causal::BottomRight), Some(Causal::TopLeft)];
    for (i, density) in [0.0, 0.05, 0.3, 0.7, 1.0].into_iter().enumerate() {
        for (j, block) in BLOCKS.into_iter().enumerate() {
            if j > 1 && (i + j) % 3 != 0 {
                continue;
            }
            let blocks =
                BlockCase { block, density, from: [Bits, HostLists, GpuLists][(i + j) % 3], ..Default::default() };
            for diagonal in &diagonals[..if j == 0 { 3 } else { 2 }] {
                let case = AttentionCase {
                    label: "blocks",
                    batch: 2,
                    heads: (4, 2),
                    lengths: [(200, 200), (150, 331), (330, 140)][(i + j) % 3],
                    dims: (32, 32),
                    params: causal(*diagonal),
                    blocks: Some(blocks.clone()),
                    ..AttentionCase::default()
                };
                add(&mut cases, case);
            }
        }
    }
    let kinds = [
        HeadBlocks::Dense,
        HeadBlocks::Streaming { sink: 4, local: 70 },
        HeadBlocks::Listed,
        HeadBlocks::Streaming { sink: 130, local: 1 },
        HeadBlocks::Streaming { sink: 0, local: usize::MAX },
        HeadBlocks::Streaming { sink: 0, local: 0 },
    ];
    for (i, diagonal) in diagonals.into_iter().enumerate() {
        for (heads, from) in [(kinds.to_vec(), Bits), (kinds[3..].repeat(2), Heads)] {
            let case = AttentionCase {
                label: "kinds of heads",
                heads: (6, 3),
                lengths: [(300, 300), (100, 290), (290, 200)][i],
                dims: (32, 32),
                params: causal(diagonal),
                blocks: Some(BlockCase { heads, from, repeated: [true, true], ..Default::default() }),
                ..AttentionCase::default()
            };
            add(&mut cases, case);
        }
    }
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let case = AttentionCase {
            label: "types",
            heads: (4, 1),
            lengths: (140, 190),
            dims: [(64, 64), (80, 72), (160, 200)][i],
            strided: i == 1,
            additional: [0, 5, 70][i],
            params: FlashParams { softcap: Some(20.0), ..causal(diagonals[i]) },
            blocks: Some(BlockCase { block: [32, 64], repeated: [i == 0, true], ..Default::default() }),
            ..AttentionCase::default().of_type(dtype)
        };
        add(&mut cases, case);
    }
    for (i, block) in [[64, 64], [16, 32], [1, 64]].into_iter().enumerate() {
        let case = AttentionCase {
            label: "key heads choose",
            batch: 2,
            heads: [(6, 3), (4, 2), (6, 2)][i],
            lengths: [(150, 200), (100, 180), (70, 260)][i],
            dims: (32, 32),
            params: causal(diagonals[i]),
            blocks: Some(BlockCase { block, by_key_head: true, repeated: [i == 1, false], ..Default::default() }),
            ..AttentionCase::default()
        };
        add(&mut cases, case);
    }
    // Decoding: heads that share a key head as rows of one tile, or not; keys in parts.
    for (i, (heads, lengths, block, by_key_head)) in [
        ((8, 2), (1, 900), [1, 64], true),
        ((8, 2), (1, 5000), [64, 64], true),
        ((6, 1), (1, 2100), [1, 16], true),
        ((4, 4), (1, 2500), [1, 64], false),
        ((4, 2), (1, 1500), [1, 32], false),
        ((4, 2), (5, 2200), [1, 64], true),
        ((24, 1), (1, 1100), [1, 128], true),
    ]
    .into_iter()
    .enumerate()
    {
        let seqlens_k = (i % 2 == 0).then(|| vec![lengths.1, lengths.1 / 2 + 1, 0]);
        let case = AttentionCase {
            label: "decode",
            batch: 3,
            heads,
            lengths,
            dims: [(32, 32), (64, 64), (128, 128), (80, 200)][i % 4],
            strided: i % 3 == 1,
            seqlens_k,
            on_gpu: i == 0,
            params: FlashParams { softcap: (i == 2).then_some(20.0), ..causal(diagonals[i % 2]) },
            blocks: Some(BlockCase {
                block,
                by_key_head,
                density: 0.3,
                repeated: [i == 4, false],
                ..Default::default()
            }),
            ..AttentionCase::default().of_type(DTYPES[i % 3])
        };
        add(&mut cases, case);
    }
    for (i, from) in [Bits, HostLists].into_iter().enumerate() {
        for on_gpu in [false, true] {
            let case = AttentionCase {
                label: "packed",
                heads: (4, 2),
                lengths: (300, 340),
                dims: (32, 32),
                params: causal(diagonals[i]),
                cu_seqlens: Some([vec![0, 100, 101, 101, 300], vec![0, 3, 190, 200, 340]]),
                on_gpu,
                blocks: Some(BlockCase { block: [64, 32], density: 0.6, from, ..Default::default() }),
                ..AttentionCase::default()
            };
            add(&mut cases, case);
        }
    }
    let lengths = AttentionCase {
        label: "padding",
        batch: 4,
        lengths: (90, 140),
        dims: (32, 32),
        seqlens_q: Some(vec![90, 1, 0, 65]),
        seqlens_k: Some(vec![140, 64, 3, 0]),
        on_gpu: true,
        params: causal(diagonals[1]),
        blocks: Some(BlockCase { block: [16, 32], density: 0.6, ..Default::default() }),
        ..AttentionCase::default()
    };
    add(&mut cases, lengths);
    for (hooks, from, bias) in [
        (vec![Prefix], Hooks, false),
        (vec![Stripes, TanhCap], Hooks, false),
        (vec![Fields, Stripes], Bits, false),
        (vec![Relative], GpuLists, false),
        (vec![], HostLists, true),
    ] {
        let case = AttentionCase {
            label: if bias { "bias" } else { "hooks" },
            heads: (4, 2),
            lengths: (200, 260),
            dims: (32, 32),
            hooks,
            bias: bias.then_some([true, false, false, false]),
            blocks: Some(BlockCase { block: [64, 32], from, ..Default::default() }),
            ..AttentionCase::default()
        };
        add(&mut cases, case);
    }
    for lengths in [(70, 0), (0, 70), (1, 300)] {
        let blocks = Some(BlockCase { density: 0.8, ..Default::default() });
        add(&mut cases, AttentionCase { label: "few", lengths, dims: (32, 32), blocks, ..AttentionCase::default() });
    }
    cases
}

/// The gradients of the catalogue; compilation takes most of the time, so not of the widest heads.
pub fn block_sparse_backward_cases() -> Vec<BackwardCase> {
    block_sparse_cases().into_iter().filter(|case| case.dims.0 <= 128).map(BackwardCase::of).collect()
}

/// A mask of a typical size.
pub(super) fn typical() -> AttentionCase {
    let params = FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let blocks = Some(BlockCase { density: 0.1, by_row: true, ..BlockCase::default() });
    AttentionCase { heads: (8, 8), lengths: (8192, 8192), params, blocks, ..AttentionCase::default() }
}

/// Random shapes, masks, kinds of heads, params, types, lengths and layouts: at most 2·10⁷ multiply-adds each.
pub fn random_block_sparse_cases(count: usize, seed: u64) -> Vec<AttentionCase> {
    random_flash_cases(count, seed).into_iter().map(with_blocks).collect()
}

/// The gradients of random cases.
pub fn random_block_sparse_backward_cases(count: usize, seed: u64) -> Vec<BackwardCase> {
    random_block_sparse_cases(count, seed).into_iter().map(BackwardCase::of).collect()
}

/// A flash case over a mask, without what block-sparse attention does not have, and within the eight storage buffers that every
/// device has: blocks, and full ones, take one each.
fn with_blocks(case: AttentionCase) -> AttentionCase {
    let mut random = SmallRng::seed_from_u64(case.seed);
    let r = &mut random;
    let size = |r: &mut SmallRng| 1 << r.random_range(0..=8);
    let heads = (0..case.heads.0)
        .map(|_| match r.random_range(0..4) {
            0 => HeadBlocks::Dense,
            1 => HeadBlocks::Streaming { sink: r.random_range(0..200), local: r.random_range(0..300) },
            _ => HeadBlocks::Listed,
        })
        .collect();
    let sources = [MaskSource::Bits, MaskSource::HostLists, MaskSource::GpuLists];
    let mut blocks = BlockCase {
        block: if r.random_range(0..3) == 0 { [64; 2] } else { [size(r), size(r)] },
        density: *[0.0, 0.05, 0.3, 0.7, 1.0].choose(r).expect("five"),
        repeated: [(); 2].map(|()| r.random_range(0..3) == 0),
        by_key_head: r.random_range(0..3) == 0,
        by_row: r.random_range(0..3) == 0,
        from: *sources.choose(r).expect("three"),
        heads: if r.random_range(0..3) == 0 { heads } else { vec![] },
    };
    if blocks.heads.iter().all(|head| *head != HeadBlocks::Listed) {
        blocks.heads.clear();
    }
    let mut hooks = case.hooks.clone();
    hooks.retain(|hook| !matches!(hook, KnownHook::Relative | KnownHook::Documents(_)));
    let packed = case.cu_seqlens.is_some();
    if !packed && hooks.iter().any(|hook| hook.is_mask()) && r.random_range(0..2) == 0 {
        // Masks by head need one for each, and lengths are those of the tensors.
        let (repeated, by_key_head) = ([false; 2], false);
        blocks = BlockCase { from: MaskSource::Hooks, repeated, by_key_head, heads: vec![], ..blocks };
    }
    let whole = blocks.from == MaskSource::Hooks;
    AttentionCase {
        params: FlashParams { window: Window::default(), alibi_slopes: None, ..case.params.clone() },
        bias: case.bias.filter(|_| !packed && !whole && hooks.is_empty() && blocks.from == MaskSource::Bits),
        mask: None,
        dtypes: if case.seed.is_multiple_of(2) { [DType::F32; 3] } else { case.dtypes },
        hooks,
        seqlens_q: case.seqlens_q.clone().filter(|_| !whole),
        seqlens_k: case.seqlens_k.clone().filter(|_| !whole),
        blocks: Some(blocks),
        known: Default::default(),
        ..case
    }
}
