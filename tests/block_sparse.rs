//! Block-sparse attention against its float64 reference, and block masks in all their forms.

mod common;

use common::{bits, gpu, heads_first, named, random, read, run_all, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{
    block_sparse_backward_cases, block_sparse_cases, random_block_sparse_backward_cases, random_block_sparse_cases,
};
use wgpu_attention::score_reduction::{
    KeyGroups, QueryGroups, ScoreReduction, ScoreReductionInputs, ScoreReductionParams,
};
use wgpu_attention::{
    AttentionInputs, BlockGrid, BlockMask, BlockSparseAttention, BlockSparseParams, Causal, FlashAttention, Tensor,
};

#[test]
fn catalogue() {
    run_all(&block_sparse_cases());
}

#[test]
fn random_cases() {
    run_all(&random_block_sparse_cases(16, 1));
}

#[test]
fn gradients_of_the_catalogue() {
    run_all(&block_sparse_backward_cases());
}

#[test]
fn gradients_of_random_cases() {
    run_all(&random_block_sparse_backward_cases(8, 2));
}

fn attention() -> BlockSparseAttention {
    let params = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    BlockSparseAttention::new(gpu(), params).expect("valid params")
}

/// Output, log-sum-exp and gradients, as bits.
fn everything(mask: &BlockMask, [q, k, v]: [&Tensor; 3]) -> Vec<Vec<u32>> {
    let inputs = AttentionInputs { block_mask: Some(mask), ..AttentionInputs::new(q, k, v) };
    let (out, saved) = block_on(attention().forward_for_training(&inputs)).unwrap();
    let g = block_on(attention().backward(&saved, &out)).unwrap();
    [&out, named(&saved, "lse"), &g.dq, &g.dk, &g.dv].map(|tensor| bits(&read(tensor))).into()
}

const SHAPE: [usize; 4] = [1, 2, 200, 16];

fn inputs(seed: u64) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|i| random(seed + i, SHAPE.iter().product()))
}

fn mask(batch: usize, block: usize, chosen: impl Fn(usize, usize, usize) -> bool) -> BlockMask {
    let grid = BlockGrid { batch, heads: 1, queries: 200, keys: 200, block: [block; 2] };
    block_on(BlockMask::from_fn(gpu(), grid, |b, _, i, j| chosen(b, i, j))).unwrap()
}

/// Where every block is chosen, the bits are those of flash attention.
#[test]
fn everything_chosen_is_flash_attention() {
    let [q, k, v] = inputs(1).map(|x| tensor(SHAPE, &x));
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let (out, saved) = block_on(flash.forward_for_training(&AttentionInputs::new(&q, &k, &v))).unwrap();
    let g = block_on(flash.backward(&saved, &out)).unwrap();
    let expected = [&out, named(&saved, "lse"), &g.dq, &g.dk, &g.dv].map(|tensor| bits(&read(tensor)));
    for block in [64, 16] {
        assert_eq!(everything(&mask(1, block, |_, _, _| true), [&q, &k, &v]), expected);
    }
}

/// Keys and values of blocks that nobody has chosen may hold NaN, in tiles that are visited too; queries that see nothing give
/// 0 and −∞, whatever they hold, and have no gradient.
#[test]
fn what_is_not_chosen_does_not_leak() {
    for block in [64, 16] {
        // Half of the blocks of keys are seen by some; the last rows of blocks see nothing.
        let seeing = 96 / block;
        let mask = mask(1, block, |_, i, j| i < seeing && j % 2 == 0);
        let clean = inputs(4);
        let expected = everything(&mask, clean.each_ref().map(|x| tensor(SHAPE, x)).each_ref());
        let [mut q, mut k, mut v] = clean;
        for row in 0..2 * 200 {
            let token = row % 200;
            if token / block >= seeing {
                q[row * 16..][..16].fill(f32::NAN);
            }
            if token / block % 2 == 1 {
                k[row * 16..][..16].fill(f32::NAN);
                v[row * 16..][..16].fill(f32::NAN);
            }
        }
        let found = everything(&mask, [&q, &k, &v].map(|x| tensor(SHAPE, x)).each_ref());
        assert_eq!(found, expected, "blocks of {block}");
        let [out, lse, dq, dk, _] = &found[..] else { panic!("five") };
        let empty = |row: usize| row % 200 / block >= seeing;
        for row in 0..2 * 200 {
            if empty(row) {
                assert!(out[row * 16..][..16].iter().chain(&dq[row * 16..][..16]).all(|&x| x == 0));
                assert_eq!(lse[row], f32::NEG_INFINITY.to_bits());
            }
            if row % 200 / block % 2 == 1 {
                assert!(dk[row * 16..][..16].iter().all(|&x| f32::from_bits(x) == 0.0));
            }
        }
    }
}

/// NaN in a visible key gives NaN in the rows that see it, and nowhere else.
#[test]
fn nan_stays_where_it_is_seen() {
    let mask = mask(1, 64, |_, i, j| j == 0 || i == 2);
    let [q, mut k, v] = inputs(7);
    k[70 * 16] = f32::NAN;
    let [q, k, v] = [&q, &k, &v].map(|x| tensor(SHAPE, x));
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
    let (_, lse) = block_on(attention().forward_with_lse(&inputs)).unwrap();
    for (row, lse) in read(&lse).into_iter().enumerate() {
        assert_eq!(lse.is_nan(), row < 200 && (128..192).contains(&row), "{row}: {lse}");
    }
}

/// The same bits run after run, and whatever stands beside in the batch.
#[test]
fn bits_do_not_depend_on_the_batch() {
    let chosen = |b: usize, i: usize, j: usize| (i * 5 + j * 3 + b).is_multiple_of(2);
    let (one, two) = (inputs(10), inputs(20));
    let alone =
        everything(&mask(1, 32, |_, i, j| chosen(1, i, j)), two.each_ref().map(|x| tensor(SHAPE, x)).each_ref());
    let both = [0, 1, 2].map(|i| tensor([2, 2, 200, 16], &[&one[i][..], &two[i][..]].concat()));
    let together = everything(&mask(2, 32, chosen), both.each_ref());
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone[..], together[alone.len()..]);
    }
    assert_eq!(everything(&mask(2, 32, chosen), both.each_ref()), together);
}

/// Output, log-sum-exp and block maxima of an independent implementation: `tests/data/seer_*.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    let tensors =
        |name: &str| std::fs::read(format!("tests/data/{name}.safetensors")).expect("the repository has the file");
    let (prefill, train) = (tensors("seer_prefill_mha_b32_thr"), tensors("seer_train_1d_b32"));
    let [prefill, train] = [&prefill, &train].map(|bytes| SafeTensors::deserialize(bytes).expect("a safetensors file"));
    let floats = |file: &SafeTensors, name: &str| -> Vec<f32> {
        bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(name).expect(name).data())
    };
    let tokens = |file: &SafeTensors, name: &str| {
        let shape = file.tensor(name).expect(name).shape().to_vec();
        let shape = [shape[0], shape[2], shape[1], shape[3]];
        (shape, heads_first(&floats(file, name), shape))
    };
    let up = |file: &SafeTensors, name: &str| {
        let (shape, values) = tokens(file, name);
        tensor(shape, &values)
    };
    let near = |found: &[f32], expected: &[f32]| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).all(|(a, b)| a == b || (a - b).abs() < 1e-5)
    };
    let [q, k, v] = ["q", "k", "v"].map(|name| up(&prefill, name));
    let view = prefill.tensor("mask").expect("mask");
    let [_, heads, rows, cols] = view.shape() else { panic!("a mask for each head") };
    let chosen: Vec<bool> = view.data().iter().map(|&byte| byte != 0).collect();
    let grid = BlockGrid { batch: 1, heads: *heads, queries: 256, keys: 256, block: [32, 32] };
    let mask = block_on(BlockMask::from_fn(gpu(), grid, |_, h, i, j| chosen[(h * rows + i) * cols + j])).unwrap();
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
    let (out, lse) = block_on(attention().forward_with_lse(&inputs)).unwrap();
    assert!(near(&read(&out), &tokens(&prefill, "out").1));
    assert!(near(&read(&lse), &floats(&prefill, "lse")));
    // The blocks of the first head, as lists.
    let list = |name: &str| -> Vec<u32> {
        let numbers = bytemuck::pod_collect_to_vec::<u8, i32>(prefill.tensor(name).expect(name).data());
        numbers.into_iter().map(|n| n as u32).collect()
    };
    let (offsets, indices) = (list("csr_ptr_b0h0"), list("csr_col_b0h0"));
    let first = BlockGrid { heads: 1, ..grid };
    let listed = block_on(BlockMask::from_host_lists(gpu(), first, (&offsets, &indices), None)).unwrap();
    assert_eq!(block_on(listed.read()).unwrap(), chosen[..rows * cols]);

    // Training targets: the largest probability of each block of dense attention, and of each token and block of keys.
    for (file, expected, block) in [(&prefill, "target_raw", 32), (&train, "row_block_max", 1)] {
        let [q, k, v] = ["q", "k", "v"].map(|name| up(file, name));
        let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
        let (_, lse) = block_on(flash.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).unwrap();
        let (queries, keys) = (QueryGroups::Blocks(block), KeyGroups::Blocks(32));
        let params = ScoreReductionParams { attention: common::BOTTOM_RIGHT, queries, keys, ..Default::default() };
        let inputs = ScoreReductionInputs { attention: AttentionInputs::new(&q, &k, &v), lse: &lse, segments: None };
        let reduced = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
        assert!(near(&read(&reduced.values), &floats(file, expected)), "{expected}");
    }
}
