//! SeerAttention's gate.

mod common;

use common::golden::{file, floats, near, tokens, weights, zeros};
use common::{gpu, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{random_seer_gate_cases, seer_gate_cases};
use wgpu_attention::gate::*;
use wgpu_attention::plan::*;
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&seer_gate_cases());
}

#[test]
fn random_cases() {
    run_all(&random_seer_gate_cases(24, 1));
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
    let (found, logits, scores) = block_on(gate.forward_with_scores(&inputs)).unwrap();
    near(&logits, &floats(&golden, "gate_logits"));
    near(&scores, &floats(&golden, "gate_scores"));
    let mask: Vec<bool> = golden.tensor("mask").expect("mask").data().iter().map(|&x| x != 0).collect();
    assert_eq!(block_on(found.read()).unwrap(), mask);

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
    let (loss, dlogits) = block_on(gate.loss(&saved, &target, 1.0, 2)).unwrap();
    near(&loss, &floats(&golden, "kl"));
    // The file has the rows from the second on.
    let rows = floats(&golden, "kl_grad_logits");
    let zeros = [0.0; 2 * 8];
    let all: Vec<f32> = rows.chunks(6 * 8).flat_map(|head| [&zeros[..], head].concat()).collect();
    near(&dlogits, &all);
    let largest = rows.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(largest > 5e-3, "{largest}: the comparison would say little");
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
        &["selector: Budget is 15", "at least 16, the number of keys in a block"],
    );
    says(gate(SeerGateParams { pool_q: vec![], ..params() }), &["pool_q is empty", "one or more of Max, Min, Avg"]);
    says(gate(SeerGateParams { pool_k: vec![], ..params() }), &["pool_k is empty"]);
    let pool_k = vec![Pool::Max, Pool::Avg, Pool::Max];
    says(gate(SeerGateParams { pool_k, ..params() }), &["pool_k[2] is Max", "each may occur once"]);
    says(gate(SeerGateParams { block: [16, 48], ..params() }), &["block[1] is 48", "a power of two"]);
    says(gate(SeerGateParams { block: [0, 16], ..params() }), &["block[0] is 0"]);
    for theta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        says(gate(SeerGateParams { rope_theta: Some(theta), ..params() }), &["rope_theta", "finite and above 0"]);
    }
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
    says(
        run(SeerGateInputs { seqlens_k: Some(Seqlens::Host(&[51])), ..inputs }),
        &["seqlens_k[0] is 51", "at most 50"],
    );
    let offsets = block_on(Tensor::upload_u32(gpu(), &[0, 40])).unwrap();
    let on_gpu = Seqlens::Gpu(&offsets);
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
    says(gate.plan(&Shapes::of((&inputs, [("chosen", &chosen)]))), &["chosen.dtype is f32", "u32"]);
    let words = block_on(Tensor::upload_u32(gpu(), &[0; 24])).unwrap();
    let view = |shape| words.view(Layout::heads_first(DType::U32, shape)).unwrap();
    let long = view([1, 4, 3, 2]);
    says(gate.plan(&Shapes::of((&inputs, [("chosen", &long)]))), &["chosen.shape", "[1, 4, 3, 1]"]);
    let right = view([1, 4, 3, 1]);
    let to = [("chosen", &right)];
    let prepared = block_on(gate.prepare((&inputs, to))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    assert!(prepared.encode(&mut encoder, (&inputs, to)).is_ok());
    let logits = zeros([1, 4, 3, 4]);
    says(
        prepared.encode(&mut encoder, (&inputs, to, [("logits", &logits)])),
        &["logits is Layout", "unset, as prepared"],
    );
    let padded = SeerGateInputs { seqlens_q: Some(Seqlens::Host(&[3])), ..inputs };
    says(prepared.encode(&mut encoder, (&padded, to)), &["seqlens_q is [3]", "as prepared: None"]);
    let mapped = SeerGateInputs { wq: Some(&wk), ..inputs };
    says(prepared.encode(&mut encoder, (&mapped, to)), &["wq is Layout", "unset, as prepared"]);

    // Training.
    let saved = block_on(gate.forward_for_training(&inputs)).unwrap();
    let loss = |target: &Tensor, weight, from_row| block_on(gate.loss(&saved, target, weight, from_row));
    says(loss(&zeros([1, 4, 3, 5]), 10.0, 0), &["target.shape", "[1, 4, 3, 4], like the logits"]);
    let target = zeros([1, 4, 3, 4]);
    says(loss(&target, 10.0, 3), &["from_row is 3", "below 3"]);
    says(loss(&target, f32::NAN, 0), &["weight is NaN", "finite"]);
    says(block_on(gate.backward(&saved, &zeros([1, 4, 2, 4]))), &["dlogits.shape", "like the logits"]);
    says(block_on(gate.normalize(&inputs, &zeros([1, 2, 3, 4]))), &["wanted.shape"]);
    let lse = zeros([1, 4, 40, 1]);
    let small = AttentionInputs::new(&q, &q, &q);
    says(
        block_on(gate.target(&inputs, &common::BOTTOM_RIGHT, &small, &lse)),
        &["[1, 4, 3, 3]", "[1, 4, 3, 4], to match the gate's q and k"],
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
        let (found, _, scores) = block_on(gate.forward_with_scores(&SeerGateInputs::new(&q_pre, &k_pre, &wk))).unwrap();
        let (mask, scores) = (block_on(found.read()).unwrap(), read(&scores));
        for row in 0..4 {
            let count = mask[row * 4..][..4].iter().filter(|&&x| x).count();
            assert_eq!(count, if row == 1 { 4 } else { 1 }, "{broken}, row {row}");
            assert_eq!(scores[row * 4..][..4].iter().all(|p| p.is_nan()), row == 1);
        }
        let sparse = BlockSparseAttention::new(gpu(), BlockSparseParams::default()).unwrap();
        let attention = AttentionInputs { block_mask: Some(&found), ..AttentionInputs::new(&q_pre, &k_pre, &k_pre) };
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
            let (mask, logits, scores) = block_on(gate.forward_with_scores(&SeerGateInputs::new(q, k, &wk))).unwrap();
            (block_on(mask.read()).unwrap(), common::bits(&read(&logits)), common::bits(&read(&scores)))
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
