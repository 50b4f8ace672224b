//! Linear attention against the recurrence in float64.

mod common;

use common::golden::{file, floats};
use common::{bits, gpu, random, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{linear_cases, random_linear_cases};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&linear_cases());
}

#[test]
fn random_cases() {
    run_all(&random_linear_cases(24, 1));
}

/// [batch, tokens, heads, width] of a file as a tensor.
fn tokens(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    let [b, n, h] = [shape[0], shape[1], shape[2]];
    let d = shape.get(3).copied().unwrap_or(1);
    tensor([b, h, n, d], &common::heads_first(&floats(file, name), [b, h, n, d]))
}

/// The root of the mean square error, over that of what is expected.
fn near(found: &Tensor, expected: &[f32]) {
    let found = read(found);
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let error = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let ratio = (error / squares(&mut expected.iter().copied())).sqrt();
    assert!(ratio < 2e-6, "{ratio}");
}

/// Outputs and states of an independent implementation: `tests/data/linear_*.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    for (name, scale) in [("linear_plain", 0.125), ("lightning_tnl", 1.0), ("simple_gla", 0.125), ("mamba2_ssd", 1.0)] {
        let bytes = file(name);
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let h0 = file.tensor("h0").expect("h0").shape().to_vec();
        let h0 = tensor([h0[0], h0[1], h0[2], h0[3]], &floats(&file, "h0"));
        let mut params = LinearParams { scale: Some(scale), ..Default::default() };
        if name.ends_with("tnl") {
            let slopes = LinearParams::lightning_slopes(4, 3, 12).unwrap();
            assert!(slopes.iter().zip(floats(&file, "slope")).all(|(a, b)| (a - b).abs() < 1e-7));
            params.slopes = Some(slopes);
        }
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let (expected, last) = (read(&tokens(&file, "o")), floats(&file, "ht"));
        if !name.ends_with("ssd") {
            let [q, k, v] = ["q", "k", "v"].map(|name| tokens(&file, name));
            let g = file.tensor("g").is_ok().then(|| tokens(&file, "g"));
            let inputs = LinearInputs { g: g.as_ref(), h0: Some(&h0), ..LinearInputs::new(&q, &k, &v) };
            let (o, ht) = block_on(attention.forward_with_state(&inputs)).unwrap();
            near(&o, &expected);
            near(&ht, &last);
            continue;
        }
        // Mamba-2: q = C, k = B, v = dt · x, g = dt · A; D · x is ours to add. C and B are shared by both heads.
        let (x, dt) = (tokens(&file, "x"), tokens(&file, "dt"));
        let ([b, h, n, d], x_values, dt_values) = (x.shape(), read(&x), read(&dt));
        let (a, skip) = (floats(&file, "A"), floats(&file, "Dp"));
        let v: Vec<f32> = x_values.iter().enumerate().map(|(i, x)| x * dt_values[i / d]).collect();
        let g: Vec<f32> = dt_values.iter().enumerate().map(|(i, dt)| dt * a[i / n % h]).collect();
        let (q, k) = (tokens(&file, "Cm"), tokens(&file, "Bm"));
        let (v, g) = (tensor([b, h, n, d], &v), tensor([b, h, n, 1], &g));
        let inputs = LinearInputs { g: Some(&g), h0: Some(&h0), ..LinearInputs::new(&q, &k, &v) };
        let (o, ht) = block_on(attention.forward_with_state(&inputs)).unwrap();
        let o: Vec<f32> =
            read(&o).iter().zip(&x_values).enumerate().map(|(i, (o, x))| o + skip[i / d / n % h] * x).collect();
        near(&tensor([b, h, n, d], &o), &expected);
        near(&ht, &last);
    }
}

/// A prompt, then token by token in place: as if all had come at once.
#[test]
fn decoding_goes_on_where_the_prompt_ended() {
    let (heads, n, d, dv) = (3, 40, 16, 20);
    let [q, k] = [1, 2].map(|seed| random(seed, heads * n * d));
    let (v, gates) = (random(3, heads * n * dv), random(4, heads * n));
    let gates: Vec<f32> = gates.iter().map(|x| -x.abs() / 5.0).collect();
    let params = LinearParams { way: Some(LinearWay::Recurrent), ..LinearParams::default() };
    let attention = LinearAttention::new(gpu(), params).unwrap();
    let part = |which: std::ops::Range<usize>| {
        let cut = |values: &[f32], d| common::tokens(values, [1, heads, n, d], which.clone());
        [cut(&q, d), cut(&k, d), cut(&v, dv), cut(&gates, 1)]
    };
    let [q_all, k_all, v_all, g_all] = part(0..n);
    let inputs = LinearInputs { g: Some(&g_all), ..LinearInputs::new(&q_all, &k_all, &v_all) };
    let (whole, last) = block_on(attention.forward_with_state(&inputs)).unwrap();
    let [q0, k0, v0, g0] = part(0..30);
    let inputs = LinearInputs { g: Some(&g0), ..LinearInputs::new(&q0, &k0, &v0) };
    let (_, state) = block_on(attention.forward_with_state(&inputs)).unwrap();
    let mut found = vec![vec![]; heads];
    for which in [30..31, 31..33, 33..40] {
        let [q, k, v, g] = part(which.clone());
        let inputs = LinearInputs { g: Some(&g), ..LinearInputs::new(&q, &k, &v) };
        let o = read(&block_on(attention.forward_in_place(&inputs, &state)).unwrap());
        for (head, o) in o.chunks(which.len() * dv).enumerate() {
            found[head].extend_from_slice(o);
        }
    }
    let expected = read(&whole);
    for (head, found) in found.iter().enumerate() {
        assert_eq!(bits(found), bits(&expected[(head * n + 30) * dv..][..10 * dv]));
    }
    assert_eq!(bits(&read(&state)), bits(&read(&last)));
}

/// The same bits run after run, and whatever stands beside; NaN stays in its sequence and head.
#[test]
fn bits_do_not_depend_on_the_batch() {
    let (n, d) = (70, 16);
    let [q, k, v] = [5, 6, 7].map(|seed| random(seed, 2 * 2 * n * d));
    let attention = LinearAttention::new(gpu(), LinearParams { slopes: Some(vec![0.1, 0.01]), ..Default::default() });
    let attention = attention.unwrap();
    let run = |values: [&[f32]; 3], batch: usize| {
        let [q, k, v] = values.map(|values| tensor([batch, 2, n, d], values));
        let (o, state) = block_on(attention.forward_with_state(&LinearInputs::new(&q, &k, &v))).unwrap();
        (bits(&read(&o)), bits(&read(&state)))
    };
    let both = run([&q, &k, &v], 2);
    let half = 2 * n * d;
    let alone = run([&q[half..], &k[half..], &v[half..]], 1);
    assert_eq!((&both.0[half..], &both.1[2 * d * d..]), (&alone.0[..], &alone.1[..]));
    assert_eq!(both, run([&q, &k, &v], 2));
    let mut broken = k.clone();
    broken[(n + 20) * d] = f32::NAN;
    let (o, _) = run([&q, &broken, &v], 2);
    for (row, values) in o.chunks(d).enumerate() {
        let nan = values.iter().any(|&x| f32::from_bits(x).is_nan());
        assert_eq!(nan, row / n == 1 && row % n >= 20, "row {row}");
    }
}

#[test]
fn wrong_gates_are_told_when_a_result_is_read() {
    let x = tensor([1, 2, 5, 4], &random(8, 40));
    let attention = LinearAttention::new(gpu(), LinearParams::default()).unwrap();
    for (value, wrong) in
        [(1e-30, true), (f32::NAN, true), (f32::INFINITY, true), (-0.0, false), (f32::NEG_INFINITY, false)]
    {
        let mut gates = vec![-0.5f32; 10];
        gates[5 + 3] = value;
        let g = tensor([1, 2, 5, 1], &gates);
        let inputs = LinearInputs { g: Some(&g), ..LinearInputs::new(&x, &x, &x) };
        let o = block_on(attention.forward(&inputs)).unwrap();
        match wrong {
            true => says(block_on(o.read()), &["g[0][1][3] is positive or NaN", "at most 0"]),
            false => assert!(read(&o).iter().all(|x| x.is_finite())),
        }
    }
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
    says(run(plain(), &LinearInputs { k: &k, ..inputs }), &["k.shape", "[2, 4, 10, 8], by q"]);
    says(run(plain(), &LinearInputs { g: Some(&v), ..inputs }), &["g.shape", "[2, 4, 10, 1]"]);
    let slopes = LinearParams { slopes: Some(vec![0.1; 4]), ..plain() };
    says(run(slopes, &LinearInputs { g: Some(&g), ..inputs }), &["g is set", "unset, as the params have slopes"]);
    says(run(LinearParams { slopes: Some(vec![0.1; 3]), ..plain() }, &inputs), &["slopes.len() is 3", "4, one a head"]);
    let open = LinearParams { causal: false, ..plain() };
    says(run(open, &LinearInputs { g: Some(&g), ..inputs }), &["g is set", "not causal"]);
    says(run(plain(), &LinearInputs { h0: Some(&zeros([2, 4, 8, 8])), ..inputs }), &["h0.shape", "[2, 4, 8, 6]"]);
    says(
        run(plain(), &LinearInputs { seqlens: Some(&[10]), ..inputs }),
        &["seqlens.len() is 1", "2, one a batch entry"],
    );
    says(run(plain(), &LinearInputs { seqlens: Some(&[10, 11]), ..inputs }), &["seqlens[1] is 11", "at most 10"]);
    says(
        run(plain(), &LinearInputs { cu_seqlens: Some(&[0, 10]), ..inputs }),
        &["q.shape[0] (batch) is 2", "1 with packed"],
    );
    let one = zeros([1, 2, 10, 8]);
    let packed =
        |offsets| run(plain(), &LinearInputs { cu_seqlens: Some(offsets), ..LinearInputs::new(&one, &one, &one) });
    says(packed(&[]), &["cu_seqlens.len() is 0"]);
    says(packed(&[1, 10]), &["cu_seqlens[0] is 1"]);
    says(packed(&[0, 7, 5, 10]), &["cu_seqlens[2] is 5", "at least the offset before it, 7"]);
    says(packed(&[0, 7, 9]), &["cu_seqlens[2] is 9", "10, the tensor's tokens"]);
    let state = zeros([2, 4, 8, 5]);
    let in_place = block_on(new(plain()).unwrap().forward_in_place(&inputs, &state));
    says(in_place, &["ht.shape", "[2, 4, 8, 6]"]);
    let (state, h0) = (zeros([2, 4, 8, 6]), zeros([2, 4, 8, 6]));
    let both = LinearInputs { h0: Some(&h0), ..inputs };
    says(
        block_on(new(plain()).unwrap().forward_in_place(&both, &state)),
        &["h0 is set", "unset where the state goes on"],
    );
    // What was prepared, and what comes.
    let attention = new(plain()).unwrap();
    let o = zeros([2, 4, 10, 6]);
    let to = LinearOutputs { o: &o, state: LinearState::InPlace(&state), snapshots: None };
    let prepared = block_on(attention.prepare(&LinearShapes::of(&inputs, &to))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    assert!(prepared.encode(&mut encoder, &inputs, &to).is_ok());
    let written = LinearOutputs { state: LinearState::Written(&state), ..to };
    says(
        prepared.encode(&mut encoder, &inputs, &written),
        &["state is in place: false", "in place: true, as prepared"],
    );
    says(
        prepared.encode(&mut encoder, &LinearInputs { g: Some(&g), ..inputs }, &to),
        &["g is set", "unset, as prepared"],
    );
    let padded = LinearInputs { seqlens: Some(&[3, 3]), ..inputs };
    says(prepared.encode(&mut encoder, &padded, &to), &["seqlens is Some([3, 3])", "as prepared"]);
}
