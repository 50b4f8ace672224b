//! SeerAttention's gate for decoding.

mod common;

use common::golden::{file, floats, near, tokens, weights, zeros};
use common::{gpu, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use std::borrow::Cow;
use wgpu_attention::catalogue::{random_seer_decode_cases, seer_decode_cases};
use wgpu_attention::gate::*;
use wgpu_attention::plan::Name;
use wgpu_attention::plan::*;
use wgpu_attention::score_reduction::*;
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&seer_decode_cases());
}

#[test]
fn random_cases() {
    run_all(&random_seer_decode_cases(24, 1));
}

/// An independent implementation has the same: the cache, the choice with and without the first block, and attention over it.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("seer_decode_gqa_b16_budget");
    let golden = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    // [batch, heads, width] of one token as [batch, heads, 1, width].
    let token = |name: &str| {
        let [b, h, d] = golden.tensor(name).expect(name).shape()[..] else { panic!("a token of each sequence") };
        tensor([b, h, 1, d], &floats(&golden, name))
    };
    let norm = |name: &str| tensor([1, 1, 1, 64], &floats(&golden, name));
    let (wq, wk) = (weights(&golden, "gate_wq"), weights(&golden, "gate_wk"));
    let (norm_q, norm_k) = (norm("gate_qnorm"), norm("gate_knorm"));
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: Some(&norm_q), norm_k: Some(&norm_k) };
    let params = SeerDecodeGateParams { block: 16, selector: Selector::Budget(64), ..Default::default() };
    let gate = SeerDecodeGate::new(gpu(), params.clone()).unwrap();
    // 101 keys: a ring holds 112.
    let keys = tokens(&golden, "k_pre");
    let rows = read(&keys).chunks(101 * 64).flat_map(|head| [head, &[f32::NAN; 11 * 64]].concat()).collect::<Vec<_>>();
    let k_pre = tensor([2, 2, 112, 64], &rows);
    let compressed = tensor([2, 2, 7, 64], &[f32::NAN; 2 * 2 * 7 * 64]);
    block_on(gate.compress(&weights, &k_pre, &compressed, &[0, 0], &[50, 16])).unwrap();
    block_on(gate.compress(&weights, &k_pre, &compressed, &[50, 16], &[101, 101])).unwrap();
    let cache = read(&compressed);
    let full: Vec<f32> = cache.chunks(7 * 64).flat_map(|head| head[..6 * 64].to_vec()).collect();
    near(&tensor([2, 2, 6, 64], &full), &read(&tokens(&golden, "k_comp")));
    assert!(cache.chunks(7 * 64).all(|head| head[6 * 64..].iter().all(|x| x.is_nan())), "not written yet");

    let q_pre = token("q_pre");
    let inputs =
        SeerDecodeInputs { q: &q_pre, compressed: &compressed, seqlens_k: Seqlens::Host(&[101, 101]), keys: 101 };
    let (found, logits, scores) = block_on(gate.forward_with_scores(&weights, &inputs)).unwrap();
    near(&logits, &floats(&golden, "gate_logits"));
    near(&scores, &floats(&golden, "gate_scores"));
    let mask = |name: &str| golden.tensor(name).expect(name).data().iter().map(|&x| x != 0).collect::<Vec<bool>>();
    assert_eq!(block_on(found.read()).unwrap(), mask("mask"));
    let gate = SeerDecodeGate::new(gpu(), SeerDecodeGateParams { sink: true, ..params }).unwrap();
    let used = block_on(gate.forward(&weights, &inputs)).unwrap();
    assert_eq!(block_on(used.read()).unwrap(), mask("mask_used"));

    let (q, k, v) = (token("q"), tokens(&golden, "k"), tokens(&golden, "v"));
    let causal = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    let sparse = BlockSparseAttention::new(gpu(), causal).unwrap();
    let attention = AttentionInputs { block_mask: Some(&used), ..AttentionInputs::new(&q, &k, &v) };
    let words = sparse.plan(&Shapes::of(attention)).unwrap().to_string();
    assert!(words.contains("query heads that share a key head are rows of one tile"), "{words}");
    let (out, lse) = block_on(sparse.forward_with_lse(&attention)).unwrap();
    near(&out, &floats(&golden, "out"));
    near(&lse, &floats(&golden, "lse"));
    let dense = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    near(&block_on(dense.forward(&q, &k, &v)).unwrap(), &floats(&golden, "out_dense"));
    // What the best choice would have seen: the probability of each block.
    let (_, lse) = block_on(dense.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).unwrap();
    let reduction = Reduction::Max;
    let (heads, queries, keys) = (HeadGroups::PerKvHead, QueryGroups::Blocks(1), KeyGroups::Blocks(16));
    let params = ScoreReductionParams { reduction, heads, queries, keys, ..Default::default() };
    let inputs = ScoreReductionInputs { attention: AttentionInputs::new(&q, &k, &v), lse: &lse, segments: None };
    let oracle = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
    near(&oracle.values, &floats(&golden, "oracle_block_scores"));
}

/// The target of training for decoding.
#[test]
fn an_independent_target_agrees() {
    let bytes = file("seer_train_1d_b32");
    let golden = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v] = ["q", "k", "v"].map(|name| tokens(&golden, name));
    let inputs = AttentionInputs::new(&q, &k, &v);
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&inputs)).unwrap();
    let gate = SeerDecodeGate::new(gpu(), SeerDecodeGateParams { block: 32, ..Default::default() }).unwrap();
    let (wq, wk) = (zeros([1, 2, 128, 8]), zeros([1, 2, 192, 8]));
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: None, norm_k: None };
    let target = block_on(gate.target(&weights, &common::BOTTOM_RIGHT, &inputs, &lse)).unwrap();
    near(&target, &floats(&golden, "target"));
}

#[test]
fn bad_input() {
    let new = |params| SeerDecodeGate::new(gpu(), params);
    let params = SeerDecodeGateParams { block: 16, selector: Selector::Budget(64), ..Default::default() };
    says(new(SeerDecodeGateParams { block: 48, ..params.clone() }), &["block is 48", "a power of two"]);
    says(new(SeerDecodeGateParams { pool_k: vec![], ..params.clone() }), &["pool_k is empty"]);
    says(new(SeerDecodeGateParams { norm_epsilon: -1.0, ..params.clone() }), &["norm_epsilon is -1", "at least 0"]);
    says(
        new(SeerDecodeGateParams { selector: Selector::Budget(8), ..params.clone() }),
        &["selector: Budget is 8", "at least 16"],
    );
    let gate = new(params).unwrap();
    let (wq, wk, norm) = (zeros([1, 2, 16, 8]), zeros([1, 2, 24, 8]), zeros([1, 1, 1, 8]));
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: Some(&norm), norm_k: None };
    let (k, compressed) = (zeros([2, 2, 32, 8]), zeros([2, 2, 5, 8]));
    let compress = |weights: &SeerDecodeWeights, k: &Tensor, to: &Tensor, before: [usize; 2], after: [usize; 2]| {
        block_on(gate.compress(weights, k, to, &before, &after))
    };
    assert!(compress(&weights, &k, &compressed, [5, 31], [30, 48]).is_ok());
    assert!(compress(&weights, &k, &compressed, [70, 70], [75, 75]).is_ok());
    says(compress(&weights, &k, &compressed, [5, 31], [4, 40]), &["after[0] is 4", "at least 5, before[0]"]);
    says(
        compress(&weights, &k, &compressed, [5, 31], [5, 49]),
        &["after[1] is 49", "at most 48", "the ring of 32 rows"],
    );
    says(compress(&weights, &k, &compressed, [80, 80], [81, 96]), &["after[1] is 96", "compressed has 5 blocks"]);
    says(
        compress(&weights, &zeros([2, 2, 40, 8]), &compressed, [0; 2], [9; 2]),
        &["k.shape[2] (rows) is 40", "multiple of 16"],
    );
    says(compress(&weights, &k, &zeros([2, 2, 5, 6]), [0; 2], [9; 2]), &["compressed.shape", "[2, 2, any number, 8]"]);
    says(
        block_on(gate.compress(&weights, &k, &compressed, &[0], &[1, 1])),
        &["before.len() is 1", "2, one per batch entry"],
    );
    let wide = zeros([1, 2, 23, 8]);
    says(
        compress(&SeerDecodeWeights { wk: &wide, ..weights }, &k, &compressed, [0; 2], [9; 2]),
        &["wk.shape", "[1, 2, 24, 8]"],
    );
    let narrow = zeros([1, 1, 1, 4]);
    let wrong = SeerDecodeWeights { norm_k: Some(&narrow), ..weights };
    says(compress(&wrong, &k, &compressed, [0; 2], [9; 2]), &["norm_k.shape", "[1, 1, 1, 8]"]);

    let q = zeros([2, 4, 1, 8]);
    let inputs = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: Seqlens::Host(&[40, 80]), keys: 90 };
    let run = |inputs: SeerDecodeInputs| block_on(gate.forward(&weights, &inputs));
    assert!(run(inputs).is_ok());
    says(
        run(SeerDecodeInputs { seqlens_k: Seqlens::Host(&[40, 91]), ..inputs }),
        &["seqlens_k[1] is 91", "at most 90"],
    );
    says(
        run(SeerDecodeInputs { seqlens_k: Seqlens::Host(&[40, 96]), keys: 100, ..inputs }),
        &["seqlens_k[1] is 96", "compressed has 5 blocks"],
    );
    says(run(SeerDecodeInputs { seqlens_k: Seqlens::Host(&[40]), ..inputs }), &["seqlens_k.len() is 1"]);
    // Lengths on the GPU are told when a result is read.
    for (lengths, words) in
        [([40, 91], ["seqlens_k[1] is 91", "at most 90"]), ([96, 90], ["seqlens_k[0] is 96", "at most 90"])]
    {
        let lengths = block_on(Tensor::upload_u32(gpu(), &lengths)).unwrap();
        let mask = run(SeerDecodeInputs { seqlens_k: Seqlens::Gpu(&lengths), ..inputs }).unwrap();
        says(block_on(mask.read()), &words);
    }
    let lengths = block_on(Tensor::upload_u32(gpu(), &[40, 96])).unwrap();
    let mask = run(SeerDecodeInputs { seqlens_k: Seqlens::Gpu(&lengths), keys: 100, ..inputs }).unwrap();
    says(block_on(mask.read()), &["seqlens_k[1] is 96", "at most 95"]);
    let three = block_on(Tensor::upload_u32(gpu(), &[1; 3])).unwrap();
    says(
        run(SeerDecodeInputs { seqlens_k: Seqlens::Gpu(&three), ..inputs }),
        &["seqlens_k.shape", "one per batch entry"],
    );
    says(run(SeerDecodeInputs { q: &zeros([2, 6, 1, 8]), ..inputs }), &["wq.shape", "[1, 2, 24, 8]"]);
    says(run(SeerDecodeInputs { q: &zeros([2, 3, 1, 8]), ..inputs }), &["heads_q) is 3", "multiple of heads_kv"]);
    says(run(SeerDecodeInputs { compressed: &zeros([1, 2, 5, 8]), ..inputs }), &["compressed.shape"]);
}

/// The keys of one sequence before and after.
struct Growth([usize; 2]);

impl Call for Growth {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        vec![]
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        vec![("before".into(), Cow::from(&self.0[..1])), ("after".into(), Cow::from(&self.0[1..]))]
    }
}

/// A cache of 16 bits holds what one of 32 does, rounded; a step that was prepared is recorded as often as wanted.
#[test]
fn caches_of_16_bits_and_recorded_steps() {
    let gate = SeerDecodeGate::new(gpu(), SeerDecodeGateParams { block: 16, ..Default::default() }).unwrap();
    let [k, wk, wq] = [1, 2, 3].map(|seed| common::random(seed, 2 * 48 * 16));
    let (k, wk, wq) = (tensor([1, 2, 48, 16], &k), tensor([1, 2, 48, 16], &wk), tensor([1, 2, 32, 16], &wq[..1024]));
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: None, norm_k: None };
    let compress = |dtype| {
        let cache = block_on(Tensor::upload(gpu(), [1, 2, 3, 16], dtype, &[0.0; 96])).unwrap();
        block_on(gate.compress(&weights, &k, &cache, &[0], &[48])).unwrap();
        read(&cache)
    };
    let exact = compress(DType::F32);
    for dtype in [DType::F16, DType::Bf16] {
        assert_eq!(compress(dtype), exact.iter().map(|&x| dtype.round(x)).collect::<Vec<_>>());
    }
    let cache = zeros([1, 2, 3, 16]);
    let call = (&weights, [("k", &k), ("compressed", &cache)], Growth([0, 48]));
    let step = block_on(gate.prepare_compression(&call)).unwrap();
    for _ in 0..2 {
        block_on(cache.write(&[7.0; 96])).unwrap();
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        step.encode(&mut encoder, &call).unwrap();
        gpu().queue().submit([encoder.finish()]);
        assert_eq!(read(&cache), exact);
    }
    let q = tensor([1, 4, 1, 16], &common::random(9, 64));
    let inputs = SeerDecodeInputs { q: &q, compressed: &cache, seqlens_k: Seqlens::Host(&[48]), keys: 48 };
    let grid = gate.grid(&inputs);
    let chosen = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::U32, grid.shape()))).unwrap();
    let call = (&weights, &inputs, [("chosen", &chosen)]);
    let step = block_on(gate.prepare(call)).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    step.encode(&mut encoder, call).unwrap();
    gpu().queue().submit([encoder.finish()]);
    let mask = BlockMask::from_bits(gpu(), grid, &chosen, None).unwrap();
    let same = block_on(gate.forward(&weights, &inputs)).unwrap();
    assert_eq!(block_on(mask.read()).unwrap(), block_on(same.read()).unwrap());
    // Prepared once for all lengths.
    let lengths = block_on(Tensor::upload_u32(gpu(), &[0])).unwrap();
    let growing = SeerDecodeInputs { seqlens_k: Seqlens::Gpu(&lengths), ..inputs };
    let call = (&weights, &growing, [("chosen", &chosen)]);
    let step = block_on(gate.prepare(call)).unwrap();
    for length in [1, 16, 40, 48] {
        gpu().queue().write_buffer(lengths.buffer(), 0, &(length as u32).to_le_bytes());
        block_on(step.submit(call)).unwrap();
        block_on(step.check()).unwrap();
        let host = SeerDecodeInputs { seqlens_k: Seqlens::Host(&[length]), ..inputs };
        let same = block_on(gate.forward(&weights, &host)).unwrap();
        assert_eq!(block_on(mask.read()).unwrap(), block_on(same.read()).unwrap(), "{length}");
    }
}
