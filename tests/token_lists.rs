//! Attention over lists of tokens: the catalogue, an independent implementation, block masks of single keys, and what is refused.

mod common;

use common::golden::{file, floats};
use common::patterns::{integers, near, of_file};
use common::{gpu, random, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::backward::OutputGradients;
use wgpu_attention::catalogue::{
    random_token_list_backward_cases, random_token_list_cases, token_list_backward_cases, token_list_cases,
};
use wgpu_attention::plan::{AdapterKind, AttentionParams, Caps, Shapes};
use wgpu_attention::token_lists::{TokenListAttention, TokenListParams, TokenLists};
use wgpu_attention::*;

const NONE: u32 = u32::MAX;

#[test]
fn catalogue() {
    run_all(&token_list_cases());
}

#[test]
fn gradients() {
    run_all(&token_list_backward_cases());
}

#[test]
fn random_cases() {
    run_all(&random_token_list_cases(12, 1));
    run_all(&random_token_list_backward_cases(8, 2));
}

fn numbers(shape: [usize; 4], values: &[u32]) -> Tensor {
    let layout = Layout::heads_first(DType::U32, shape);
    block_on(Tensor::upload_u32(gpu(), values)).unwrap().view(layout).unwrap()
}

fn attention(params: TokenListParams) -> TokenListAttention {
    TokenListAttention::new(gpu(), params).unwrap()
}

/// `tests/data/token_list_blocks_gqa.safetensors`, with its gradients.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("token_list_blocks_gqa");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v, dout] = ["q", "k", "v", "dout"].map(|name| of_file(&file, name));
    let tokens = numbers([2, 2, 4, 40], &integers(&file, "tokens"));
    let inputs = AttentionInputs::new(&q, &k, &v).with_token_lists(TokenLists { tokens: &tokens, block: 16 });
    let attention = attention(TokenListParams::causal());
    let (out, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    let (_, lse) = block_on(attention.forward_with_lse(&inputs)).unwrap();
    for (found, known) in read(&lse).into_iter().zip(floats(&file, "lse")) {
        assert!(found == known || (found - known).abs() < 2e-5, "lse: {found}, not {known}");
    }
    let dlse = tensor([2, 4, 50, 1], &floats(&file, "dlse"));
    let from = OutputGradients { dlse: Some(&dlse), ..OutputGradients::new(&dout) };
    let found = block_on(attention.backward_with_lse(&saved, &from)).unwrap();
    for (name, found) in [("dq", found.dq), ("dk", found.dk), ("dv", found.dv)] {
        near(name, &read(&found), &floats(&file, name));
    }
}

/// Random lists, and the same as a block mask whose blocks are a list's queries and one key: forward, backward, transposed.
#[test]
fn block_masks_of_single_keys_agree() {
    let (heads, d) = (2, 12);
    for (n, keys, block) in [(37, 90, 1), (50, 70, 8), (100, 130, 64)] {
        let lists = usize::div_ceil(n, block);
        let chances = random(5, heads * lists * keys);
        let chosen = |h: usize, i: usize, j: usize| chances[(h * lists + i) * keys + j] > 0.3;
        let list = |h: usize, i: usize| {
            let own = (0..keys).filter(move |&j| chosen(h, i, j)).map(|j| j as u32);
            own.chain(std::iter::repeat(NONE)).take(keys).collect::<Vec<_>>()
        };
        let tokens: Vec<u32> = (0..heads).flat_map(|h| (0..lists).flat_map(move |i| list(h, i))).collect();
        let tokens = numbers([1, heads, lists, keys], &tokens);
        let grid = BlockGrid { batch: 1, heads, queries: n, keys, block: [block, 1] };
        let mask = block_on(BlockMask::from_fn(gpu(), grid, |_, h, i, j| chosen(h, i, j))).unwrap();
        let q = tensor([1, heads, n, d], &random(1, heads * n * d));
        let [k, v] = [2, 3].map(|seed| tensor([1, heads, keys, d], &random(seed, heads * keys * d)));
        let dout = tensor([1, heads, n, d], &random(4, heads * n * d));
        let inputs = AttentionInputs::new(&q, &k, &v);
        let lists = inputs.with_token_lists(TokenLists { tokens: &tokens, block });
        let attention = attention(TokenListParams::causal());
        let blocks = BlockSparseAttention::new(gpu(), BlockSparseParams::causal()).unwrap();
        let (out, saved) = block_on(attention.forward_for_training(&lists)).unwrap();
        let (of_blocks, saved_by_blocks) =
            block_on(blocks.forward_for_training(&inputs.with_block_mask(&mask))).unwrap();
        near("out", &read(&out), &read(&of_blocks));
        let found = block_on(attention.backward(&saved, &dout)).unwrap();
        let known = block_on(blocks.backward(&saved_by_blocks, &dout)).unwrap();
        near("dq", &read(&found.dq), &read(&known.dq));
        near("dk", &read(&found.dk), &read(&known.dk));
        near("dv", &read(&found.dv), &read(&known.dv));
        near("transposed", &read(&block_on(attention.transposed(&saved, &dout)).unwrap()), &read(&known.dv));
    }
}

/// Numbers that are out of range, repeated or do not ascend are left out, and told when a result is read, with the first of them.
#[test]
fn lists_that_do_not_ascend() {
    let (n, keys, d) = (3, 100, 4);
    let q = tensor([1, 2, n, d], &vec![0.0; 2 * n * d]);
    let k = tensor([1, 2, keys, d], &vec![0.0; 2 * keys * d]);
    let v = tensor([1, 2, keys, 1], &(0..2 * keys).map(|i| (i % keys) as f32).collect::<Vec<_>>());
    let good: Vec<u32> = (0..70).chain([NONE, 3, 2]).collect();
    let whole = |bad: &[(usize, u32)]| {
        let mut tokens: Vec<u32> = good.repeat(2 * n);
        bad.iter().for_each(|&(at, token)| tokens[4 * good.len() + at] = token);
        tokens
    };
    let attention = attention(TokenListParams::default());
    // What is told, and what is in the output of an encoded call, which nobody asked: the mean of what is kept.
    let run = |tokens: &[u32]| {
        let tokens = numbers([1, 2, n, good.len()], tokens);
        let inputs = AttentionInputs::new(&q, &k, &v).with_token_lists(TokenLists { tokens: &tokens, block: 1 });
        let told = block_on(async { attention.forward_with_lse(&inputs).await?.0.read().await });
        let outputs = block_on(attention.outputs_for(&inputs, Layout::heads_first)).unwrap();
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, (&inputs, &outputs)).unwrap();
        gpu().queue().submit([encoder.finish()]);
        (told, read(&outputs.out)[4])
    };
    let mean = |kept: &dyn Fn(u32) -> bool| {
        let kept: Vec<f32> = (0..70).filter(|&t| kept(t)).map(|t| t as f32).collect();
        kept.iter().sum::<f32>() / kept.len() as f32
    };
    let (told, found) = run(&whole(&[]));
    assert!(told.is_ok() && (found - 34.5).abs() < 1e-4, "{found}");
    for (bad, says_what, kept) in [
        (vec![(66, 100)], ["tokens[0][1][1][66] is 100", "below 100, the number of keys"], mean(&|t| t != 66)),
        (vec![(5, 4)], ["tokens[0][1][1][5] is 4", "above all tokens before it"], mean(&|t| t != 5)),
        (vec![(69, 2), (40, 39)], ["tokens[0][1][1][40] is 39", "ascends"], mean(&|t| t != 40 && t != 69)),
        // One that is too far ahead hides those behind it.
        (vec![(1, 69)], ["tokens[0][1][1][2] is 2", "ascends"], 34.5),
    ] {
        let (told, found) = run(&whole(&bad));
        says(told, &says_what);
        assert!((found - kept).abs() < 1e-4, "{bad:?}: {found}, not {kept}");
    }
    assert!(run(&whole(&[])).0.is_ok());
}

#[test]
fn bad_input() {
    let [q, k] = [40, 60].map(|n| tensor([2, 4, n, 8], &random(1, 2 * 4 * n * 8)));
    let tokens = numbers([2, 4, 5, 6], &vec![NONE; 240]);
    let lists = |block| TokenLists { tokens: &tokens, block };
    let inputs = AttentionInputs::new(&q, &k, &k);
    let attention = attention(TokenListParams::causal());
    let run = |inputs: &AttentionInputs| block_on(attention.forward_with_lse(inputs));
    assert!(run(&inputs.with_token_lists(lists(8))).is_ok());
    says(run(&inputs), &["token_lists is unset", "set"]);
    for (block, what) in [(0, "block is 0"), (12, "block is 12")] {
        says(run(&inputs.with_token_lists(lists(block))), &["token_lists.", what, "power of two"]);
    }
    says(run(&inputs.with_token_lists(lists(16))), &["token_lists.tokens.shape is [2, 4, 5, 6]", "3, any number"]);
    let odd = numbers([2, 3, 5, 6], &vec![NONE; 180]);
    let odd = inputs.with_token_lists(TokenLists { tokens: &odd, block: 8 });
    says(run(&odd), &["token_lists.tokens.shape is [2, 3, 5, 6]", "4 or 1"]);
    let floats = tensor([2, 4, 5, 6], &vec![0.0; 240]);
    let floats = inputs.with_token_lists(TokenLists { tokens: &floats, block: 8 });
    says(run(&floats), &["token_lists.tokens.dtype is f32", "u32"]);
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    says(block_on(flash.forward_with_lse(&inputs.with_token_lists(lists(8)))), &["token_lists is set", "unset"]);
    let grid = BlockGrid { batch: 2, heads: 4, queries: 40, keys: 60, block: [8, 8] };
    let mask = block_on(BlockMask::from_fn(gpu(), grid, |_, _, _, _| true)).unwrap();
    says(run(&inputs.with_token_lists(lists(8)).with_block_mask(&mask)), &["block_mask is set", "token lists"]);
    let [q, k] = [40, 60].map(|n| tensor([1, 4, n, 8], &random(1, 4 * n * 8)));
    let inputs = AttentionInputs::new(&q, &k, &k).with_offsets(&[0, 40], &[0, 60]);
    says(run(&inputs.with_token_lists(lists(8))), &["cu_seqlens_q is set", "token lists"]);
}

/// In decoding, heads that share a key head are rows of one tile, and a list has parts; prompts have tiles of few rows where lists serve few.
#[test]
fn few_rows() {
    let caps = Caps::unlimited().with(|caps| caps.kind = AdapterKind::Discrete);
    let words = |queries: usize, block: usize, heads: usize| {
        let tokens = Layout::heads_first(DType::U32, [1, heads, queries.div_ceil(block), 1024]);
        let like = |heads, n| Layout::heads_first(DType::F32, [1, heads, n, 128]);
        let shapes = Shapes::new([("q", like(32, queries)), ("k", like(8, 4096)), ("v", like(8, 4096))]);
        let shapes = shapes.tensor("token_lists.tokens", tokens).numbers("token_lists.block", [block]);
        TokenListParams::causal().plan(&caps, &shapes).expect("a plan").to_string()
    };
    for (found, known, unknown) in [
        (words(1, 1, 8), "share a key head are rows of one tile; keys in 8 parts", "64 × 64"),
        (words(1, 1, 32), "8 × 64 tiles", "share a key head"),
        (words(500, 1, 8), "8 × 64 tiles", "parts"),
        (words(500, 64, 8), "64 × 64 tiles", "parts"),
    ] {
        assert!(found.contains(known) && !found.contains(unknown), "{found}");
    }
}
