//! SeerAttention's gate.

mod common;

use common::{gpu, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{random_seer_decode_cases, random_seer_gate_cases, seer_decode_cases, seer_gate_cases};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&seer_gate_cases());
}

#[test]
fn random_cases() {
    run_all(&random_seer_gate_cases(24, 1));
}

#[test]
fn catalogue_of_decoding() {
    run_all(&seer_decode_cases());
}

#[test]
fn random_cases_of_decoding() {
    run_all(&random_seer_decode_cases(24, 1));
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("tests/data/{name}.safetensors")).expect("the repository has the file")
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(name).expect(name).data())
}

/// [batch, tokens, heads, width] of a file as a tensor.
fn tokens(file: &SafeTensors, name: &str) -> Tensor {
    let [b, n, h, d] = file.tensor(name).expect(name).shape()[..] else { panic!("tokens of four dimensions") };
    tensor([b, h, n, d], &common::heads_first(&floats(file, name), [b, h, n, d]))
}

/// [heads, features, width] of a file as a tensor.
fn weights(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    let (heads, width) = (shape[0], shape[shape.len() - 1]);
    tensor([1, heads, shape[1..shape.len() - 1].iter().product(), width], &floats(file, name))
}

fn near(found: &Tensor, expected: &[f32]) {
    let found = read(found);
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        // What is masked is −∞ here and a large negative number there.
        assert!((a - b).abs() < 1e-5 || (*a == f32::NEG_INFINITY && *b < -1e29), "{i}: {a}, not {b}");
    }
}

/// An independent implementation chooses the same blocks, and has the same target, loss and gradient.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("seer_prefill_mha_b32_thr");
    let golden = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (q_pre, k_pre, wk) = (tokens(&golden, "q_pre"), tokens(&golden, "k_pre"), weights(&golden, "gate_wk"));
    let params = SeerGateParams { block: [32, 32], selector: Selector::Threshold(0.12), ..Default::default() };
    let gate = SeerGate::new(gpu(), params).unwrap();
    let inputs = SeerGateInputs::new(&q_pre, &k_pre, &wk);
    let found = block_on(gate.forward_with_scores(&inputs)).unwrap();
    near(&found.logits, &floats(&golden, "gate_logits"));
    near(&found.scores, &floats(&golden, "gate_scores"));
    let mask: Vec<bool> = golden.tensor("mask").expect("mask").data().iter().map(|&x| x != 0).collect();
    assert_eq!(block_on(found.mask.read()).unwrap(), mask);

    // Straight into attention, in one go.
    let [q, k, v] = ["q", "k", "v"].map(|name| tokens(&golden, name));
    let params = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    let mask = block_on(gate.forward(&inputs)).unwrap();
    let attention = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
    let sparse = BlockSparseAttention::new(gpu(), params).unwrap();
    let (out, lse) = block_on(sparse.forward_with_lse(&attention)).unwrap();
    near(&out, &read(&tokens(&golden, "out")));
    near(&lse, &floats(&golden, "lse"));

    // Training.
    let dense = AttentionInputs::new(&q, &k, &v);
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&dense)).unwrap();
    let target = block_on(gate.target(&inputs, &common::BOTTOM_RIGHT, &dense, &lse)).unwrap();
    near(&target, &floats(&golden, "target"));
    let saved = block_on(gate.forward_for_training(&inputs)).unwrap();
    let loss = SeerLoss { weight: 1.0, from_row: 2 };
    let (loss, dlogits) = block_on(gate.loss(&saved, &target, loss)).unwrap();
    near(&loss, &floats(&golden, "kl"));
    // The file has the rows from the second on.
    let rows = floats(&golden, "kl_grad_logits");
    let zeros = [0.0; 2 * 8];
    let all: Vec<f32> = rows.chunks(6 * 8).flat_map(|head| [&zeros[..], head].concat()).collect();
    near(&dlogits, &all);
    let largest = rows.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(largest > 5e-3, "{largest}: the comparison would say little");
}

/// The same for decoding: the cache, the choice with and without the first block, and attention over it.
#[test]
fn an_independent_implementation_of_decoding_agrees() {
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
    let inputs = SeerDecodeInputs { q: &q_pre, compressed: &compressed, seqlens_k: &[101, 101], keys: 101 };
    let found = block_on(gate.forward_with_scores(&weights, &inputs)).unwrap();
    near(&found.logits, &floats(&golden, "gate_logits"));
    near(&found.scores, &floats(&golden, "gate_scores"));
    let mask = |name: &str| golden.tensor(name).expect(name).data().iter().map(|&x| x != 0).collect::<Vec<bool>>();
    assert_eq!(block_on(found.mask.read()).unwrap(), mask("mask"));
    let gate = SeerDecodeGate::new(gpu(), SeerDecodeGateParams { sink: true, ..params }).unwrap();
    let used = block_on(gate.forward(&weights, &inputs)).unwrap();
    assert_eq!(block_on(used.read()).unwrap(), mask("mask_used"));

    let (q, k, v) = (token("q"), tokens(&golden, "k"), tokens(&golden, "v"));
    let causal = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    let sparse = BlockSparseAttention::new(gpu(), causal).unwrap();
    let attention = AttentionInputs { block_mask: Some(&used), ..AttentionInputs::new(&q, &k, &v) };
    let words = sparse.plan(&AttentionShapes::of_inputs(&attention)).unwrap().to_string();
    assert!(words.contains("query heads that share a key head are rows of one tile"), "{words}");
    let (out, lse) = block_on(sparse.forward_with_lse(&attention)).unwrap();
    near(&out, &floats(&golden, "out"));
    near(&lse, &floats(&golden, "lse"));
    let dense = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    near(&block_on(dense.forward(&q, &k, &v)).unwrap(), &floats(&golden, "out_dense"));
    // What the best choice would have seen: the probability of each block.
    let (_, lse) = block_on(dense.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).unwrap();
    let reduction = Reduction::Max;
    let (heads, queries, keys) = (HeadGroups::OfKeyHead, QueryGroups::Blocks(1), KeyGroups::Blocks(16));
    let params = ScoreReductionParams { reduction, heads, queries, keys, ..Default::default() };
    let inputs = ScoreReductionInputs { attention: AttentionInputs::new(&q, &k, &v), lse: &lse, segments: None };
    let oracle = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
    near(&oracle.values, &floats(&golden, "oracle_block_scores"));
}

/// The target of training for decoding.
#[test]
fn an_independent_target_of_decoding_agrees() {
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

fn params() -> SeerGateParams {
    SeerGateParams { block: [16, 16], ..Default::default() }
}

fn gate(params: SeerGateParams) -> Result<SeerGate> {
    SeerGate::new(gpu(), params)
}

#[test]
fn bad_params() {
    for t in [-0.1, 1.1, f64::NAN] {
        let selector = Selector::Threshold(t);
        says(gate(SeerGateParams { selector, ..params() }), &["selector: Threshold", &t.to_string(), "within 0..=1"]);
        let selector = Selector::TopP(t);
        says(gate(SeerGateParams { selector, ..params() }), &["selector: TopP", &t.to_string(), "within 0..=1"]);
    }
    for r in [0.0, -1.0, 1.5, f64::NAN] {
        let selector = Selector::Density(r);
        says(
            gate(SeerGateParams { selector, ..params() }),
            &["selector: Density", &r.to_string(), "above 0, at most 1"],
        );
    }
    let selector = Selector::Budget(15);
    says(
        gate(SeerGateParams { selector, ..params() }),
        &["selector: Budget is 15", "at least 16, the keys of a block"],
    );
    says(gate(SeerGateParams { pool_q: vec![], ..params() }), &["pool_q is empty", "one or more of Max, Min, Avg"]);
    says(gate(SeerGateParams { pool_k: vec![], ..params() }), &["pool_k is empty"]);
    let pool_k = vec![Pool::Max, Pool::Avg, Pool::Max];
    says(gate(SeerGateParams { pool_k, ..params() }), &["pool_k[2] is Max", "each once"]);
    says(gate(SeerGateParams { block: [16, 48], ..params() }), &["block[1] is 48", "a power of two"]);
    says(gate(SeerGateParams { block: [0, 16], ..params() }), &["block[0] is 0"]);
    for theta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        says(gate(SeerGateParams { rope_theta: Some(theta), ..params() }), &["rope_theta", "finite and above 0"]);
    }
}

fn zeros(shape: [usize; 4]) -> Tensor {
    tensor(shape, &vec![0.0; shape.iter().product()])
}

#[test]
fn bad_tensors() {
    let (q, k, wk) = (zeros([1, 4, 40, 8]), zeros([1, 2, 50, 8]), zeros([1, 4, 24, 8]));
    let gate = gate(params()).unwrap();
    let run = |inputs: SeerGateInputs| block_on(gate.forward(&inputs));
    let inputs = SeerGateInputs::new(&q, &k, &wk);
    assert!(run(inputs).is_ok());
    for shape in [[1, 3, 24, 8], [2, 4, 24, 8], [1, 4, 25, 8]] {
        let wk = zeros(shape);
        says(
            run(SeerGateInputs { wk: &wk, ..inputs }),
            &["wk.shape", &format!("{shape:?}"), "[1, 4 or 2, 24, gate_dim]"],
        );
    }
    let wide = zeros([1, 4, 24, 6]);
    says(run(SeerGateInputs { wk: &wide, ..inputs }), &["wq is unset", "8 features, and gate_dim is 6"]);
    let odd = zeros([1, 4, 24, 7]);
    says(run(SeerGateInputs { wk: &odd, wq: Some(&zeros([1, 4, 8, 7])), ..inputs }), &["gate_dim) is 7", "even"]);
    says(run(SeerGateInputs { wq: Some(&zeros([1, 2, 8, 8])), ..inputs }), &["wq.shape", "[1, 4, 8, 8]"]);
    says(
        run(SeerGateInputs { k: &zeros([1, 3, 50, 8]), ..inputs }),
        &["q.shape[1] (heads_q) is 4", "multiple of heads_kv"],
    );
    says(run(SeerGateInputs { k: &zeros([1, 2, 50, 4]), ..inputs }), &["k.shape[3] (head_dim) is 4", "8, as in q"]);
    says(run(SeerGateInputs { seqlens_k: Some(&[51]), ..inputs }), &["seqlens_k[0] is 51", "at most 50"]);
    let offsets = block_on(Tensor::upload_u32(gpu(), &[0, 40])).unwrap();
    let on_gpu = CuSeqlens::Gpu { offsets: &offsets, max_seqlen: 40 };
    let packed = SeerGateInputs { cu_seqlens_q: Some(on_gpu), cu_seqlens_k: Some(on_gpu), ..inputs };
    says(run(packed), &["cu_seqlens_q is on the GPU", "on the host"]);
    let numbers = block_on(Tensor::upload_u32(gpu(), &[0; 768])).unwrap();
    let numbers = numbers.view(Layout::heads_first(DType::U32, [1, 4, 24, 8])).unwrap();
    says(run(SeerGateInputs { wk: &numbers, ..inputs }), &["wk.dtype is u32", "f32, f16 or bf16"]);
    let other = block_on(Gpu::request_with(&common::options())).unwrap();
    let foreign = block_on(Tensor::upload(&other, [1, 4, 24, 8], DType::F32, &[0.0; 768])).unwrap();
    says(run(SeerGateInputs { wk: &foreign, ..inputs }), &["wk belongs to another device"]);

    // What was prepared, and what comes.
    let chosen = zeros([1, 4, 3, 1]);
    let to = SeerGateOutputs { chosen: &chosen, logits: None, scores: None };
    let shapes = SeerGateShapes::of(gate.params(), &inputs, &to);
    says(gate.plan(&shapes), &["chosen.dtype is f32", "u32"]);
    let words = block_on(Tensor::upload_u32(gpu(), &[0; 24])).unwrap();
    let view = |shape| words.view(Layout::heads_first(DType::U32, shape)).unwrap();
    let to = SeerGateOutputs { chosen: &view([1, 4, 3, 2]), ..to };
    says(gate.plan(&SeerGateShapes::of(gate.params(), &inputs, &to)), &["chosen.shape", "[1, 4, 3, 1]"]);
    let right = view([1, 4, 3, 1]);
    let to = SeerGateOutputs { chosen: &right, ..to };
    let prepared = block_on(gate.prepare(&SeerGateShapes::of(gate.params(), &inputs, &to))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    assert!(prepared.encode(&mut encoder, &inputs, &to).is_ok());
    let logits = zeros([1, 4, 3, 4]);
    says(
        prepared.encode(&mut encoder, &inputs, &SeerGateOutputs { logits: Some(&logits), ..to }),
        &["logits is set", "unset"],
    );
    says(prepared.encode(&mut encoder, &SeerGateInputs { seqlens_q: Some(&[3]), ..inputs }, &to), &["seqlens_q"]);
    says(prepared.encode(&mut encoder, &SeerGateInputs { wq: Some(&wk), ..inputs }, &to), &["wq is set", "unset"]);

    // Training.
    let saved = block_on(gate.forward_for_training(&inputs)).unwrap();
    let loss = |target: &Tensor, loss| block_on(gate.loss(&saved, target, loss));
    says(loss(&zeros([1, 4, 3, 5]), SeerLoss::default()), &["target.shape", "[1, 4, 3, 4], as the logits"]);
    let target = zeros([1, 4, 3, 4]);
    says(loss(&target, SeerLoss { from_row: 3, ..Default::default() }), &["from_row is 3", "below 3"]);
    says(loss(&target, SeerLoss { weight: f32::NAN, ..Default::default() }), &["weight is NaN", "finite"]);
    says(block_on(gate.backward(&saved, &zeros([1, 4, 2, 4]))), &["dlogits.shape", "as the logits"]);
    says(block_on(gate.normalize(&inputs, &zeros([1, 2, 3, 4]))), &["wanted.shape"]);
    let lse = zeros([1, 4, 40, 1]);
    let small = AttentionInputs::new(&q, &q, &q);
    says(
        block_on(gate.target(&inputs, &common::BOTTOM_RIGHT, &small, &lse)),
        &["[1, 4, 3, 3]", "[1, 4, 3, 4], by the gate's q and k"],
    );
}

/// A row whose scores are not numbers chooses all that it sees, others do not mind, and what is wrong shows in attention's result.
#[test]
fn what_is_not_a_number_shows() {
    let shape = [1, 1, 64, 8];
    let [mut q, k, wk] = [1, 2, 3].map(|seed| common::random(seed, 64 * 8));
    let wk = &wk[..24 * 8];
    // An infinity stays one where nothing turns it; a maximum may lose a NaN.
    for (broken, pool, rope_theta) in [
        (f32::NAN, Pool::Avg, Some(1e4)),
        (f32::NAN, Pool::Max, None),
        (f32::NAN, Pool::Min, Some(1e4)),
        (f32::INFINITY, Pool::Avg, Some(1e4)),
        (f32::INFINITY, Pool::Avg, None),
        (f32::NEG_INFINITY, Pool::Avg, None),
    ] {
        let before = q[20 * 8];
        q[20 * 8] = broken;
        let (q_pre, k_pre, wk) = (tensor(shape, &q), tensor(shape, &k), tensor([1, 1, 24, 8], wk));
        let selector = Selector::Budget(16);
        let pool_q = vec![pool];
        let params = SeerGateParams { selector, last_rows_dense: false, causal: None, pool_q, rope_theta, ..params() };
        let gate = gate(params).unwrap();
        let found = block_on(gate.forward_with_scores(&SeerGateInputs::new(&q_pre, &k_pre, &wk))).unwrap();
        let (mask, scores) = (block_on(found.mask.read()).unwrap(), read(&found.scores));
        for row in 0..4 {
            let count = mask[row * 4..][..4].iter().filter(|&&x| x).count();
            assert_eq!(count, if row == 1 { 4 } else { 1 }, "{broken}, row {row}");
            assert_eq!(scores[row * 4..][..4].iter().all(|p| p.is_nan()), row == 1);
        }
        let sparse = BlockSparseAttention::new(gpu(), BlockSparseParams::default()).unwrap();
        let attention =
            AttentionInputs { block_mask: Some(&found.mask), ..AttentionInputs::new(&q_pre, &k_pre, &k_pre) };
        let (out, _) = block_on(sparse.forward_with_lse(&attention)).unwrap();
        for (row, out) in read(&out).chunks(8).enumerate() {
            assert_eq!(out.iter().any(|x| x.is_nan()), row == 20, "{broken}, query {row}");
        }
        q[20 * 8] = before;
    }
}

/// The same choice run after run, and whatever stands beside in the batch; of equal scores the first blocks.
#[test]
fn choices_do_not_depend_on_the_batch() {
    let (shape, each) = ([1, 1, 200, 8], 200 * 8);
    let [q, k, wk] = [4, 5, 6].map(|seed| common::random(seed, 2 * each));
    let wk = tensor([1, 1, 24, 8], &wk[..24 * 8]);
    for selector in [Selector::Threshold(0.05), Selector::TopP(0.7), Selector::Budget(48), Selector::Density(0.4)] {
        let gate = gate(SeerGateParams { selector, ..params() }).unwrap();
        let run = |q: &Tensor, k: &Tensor| {
            let found = block_on(gate.forward_with_scores(&SeerGateInputs::new(q, k, &wk))).unwrap();
            (
                block_on(found.mask.read()).unwrap(),
                common::bits(&read(&found.logits)),
                common::bits(&read(&found.scores)),
            )
        };
        let both = run(&tensor([2, 1, 200, 8], &q), &tensor([2, 1, 200, 8], &k));
        let alone = run(&tensor(shape, &q[each..]), &tensor(shape, &k[each..]));
        assert_eq!(
            (&both.0[13 * 13..], &both.1[13 * 13..], &both.2[13 * 13..]),
            (&alone.0[..], &alone.1[..], &alone.2[..])
        );
        assert_eq!(both, run(&tensor([2, 1, 200, 8], &q), &tensor([2, 1, 200, 8], &k)));
    }
    let selector = Selector::Budget(48);
    let gate = gate(SeerGateParams { selector, causal: None, last_rows_dense: false, ..params() }).unwrap();
    let mask = block_on(gate.forward(&SeerGateInputs::new(&zeros(shape), &zeros(shape), &wk))).unwrap();
    let mask = block_on(mask.read()).unwrap();
    assert!(mask.chunks(13).all(|row| row.iter().enumerate().all(|(j, &chosen)| chosen == (j < 3))));
}

#[test]
fn bad_steps_of_decoding() {
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
        &["before.len() is 1", "2, one a batch entry"],
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
    let inputs = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: &[40, 80], keys: 90 };
    let run = |inputs: SeerDecodeInputs| block_on(gate.forward(&weights, &inputs));
    assert!(run(inputs).is_ok());
    says(run(SeerDecodeInputs { seqlens_k: &[40, 91], ..inputs }), &["seqlens_k[1] is 91", "at most 90"]);
    says(
        run(SeerDecodeInputs { seqlens_k: &[40, 96], keys: 100, ..inputs }),
        &["seqlens_k[1] is 96", "compressed has 5 blocks"],
    );
    says(run(SeerDecodeInputs { seqlens_k: &[40], ..inputs }), &["seqlens_k.len() is 1"]);
    says(run(SeerDecodeInputs { q: &zeros([2, 6, 1, 8]), ..inputs }), &["wq.shape", "[1, 2, 24, 8]"]);
    says(run(SeerDecodeInputs { q: &zeros([2, 3, 1, 8]), ..inputs }), &["heads_q) is 3", "multiple of heads_kv"]);
    says(run(SeerDecodeInputs { compressed: &zeros([1, 2, 5, 8]), ..inputs }), &["compressed.shape"]);
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
    let step = block_on(gate.prepare_compression(&weights, &k, &cache, &[0], &[48])).unwrap();
    for _ in 0..2 {
        block_on(cache.write(&[7.0; 96])).unwrap();
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        step.encode(&mut encoder).unwrap();
        gpu().queue().submit([encoder.finish()]);
        assert_eq!(read(&cache), exact);
    }
    let q = tensor([1, 4, 1, 16], &common::random(9, 64));
    let inputs = SeerDecodeInputs { q: &q, compressed: &cache, seqlens_k: &[48], keys: 48 };
    let (step, mask) = block_on(gate.prepare(&weights, &inputs)).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    step.encode(&mut encoder).unwrap();
    gpu().queue().submit([encoder.finish()]);
    let same = block_on(gate.forward(&weights, &inputs)).unwrap();
    assert_eq!(block_on(mask.read()).unwrap(), block_on(same.read()).unwrap());
}
