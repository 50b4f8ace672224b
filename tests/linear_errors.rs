//! Linear attention: what is refused, and in which words; which algorithm a plan names.

mod common;

use common::{gpu, random, says, tensor};
use pollster::block_on;
use wgpu_attention::backward::*;
use wgpu_attention::plan::*;
use wgpu_attention::*;

/// The algorithm that a plan names.
fn algorithm_of(plan: &Program) -> LinearAlgorithm {
    let words = plan.to_string();
    let known = [
        ("linear attention, token by token", LinearAlgorithm::Recurrent),
        ("linear attention, one pass over chunks of", LinearAlgorithm::OnePass),
        ("linear attention, three passes (", LinearAlgorithm::ThreePass),
    ];
    let found = known.into_iter().find(|(start, _)| words.starts_with(start));
    found.unwrap_or_else(|| panic!("{words}")).1
}

#[test]
fn bad_input() {
    let new = |params| LinearAttention::new(gpu(), params);
    says(new(LinearParams { scale: Some(f32::NAN), ..Default::default() }), &["scale is NaN", "finite"]);
    says(
        new(LinearParams { slopes: Some(vec![0.1, -0.1]), ..Default::default() }),
        &["slopes[1] is -0.1", "at least 0"],
    );
    let open = LinearParams { causal: false, slopes: Some(vec![0.1]), ..Default::default() };
    says(new(open), &["slopes is set", "unset where attention is not causal"]);
    says(LinearParams::lightning_slopes(4, 12, 12), &["layer is 12", "below 12"]);
    says(LinearParams::lightning_slopes(4, 0, 1), &["layers is 1", "at least 2"]);
    says(LinearParams::lightning_linear_slopes(4, 3, 3), &["layer is 3", "below 3"]);
    let zeros = |shape: [usize; 4]| tensor(shape, &vec![0.0; shape.iter().product()]);
    let (q, v, g) = (zeros([2, 4, 10, 8]), zeros([2, 2, 10, 6]), zeros([2, 4, 10, 1]));
    let run = |params, inputs: &LinearInputs| block_on(new(params).unwrap().forward_with_state(inputs));
    let inputs = LinearInputs::new(&q, &q, &v);
    let plain = LinearParams::default;
    assert!(run(plain(), &inputs).is_ok());
    let k = zeros([2, 3, 10, 8]);
    says(run(plain(), &LinearInputs { k: &k, ..inputs }), &["k.shape[1] (heads) is 3", "a divisor of 4"]);
    let k = zeros([2, 4, 10, 7]);
    says(run(plain(), &LinearInputs { k: &k, ..inputs }), &["k.shape", "[2, 4, 10, 8], to match q"]);
    says(run(plain(), &LinearInputs { g: Some(&v), ..inputs }), &["g.shape", "[2, 4, 10, 1]"]);
    let slopes = LinearParams { slopes: Some(vec![0.1; 4]), ..plain() };
    says(run(slopes, &LinearInputs { g: Some(&g), ..inputs }), &["g is set", "unset, as the params have slopes"]);
    says(run(LinearParams { slopes: Some(vec![0.1; 3]), ..plain() }, &inputs), &["slopes.len() is 3", "4, one per"]);
    let open = LinearParams { causal: false, ..plain() };
    says(run(open, &LinearInputs { g: Some(&g), ..inputs }), &["g is set", "not causal"]);
    says(run(plain(), &LinearInputs { h0: Some(&zeros([2, 4, 8, 8])), ..inputs }), &["h0.shape", "[2, 4, 8, 6]"]);
    says(
        run(plain(), &LinearInputs { seqlens: Some((&[10]).into()), ..inputs }),
        &["seqlens.len() is 1", "2, one per batch entry"],
    );
    says(
        run(plain(), &LinearInputs { seqlens: Some((&[10, 11]).into()), ..inputs }),
        &["seqlens[1] is 11", "at most 10"],
    );
    says(
        run(plain(), &LinearInputs { cu_seqlens: Some((&[0, 10]).into()), ..inputs }),
        &["q.shape[0] (batch) is 2", "1 with packed"],
    );
    let one = zeros([1, 2, 10, 8]);
    let packed = |offsets| {
        run(plain(), &LinearInputs { cu_seqlens: Some(Seqlens::Host(offsets)), ..LinearInputs::new(&one, &one, &one) })
    };
    says(packed(&[]), &["cu_seqlens.len() is 0"]);
    says(packed(&[1, 10]), &["cu_seqlens[0] is 1"]);
    says(packed(&[0, 7, 5, 10]), &["cu_seqlens[2] is 5", "at least the offset before it, 7"]);
    says(packed(&[0, 7, 11]), &["cu_seqlens[2] is 11", "at most 10"]);
    let state = zeros([2, 4, 8, 5]);
    let in_place = block_on(new(plain()).unwrap().forward_in_place(&inputs, &state));
    says(in_place, &["state.shape", "[2, 4, 8, 6]"]);
    let (state, h0) = (zeros([2, 4, 8, 6]), zeros([2, 4, 8, 6]));
    let both = LinearInputs { h0: Some(&h0), ..inputs };
    says(
        block_on(new(plain()).unwrap().forward_in_place(&both, &state)),
        &["h0 is set", "unset where the state is updated"],
    );
    // The delta rule.
    let delta = LinearParams { rule: LinearRule::Delta, ..plain() };
    let beta = zeros([2, 1, 10, 1]);
    let corrected = inputs.with_beta(&beta);
    assert!(run(delta.clone(), &corrected).is_ok());
    says(run(plain(), &corrected), &["beta is set", "unset, except for the delta rule"]);
    says(
        run(delta.clone(), &inputs.with_beta(&g.view(g.layout().clone().narrow(2, 0..9).unwrap()).unwrap())),
        &["beta.shape is [2, 4, 9, 1]", "[2, 4, 10, 1]"],
    );
    says(new(LinearParams { causal: false, ..delta.clone() }), &["causal is false", "true with the delta rule"]);
    let wide = LinearParams { chunk: Some(256), ..delta.clone() }.plan(&Caps::core(), &Shapes::of(corrected));
    says(wide, &["chunk 256 of linear attention", "maxComputeWorkgroupStorageSize"]);
    let narrow = zeros([2, 4, 10, 3]);
    says(run(plain(), &inputs.with_gates(&narrow)), &["g.shape is [2, 4, 10, 3]", "8 wide"]);
    // Feature maps and normalisers.
    let mapped = |feature_map, normalize| LinearParams { feature_map, normalize, ..plain() };
    says(new(mapped(FeatureMap::Elu1, Some(-1.0))), &["normalize is -1", "finite and at least 0"]);
    says(
        new(LinearParams { normalize: Some(1e-6), ..delta.clone() }),
        &["normalize is 0.000001", "unset with the delta rule"],
    );
    says(
        new(LinearParams { scale: Some(-1.0), ..mapped(FeatureMap::Taylor2, None) }),
        &["scale is -1", "with the Taylor map"],
    );
    let wide = zeros([2, 4, 10, 22]);
    let taylor = mapped(FeatureMap::Taylor2, None);
    says(run(taylor, &LinearInputs::new(&wide, &wide, &v)), &["features of q and k is 276", "at most 256"]);
    let sums = zeros([2, 4, 8, 1]);
    let from_sums = LinearInputs { z0: Some(&sums), ..inputs };
    says(run(plain(), &from_sums), &["z0 is set", "unset without a normaliser"]);
    says(run(mapped(FeatureMap::Elu1, Some(1e-6)), &from_sums), &["z0 is set", "where h0 is, and only there"]);
    let from_both = from_sums.with_state(&h0);
    says(run(mapped(FeatureMap::Elu1, Some(1e-6)), &from_both), &["zt is unset", "the state has both parts"]);
    says(
        run(mapped(FeatureMap::Taylor2, Some(1e-6)), &from_sums.with_state(&zeros([2, 4, 45, 6]))),
        &["z0.shape is [2, 4, 8, 1]", "[2, 4, 45, 1]"],
    );
    let normalized = new(mapped(FeatureMap::Elu1, Some(1e-6))).unwrap();
    says(
        block_on(normalized.forward_in_place(&inputs, &zeros([2, 4, 8, 6]))),
        &["z is unset", "set where the state is updated"],
    );
    says(block_on(normalized.forward_with_snapshots(&inputs)), &["snapshots is set", "unset with a normaliser"]);
    says(block_on(new(plain()).unwrap().forward_with_states(&inputs)), &["zt is set", "unset without a normaliser"]);
    // What was prepared, and what comes.
    let attention = new(plain()).unwrap();
    let o = zeros([2, 4, 10, 6]);
    let to = [("o", &o), ("state", &state)];
    let prepared = block_on(attention.prepare((&inputs, to))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    assert!(prepared.encode(&mut encoder, (&inputs, to)).is_ok());
    let written = [("o", &o), ("ht", &state)];
    says(prepared.encode(&mut encoder, (&inputs, written)), &["state is None", "set, as prepared"]);
    let gated = LinearInputs { g: Some(&g), ..inputs };
    says(prepared.encode(&mut encoder, (&gated, to)), &["g is Layout", "unset, as prepared"]);
    let padded = LinearInputs { seqlens: Some((&[3, 3]).into()), ..inputs };
    says(prepared.encode(&mut encoder, (&padded, to)), &["seqlens is [3, 3]", "as prepared: None"]);
    // Algorithms, chunks, snapshots.
    let chunk = |chunk, algorithm| LinearParams { chunk: Some(chunk), algorithm, ..plain() };
    says(new(chunk(48, None)), &["chunk is 48", "a multiple of 32"]);
    says(new(chunk(0, None)), &["chunk is 0", "a multiple of 32"]);
    says(new(chunk(288, None)), &["chunk is 288", "at most 256"]);
    let recurrent = Some(LinearAlgorithm::Recurrent);
    says(new(chunk(64, recurrent)), &["chunk is 64", "unset where the algorithm is recurrent"]);
    let caps = Caps::core();
    // What chunks need ahead is more than a buffer holds: token by token, unless chunks are asked for.
    let [tokens, beta] = [16, 1].map(|width| Layout::heads_first(DType::F32, [1, 64, 32768, width]));
    let long = Shapes::new([("q", tokens.clone()), ("k", tokens.clone()), ("v", tokens), ("beta", beta)]);
    assert!(delta.plan(&caps, &long).unwrap().to_string().contains("536870912 bytes computed ahead"));
    let asked = LinearParams { algorithm: Some(LinearAlgorithm::ThreePass), ..delta.clone() };
    says(asked.plan(&caps, &long), &["536870912", "maxBufferSize"]);
    let shapes = Shapes::of(inputs).wanted("ht");
    says(chunk(128, None).plan(&caps, &shapes), &["chunk 128 of linear attention", "needs 20496", "16384"]);
    assert_eq!(algorithm_of(&chunk(64, None).plan(&caps, &shapes).unwrap()), LinearAlgorithm::OnePass);
    assert_eq!(algorithm_of(&plain().plan(&caps, &shapes).unwrap()), LinearAlgorithm::Recurrent);
    // By heads and columns, not by the batch; on a processor by what is least work.
    for (heads, tokens, dim, kind, algorithm) in [
        (2, 32, 64, AdapterKind::Discrete, LinearAlgorithm::Recurrent),
        (2, 33, 64, AdapterKind::Discrete, LinearAlgorithm::OnePass),
        (2, 300, 64, AdapterKind::Discrete, LinearAlgorithm::ThreePass),
        (64, 300, 64, AdapterKind::Integrated, LinearAlgorithm::OnePass),
        (64, 300, 256, AdapterKind::Discrete, LinearAlgorithm::OnePass),
        (64, 300, 64, AdapterKind::Discrete, LinearAlgorithm::ThreePass),
        (2, 5000, 64, AdapterKind::Software, LinearAlgorithm::Recurrent),
    ] {
        for batch in [1, 8] {
            let layout = Layout::heads_first(DType::F32, [batch, heads, tokens, dim]);
            let shapes = Shapes::new([("q", layout.clone()), ("k", layout.clone()), ("v", layout)]);
            let caps = Caps::core().with(|caps| caps.kind = kind);
            let plan = plain().plan(&caps, &shapes).unwrap();
            assert_eq!(algorithm_of(&plan), algorithm, "{heads} heads, {tokens} tokens, {plan}");
        }
    }
    let snapshots = zeros([2, 4, 80, 6]);
    let shapes = Shapes::of((&inputs, [("o", &o), ("snapshots", &snapshots)]));
    let one_pass = LinearParams { algorithm: Some(LinearAlgorithm::OnePass), ..plain() };
    says(one_pass.plan(&caps, &shapes), &["algorithm is Some(OnePass)", "unset or recurrent"]);
    let open = LinearParams { causal: false, ..plain() };
    says(open.plan(&caps, &shapes), &["snapshots is set", "not causal"]);
    let short = Shapes::of((&inputs, [("o", &o), ("snapshots", &state)]));
    says(plain().plan(&caps, &short), &["snapshots.shape", "[2, 4, 80, 6]"]);
    let open = LinearParams { causal: false, algorithm: Some(LinearAlgorithm::OnePass), ..plain() };
    let long = Layout::heads_first(DType::F32, [1, 1, 5000, 8]);
    let shapes = Shapes::new([("q", long.clone()), ("k", long.clone()), ("v", long)]);
    says(open.plan(&caps, &shapes), &["algorithm is OnePass", "more than 4096 tokens where attention is not causal"]);
}

#[test]
fn bad_gradients() {
    let zeros = |shape: [usize; 4]| tensor(shape, &vec![0.0; shape.iter().product()]);
    let (q, v, o) = (zeros([2, 4, 10, 8]), zeros([2, 2, 10, 6]), zeros([2, 4, 10, 6]));
    let attention = LinearAttention::new(gpu(), LinearParams::default()).unwrap();
    let inputs = LinearInputs::new(&q, &q, &v);
    let run = |dout: &Tensor, dht: Option<&Tensor>| block_on(attention.backward(&inputs, dout, dht));
    assert!(run(&o, None).is_ok());
    says(run(&v, None), &["dout.shape is [2, 2, 10, 6]", "[2, 4, 10, 6]"]);
    let dht = zeros([2, 4, 6, 8]);
    says(run(&o, Some(&dht)), &["dht.shape is [2, 4, 6, 8]", "[2, 4, 8, 6]"]);
    let to = LinearGradients::new(zeros([2, 4, 10, 8]), zeros([2, 4, 10, 8]), zeros([2, 2, 10, 6]));
    let from = [("dout", &o)];
    let prepare = |to: &LinearGradients| block_on(attention.prepare_backward((&inputs, from, to)));
    let prepared = prepare(&to).unwrap();
    let with_state = LinearGradients { dh0: Some(zeros([2, 4, 8, 6])), ..to.clone() };
    says(prepare(&with_state), &["dh0 is set", "unset"]);
    let wide = LinearGradients { dv: zeros([2, 4, 10, 6]), ..to.clone() };
    says(prepare(&wide), &["dv.shape is [2, 4, 10, 6]", "[2, 2, 10, 6]"]);
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    assert!(prepared.encode(&mut encoder, (&inputs, from, &to)).is_ok());
    says(prepared.encode(&mut encoder, (&inputs, from, &with_state)), &["dh0 is Layout", "unset, as prepared"]);
    says(prepared.encode(&mut encoder, (&inputs, from, &wide)), &["dv is", "as prepared"]);
    let strided = block_on(Tensor::empty(gpu(), Layout::heads_last(DType::F32, [2, 4, 10, 8]))).unwrap();
    let strided = LinearGradients { dk: strided, ..to.clone() };
    says(prepared.encode(&mut encoder, (&inputs, from, &strided)), &["dk is", "as prepared"]);
    // An output over an input.
    let over = LinearGradients { dq: q.clone(), ..to };
    let prepared = prepare(&over).unwrap();
    says(prepared.encode(&mut encoder, (&inputs, from, &over)), &["dq is bytes", "apart from"]);
}

/// Lengths and offsets on the GPU: what is wrong with them is clamped, and told when a result is read.
#[test]
fn wrong_offsets_on_the_gpu_are_told_when_a_result_is_read() {
    let x = tensor([1, 1, 10, 4], &random(1, 40));
    let attention = LinearAttention::new(gpu(), LinearParams::default()).unwrap();
    let up = |values: &[u32]| block_on(Tensor::upload_u32(gpu(), values)).unwrap();
    let run = |inputs: LinearInputs| block_on(async { attention.forward(&inputs).await?.read().await });
    let plain = LinearInputs::new(&x, &x, &x);
    let offsets = up(&[0, 4, 10]);
    assert!(run(plain.with_offsets(&offsets)).is_ok());
    for (values, longest, words) in [
        (&[0, 5, 3][..], None, ["cu_seqlens[2] is 3", "at least"]),
        (&[1, 5], None, ["cu_seqlens[0] is 1", "0"]),
        (&[0, 5, 11], None, ["cu_seqlens[2] is 11", "at most 10"]),
        (&[0, 7, 9], Some(6), ["cu_seqlens[1]", "6"]),
    ] {
        let wrong = up(values);
        says(run(LinearInputs { max_seqlen: longest, ..plain.with_offsets(&wrong) }), &words);
    }
    let long = up(&[11]);
    says(run(plain.with_lengths(&long)), &["seqlens[0] is 11", "at most 10"]);
    says(run(plain.with_lengths(&offsets)), &["seqlens.shape is [1, 1, 1, 3]", "one per batch entry"]);
    says(run(plain.with_offsets(&x)), &["cu_seqlens.dtype is f32", "u32"]);
    let host = LinearInputs { max_seqlen: Some(5), ..plain.with_offsets(&[0, 5, 10]) };
    says(run(host), &["max_seqlen is 5", "on the GPU"]);
    let many = LinearInputs { max_seqlen: Some(11), ..plain.with_offsets(&offsets) };
    says(run(many), &["max_seqlen is 11", "at most 10"]);
}
