//! Transposed weights: an independent implementation, the gradient of values of every family, and what is refused.

mod common;

use common::golden::{file, floats};
use common::{gpu, random, ratio, read, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::plan::AttentionParams;
use wgpu_attention::*;

fn of_file(file: &SafeTensors, name: &str) -> Tensor {
    let shape: [usize; 4] = file.tensor(name).expect(name).shape().try_into().expect("four dimensions");
    tensor(shape, &floats(file, name))
}

#[track_caller]
fn near(what: &str, found: &Tensor, known: &[f32], bound: f64) {
    let ratio = ratio(&read(found), known);
    assert!(ratio < bound, "{what}: {ratio}");
}

/// `tests/data/transposed_gqa.safetensors`, with its gradients.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("transposed_gqa");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, u, dout] = ["q", "k", "u", "dout"].map(|name| of_file(&file, name));
    let attention = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    // The gradient of `out` as values: the output is du, and the backward pass with u gives dq and dk.
    let (du, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&q, &k, &dout))).unwrap();
    near("du", &du, &floats(&file, "du"), 1e-6);
    let out = block_on(attention.transposed(&saved, &u)).unwrap();
    assert_eq!(out.shape(), [2, 2, 55, 24]);
    near("out", &out, &floats(&file, "out"), 1e-6);
    let gradients = block_on(attention.backward(&saved, &u)).unwrap();
    near("dq", &gradients.dq, &floats(&file, "dq"), 5e-6);
    near("dk", &gradients.dk, &floats(&file, "dk"), 5e-6);
}

/// dv of a backward pass with the same gradient of the output; and u of another width.
fn as_values<P: AttentionParams>(what: &str, params: P, inputs: &AttentionInputs) {
    let attention = Attention::new(gpu(), params).unwrap();
    let (out, saved) = block_on(attention.forward_for_training(inputs)).unwrap();
    let [batch, heads, rows, width] = out.shape();
    let values = random(9, batch * heads * rows * width);
    let dout = tensor(out.shape(), &values);
    let dv = read(&block_on(attention.backward(&saved, &dout)).unwrap().dv);
    near(what, &block_on(attention.transposed(&saved, &dout)).unwrap(), &dv, 1e-6);
    // Its first column alone.
    let first: Vec<f32> = values.chunks(width).map(|row| row[0]).collect();
    let found = block_on(attention.transposed(&saved, &tensor([batch, heads, rows, 1], &first))).unwrap();
    let known: Vec<f32> = dv.chunks(width).map(|row| row[0]).collect();
    near(&format!("{what}, one column"), &found, &known, 1e-6);
}

#[test]
fn it_is_the_gradient_of_values() {
    let (h, n, d) = (4, 70, 12);
    let q = tensor([1, h, n, d], &random(1, h * n * d));
    let [k, v] = [2, 3].map(|seed| tensor([1, 2, n, d], &random(seed, 2 * n * d)));
    let inputs = AttentionInputs::new(&q, &k, &v);
    let bias = tensor([1, h, n, n], &random(4, h * n * n));
    let capped = FlashParams { softcap: Some(2.0), ..FlashParams::causal() };
    as_values("bias, softcap", capped, &AttentionInputs { bias: Some(&bias), ..inputs });
    let offsets: &[usize] = &[0, 30, 30, 70];
    let (cu_seqlens_q, cu_seqlens_k) = (Some(Seqlens::Host(offsets)), Some(Seqlens::Host(offsets)));
    as_values("packed", FlashParams::causal(), &AttentionInputs { cu_seqlens_q, cu_seqlens_k, ..inputs });
    as_values("lengths", FlashParams::default(), &AttentionInputs { seqlens_k: Some(Seqlens::Host(&[41])), ..inputs });
    let hook = Hook::new(
        "far",
        "fn far(s: f32, at: Position) -> f32 { return s - 0.1 * f32(at.key); }
        fn far_grad(s: f32, at: Position, d_out: f32) -> f32 { return d_out; }",
    );
    let hooked = FlashParams { score_mod: vec![hook.with_gradient("far_grad")], ..FlashParams::default() };
    as_values("hook", hooked, &inputs);
    let grid = BlockGrid::of(&q, &k, [16, 32]);
    let mask = block_on(BlockMask::from_fn(gpu(), grid, |_, h, i, j| (h + i + j) % 2 == 0)).unwrap();
    as_values("blocks", BlockSparseParams::default(), &inputs.with_block_mask(&mask));
    let axes = vec![NeighborhoodAxis::new(7, 3), NeighborhoodAxis::new(10, 5)];
    as_values("neighborhood", NeighborhoodParams { axes, ..Default::default() }, &inputs);
}

/// Prepared, of other types; queries that are not there; a wrong length on the GPU is told by the program itself.
#[test]
fn prepared_and_checked() {
    let (n, d) = (20, 8);
    let [q, k] = [1, 2].map(|seed| tensor([1, 2, n, d], &random(seed, 2 * n * d)));
    let attention = FlashAttention::new(gpu(), FlashParams::causal()).unwrap();
    let (out, lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&q, &k, &k))).unwrap();
    let half = block_on(Tensor::upload(gpu(), out.shape(), DType::F16, &random(3, 2 * n * d))).unwrap();
    let to = block_on(Tensor::empty(gpu(), Layout::heads_last(DType::Bf16, out.shape()))).unwrap();
    let call = [("q", &q), ("k", &k), ("lse", &lse), ("u", &half), ("out", &to)];
    let prepared = block_on(attention.prepare_transposed(plan::Shapes::of(call))).unwrap();
    block_on(prepared.submit(&call)).unwrap();
    let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&q, &k, &k))).unwrap();
    let known = read(&block_on(attention.backward(&saved, &half)).unwrap().dv);
    near("bf16", &to, &known, 5e-3);
    let none = tensor([1, 2, 0, d], &[]);
    let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&none, &k, &k))).unwrap();
    let found = read(&block_on(attention.transposed(&saved, &none)).unwrap());
    assert!(found.len() == 2 * n * d && found.iter().all(|x| *x == 0.0));
    let long = block_on(Tensor::upload_u32(gpu(), &[21])).unwrap();
    let to = tensor([1, 2, n, d], &vec![0.0; 2 * n * d]);
    let call = [("q", &q), ("k", &k), ("lse", &lse), ("u", &q), ("out", &to), ("seqlens_k", &long)];
    let prepared = block_on(attention.prepare_transposed(plan::Shapes::of(call))).unwrap();
    block_on(prepared.submit(&call)).unwrap();
    says(block_on(prepared.check()), &["seqlens_k[0] is 21", "at most 20"]);
}

#[test]
fn bad_input() {
    let x = tensor([1, 2, 5, 8], &random(1, 80));
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&x, &x, &x))).unwrap();
    let run = |u: &Tensor| block_on(attention.transposed(&saved, u));
    assert!(run(&x).is_ok());
    says(run(&tensor([1, 2, 4, 8], &[0.0; 64])), &["u.shape is [1, 2, 4, 8]", "[1, 2, 5, 8]"]);
    says(run(&tensor([1, 2, 5, 257], &[0.0; 2570])), &["u.shape[3] (width) is 257", "within 1..=256"]);
    let more = AttentionInputs { additional_k: Some(&x), additional_v: Some(&x), ..AttentionInputs::new(&x, &x, &x) };
    let (_, saved) = block_on(attention.forward_for_training(&more)).unwrap();
    says(block_on(attention.transposed(&saved, &x)), &["additional_k is set", "transposed"]);
    let hook = Hook::new("plus", "fn plus(score: f32, at: Position) -> f32 { return score + 1.0; }");
    let attention = FlashAttention::new(gpu(), FlashParams { score_mod: vec![hook], ..Default::default() }).unwrap();
    let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&x, &x, &x))).unwrap();
    says(block_on(attention.transposed(&saved, &x)), &["score_mod[0].grad_entry", "`plus`"]);
}
