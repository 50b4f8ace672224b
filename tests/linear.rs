//! Linear attention against the recurrence in float64.

mod common;

use common::{bits, gpu, random, ratio, read, run_all, says, tensor};
use pollster::block_on;
use wgpu_attention::catalogue::{
    LinearBackwardCase, LinearCase, linear_backward_cases, linear_cases, linear_gate_cases, linear_summary_cases,
    random_linear_backward_cases, random_linear_cases,
};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&linear_cases());
}

#[test]
fn random_cases() {
    run_all(&random_linear_cases(12, 1));
}

#[test]
fn gradients() {
    run_all(&linear_backward_cases());
}

#[test]
fn random_gradients() {
    run_all(&random_linear_backward_cases(4, 1));
}

#[test]
fn summaries_and_gates() {
    run_all(&linear_summary_cases());
    run_all(&linear_gate_cases());
}

const ALGORITHMS: [LinearAlgorithm; 3] =
    [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass];

/// Longer than what one dispatch goes over, by every algorithm; the state goes on from one to the next, wanted or not.
#[test]
fn long_sequences() {
    let n = 4096 + 70;
    let case = LinearCase { heads: [1; 3], tokens: n, dims: (8, 8), gates: Some((1.0, 500)), ..Default::default() };
    for algorithm in ALGORITHMS {
        let params = LinearParams { algorithm: Some(algorithm), ..Default::default() };
        run_all(&[LinearCase { params, h0: true, ..case.clone() }]);
        let [q, k, v] = [1, 2, 3].map(|seed| tensor([1, 1, n, 8], &random(seed, n * 8)));
        let params = LinearParams { algorithm: Some(algorithm), slopes: Some(vec![0.01]), ..Default::default() };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let inputs = LinearInputs::new(&q, &k, &v);
        // So slow that a factor off by half a unit in its last place would show.
        let params = LinearParams { algorithm: Some(algorithm), slopes: Some(vec![3.3e-5]), ..Default::default() };
        run_all(&[LinearCase { params, tokens: 1500, gates: None, ..case.clone() }]);
        let delta = LinearParams { rule: LinearRule::Delta, algorithm: Some(algorithm), ..Default::default() };
        let delta = LinearCase { params: delta, betas: Some(1), h0: true, ..case.clone() };
        run_all(&[delta.clone(), LinearCase { by_channel: true, ..delta.clone() }]);
        run_all(&[LinearCase { in_place: true, h0: false, ..delta.clone() }]);
        // Short ones beside a long one, both ways.
        for reverse in [false, true].into_iter().filter(|_| algorithm == LinearAlgorithm::ThreePass) {
            let params = LinearParams { reverse, ..delta.params.clone() };
            let sequences = vec![n, 300, 0];
            run_all(&[LinearCase { params, sequences, batch: 3, packed: true, ..delta.clone() }]);
        }
        let gla = LinearParams { algorithm: Some(algorithm), reverse: true, ..Default::default() };
        run_all(&[LinearCase { params: gla, by_channel: true, ..case.clone() }]);
        let alone = block_on(attention.forward(&inputs)).unwrap();
        let (with_state, _) = block_on(attention.forward_with_state(&inputs)).unwrap();
        assert_eq!(bits(&read(&alone)), bits(&read(&with_state)));
    }
    let backward = |case| run_all(&[LinearBackwardCase::of(case)]);
    backward(LinearCase { h0: true, ..case.clone() });
    backward(LinearCase { gates: None, tokens: 1100, ..case.clone() });
    let delta = LinearParams { rule: LinearRule::Delta, reverse: true, ..Default::default() };
    let delta = LinearCase { params: delta, betas: Some(1), h0: true, tokens: 1100, ..case.clone() };
    run_all(&[delta.clone(), LinearCase { by_channel: true, ..delta.clone() }]);
    backward(LinearCase { by_channel: true, ..delta.clone() });
    backward(delta);
    let params = LinearParams { reverse: true, ..Default::default() };
    let sequences = vec![1100, 0, 70, 1];
    backward(LinearCase { params: params.clone(), tokens: 1500, ..case.clone() });
    backward(LinearCase { params, packed: true, sequences, spare: 3, ..case.clone() });
    let params = LinearParams { causal: false, ..Default::default() };
    run_all(&[LinearCase { params, gates: None, ..case }]);
}

/// Chunks of every size that the device has the memory for; an error that names the others.
#[test]
fn chunks_of_every_size() {
    let mut cases = vec![];
    for chunk in (32..=256).step_by(32) {
        let params =
            LinearParams { chunk: Some(chunk), algorithm: Some(LinearAlgorithm::OnePass), ..Default::default() };
        let case = LinearCase { tokens: 300, dims: (40, 40), gates: Some((1.0, 20)), params, ..Default::default() };
        match case.plan(gpu().caps()) {
            Ok(_) => cases.push(case),
            Err(e) => says::<()>(Err(e), &[&format!("chunk {chunk} of linear attention"), "WorkgroupStorageSize"]),
        }
    }
    assert!(cases.len() >= 2);
    run_all(&cases);
    run_all(&cases.into_iter().map(LinearBackwardCase::of).collect::<Vec<_>>());
}

/// A state after every token, to go on from: what was read after the third of seven comes again.
#[test]
fn snapshots_roll_back() {
    for rule in [LinearRule::Linear, LinearRule::Delta] {
        snapshots_of(rule);
    }
}

fn snapshots_of(rule: LinearRule) {
    let (heads, n, d, dv) = (2, 7, 12, 20);
    let [q, k] = [1, 2].map(|seed| random(seed, heads * n * d));
    // The delta rule wants keys of unit length at most.
    let k: Vec<f32> = k.into_iter().map(|x| 0.3 * x).collect();
    let v = random(3, heads * n * dv);
    let params = LinearParams { rule, slopes: Some(vec![0.1, 0.3]), ..Default::default() };
    let attention = LinearAttention::new(gpu(), params).unwrap();
    let part = |which: std::ops::Range<usize>| {
        let cut = |values: &[f32], d| common::tokens(values, [1, heads, n, d], which.clone());
        [cut(&q, d), cut(&k, d), cut(&v, dv)]
    };
    let [q_all, k_all, v_all] = part(0..n);
    let all = LinearInputs::new(&q_all, &k_all, &v_all);
    let (o, snapshots) = block_on(attention.forward_with_snapshots(&all)).unwrap();
    assert_eq!(snapshots.shape(), [1, heads, n * d, dv]);
    let (again, last) = block_on(attention.forward_with_state(&all)).unwrap();
    assert_eq!(bits(&read(&o)), bits(&read(&again)));
    // Of 16 bits, where the caller's are.
    let half = Layout::heads_first(DType::F16, snapshots.shape());
    let (half, again) = block_on(async {
        let half = Tensor::empty(gpu(), half).await?;
        let call = (all, [("o", &again), ("snapshots", &half)]);
        let prepared = attention.prepare(&call).await?;
        prepared.submit(&call).await?;
        Ok::<_, Error>((half, again))
    })
    .unwrap();
    assert_eq!(bits(&read(&again)), bits(&read(&o)));
    let rounded: Vec<f32> = read(&snapshots).into_iter().map(|x| DType::F16.round(x)).collect();
    assert_eq!(bits(&read(&half)), bits(&rounded));
    let after = |tokens| LinearAttention::state_after(&snapshots, d, tokens).unwrap();
    assert_eq!(bits(&read(&after(n))), bits(&read(&last)));
    let [q, k, v] = part(3..n);
    let state = after(3);
    let inputs = LinearInputs { h0: Some(&state), ..LinearInputs::new(&q, &k, &v) };
    let (rest, end) = block_on(attention.forward_with_state(&inputs)).unwrap();
    for (whole, rest) in read(&o).chunks(n * dv).zip(read(&rest).chunks((n - 3) * dv)) {
        assert_eq!(bits(&whole[3 * dv..]), bits(rest));
    }
    assert_eq!(bits(&read(&end)), bits(&read(&last)));
    says(LinearAttention::state_after(&snapshots, 5, 1), &["head_dim is 5", "a divisor of 84"]);
    says(LinearAttention::state_after(&snapshots, d, 0), &["tokens is 0", "within 1..=7"]);
    says(LinearAttention::state_after(&snapshots, d, 8), &["tokens is 8", "within 1..=7"]);
}

/// A prompt, then token by token in place: as if all had come at once.
#[test]
fn decoding_goes_on_where_the_prompt_ended() {
    for rule in [LinearRule::Linear, LinearRule::Delta] {
        decoding_goes_on(rule);
    }
}

fn decoding_goes_on(rule: LinearRule) {
    let (heads, n, d, dv) = (3, 40, 16, 20);
    let [q, k] = [1, 2].map(|seed| random(seed, heads * n * d));
    // The delta rule wants keys of unit length at most.
    let k: Vec<f32> = k.into_iter().map(|x| 0.3 * x).collect();
    let (v, gates) = (random(3, heads * n * dv), random(4, heads * n));
    let gates: Vec<f32> = gates.iter().map(|x| -x.abs() / 5.0).collect();
    let params = LinearParams { rule, algorithm: Some(LinearAlgorithm::Recurrent), ..LinearParams::default() };
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

/// The same bits run after run, and whatever stands beside; NaN stays in its sequence and head, and where it is seen.
#[test]
fn bits_do_not_depend_on_the_batch() {
    let (n, d) = (300, 16);
    let [q, k, v, dout] = [5, 6, 7, 8].map(|seed| random(seed, 2 * 2 * n * d));
    let half = 2 * n * d;
    for algorithm in ALGORITHMS.map(Some).into_iter().chain([None]) {
        let params = LinearParams { slopes: Some(vec![0.1, 0.01]), algorithm, ..Default::default() };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let run = |values: [&[f32]; 3], batch: usize| {
            let [q, k, v] = values.map(|values| tensor([batch, 2, n, d], values));
            let (o, state) = block_on(attention.forward_with_state(&LinearInputs::new(&q, &k, &v))).unwrap();
            (bits(&read(&o)), bits(&read(&state)))
        };
        let both = run([&q, &k, &v], 2);
        let alone = run([&q[half..], &k[half..], &v[half..]], 1);
        assert_eq!((&both.0[half..], &both.1[2 * d * d..]), (&alone.0[..], &alone.1[..]));
        assert_eq!(both, run([&q, &k, &v], 2));
        for which in 1..3 {
            let mut broken = [q.clone(), k.clone(), v.clone()];
            broken[which][(n + 18) * d] = f32::NAN;
            let (o, _) = run(broken.each_ref().map(|values| &values[..]), 2);
            for (row, values) in o.chunks(d).enumerate() {
                let nan = values.iter().any(|&x| f32::from_bits(x).is_nan());
                assert_eq!(nan, row / n == 1 && row % n >= 18, "{algorithm:?}, row {row}, {which}");
            }
        }
    }
    let attention = LinearAttention::new(gpu(), LinearParams { slopes: Some(vec![0.1, 0.01]), ..Default::default() });
    let attention = attention.unwrap();
    let gradients = |from: usize, batch: usize| {
        let [q, k, v, dout] =
            [&q, &k, &v, &dout].map(|values| tensor([batch, 2, n, d], &values[from..][..batch * half]));
        let found = block_on(attention.backward(&LinearInputs::new(&q, &k, &v), &dout, None)).unwrap();
        [found.dq, found.dk, found.dv].map(|tensor| bits(&read(&tensor)))
    };
    let (both, alone) = (gradients(0, 2), gradients(half, 1));
    assert!(both.iter().zip(&alone).all(|(both, alone)| both[half..] == alone[..]));
    assert_eq!(both, gradients(0, 2));
    // A short entry, alone and beside a long one.
    let short = |lengths: &[usize]| {
        let batch = lengths.len();
        let [q, k, v, dout] = [&q, &k, &v, &dout].map(|values| tensor([batch, 2, n, d], &values[..batch * half]));
        let inputs = LinearInputs { seqlens: Some(Seqlens::Host(lengths)), ..LinearInputs::new(&q, &k, &v) };
        let found = block_on(attention.backward(&inputs, &dout, None)).unwrap();
        let tokens = |tensor: Tensor| read(&tensor)[..20 * d].to_vec();
        [found.dq, found.dk, found.dv].map(|tensor| bits(&tokens(tensor)))
    };
    assert_eq!(short(&[20]), short(&[20, n]));
}

/// A gate that leaves nothing: what comes after it is exactly what it would be alone, however large the state was.
#[test]
fn hard_gates_clear_the_state() {
    let (n, d) = (70, 16);
    for tokens in [8, n] {
        let [q, k, v] = [1, 2, 3].map(|seed| random(seed, tokens * d));
        let loud = |values: &[f32]| {
            values.iter().enumerate().map(|(i, x)| if i < 4 * d { 1e4 * x } else { 1e-2 * x }).collect()
        };
        let (k, v): (Vec<f32>, Vec<f32>) = (loud(&k), loud(&v));
        let gates: Vec<f32> = (0..tokens).map(|t| if t == 4 { f32::NEG_INFINITY } else { -0.1 }).collect();
        let after = |values: &[f32], width: usize| values[4 * width..].to_vec();
        let params = LinearParams { algorithm: Some(LinearAlgorithm::Recurrent), ..Default::default() };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let run = |[q, k, v, g]: [&[f32]; 4]| {
            let rows = g.len();
            let [q, k, v] = [q, k, v].map(|values| tensor([1, 1, rows, d], values));
            let g = tensor([1, 1, rows, 1], g);
            let inputs = LinearInputs { g: Some(&g), ..LinearInputs::new(&q, &k, &v) };
            read(&block_on(attention.forward(&inputs)).unwrap())
        };
        let whole = run([&q, &k, &v, &gates]);
        let alone = run([&after(&q, d), &after(&k, d), &after(&v, d), &after(&gates, 1)]);
        assert_eq!(bits(&whole[4 * d..]), bits(&alone));
    }
}

#[test]
fn wrong_gates_are_told_when_a_result_is_read() {
    let x = tensor([1, 2, 5, 4], &random(8, 40));
    for (value, wrong) in
        [(1e-30, true), (f32::NAN, true), (f32::INFINITY, true), (-0.0, false), (f32::NEG_INFINITY, false)]
    {
        let mut gates = vec![-0.5f32; 10];
        gates[5 + 3] = value;
        let g = tensor([1, 2, 5, 1], &gates);
        let inputs = LinearInputs { g: Some(&g), ..LinearInputs::new(&x, &x, &x) };
        for algorithm in ALGORITHMS {
            let attention =
                LinearAttention::new(gpu(), LinearParams { algorithm: Some(algorithm), ..Default::default() }).unwrap();
            let o = block_on(attention.forward(&inputs)).unwrap();
            let gradients = block_on(attention.backward(&inputs, &x, None)).unwrap();
            if value == f32::NEG_INFINITY {
                // Nothing of what came before is left.
                let mut gates = gates.clone();
                gates[5 + 3] = -80.0;
                let g = tensor([1, 2, 5, 1], &gates);
                let inputs = LinearInputs { g: Some(&g), ..inputs };
                let known = read(&block_on(attention.forward(&inputs)).unwrap());
                assert!(ratio(&read(&o), &known) < 2e-6);
            }
            for found in [o, gradients.dq, gradients.dg.unwrap()] {
                match wrong {
                    true => says(block_on(found.read()), &["g[0][1][3] is positive or NaN", "at most 0"]),
                    false => assert!(read(&found).iter().all(|x| x.is_finite())),
                }
            }
        }
    }
}

/// Betas out of range, and gates of channels that are: left out, and told when a result is read.
#[test]
fn wrong_betas_are_told_when_a_result_is_read() {
    let x = tensor([1, 2, 5, 4], &random(8, 40));
    let params = LinearParams { rule: LinearRule::Delta, ..Default::default() };
    let attention = LinearAttention::new(gpu(), params).unwrap();
    let shape = [1, 2, 5, 1];
    let of = |value: f32| {
        let mut betas = vec![1.0; 10];
        betas[5 + 3] = value;
        tensor(shape, &betas)
    };
    for (value, counts, wrong) in [
        (-1e-30, 0.0, true),
        (2.5, 2.0, true),
        (f32::NAN, 0.0, true),
        (f32::INFINITY, 2.0, true),
        (2.0, 2.0, false),
        (-0.0, 0.0, false),
    ] {
        let (beta, clamped) = (of(value), of(counts));
        let inputs = LinearInputs::new(&x, &x, &x).with_beta(&beta);
        let o = block_on(attention.forward(&inputs)).unwrap();
        let gradients = block_on(attention.backward(&inputs, &x, None)).unwrap();
        for found in [&o, &gradients.dq, gradients.dbeta.as_ref().unwrap()] {
            match wrong {
                true => says(block_on(found.read()), &["beta[0][1][3] is below 0, above 2 or NaN", "within [0, 2]"]),
                false => assert!(read(found).iter().all(|x| x.is_finite())),
            }
        }
        if !wrong {
            let inputs = LinearInputs::new(&x, &x, &x).with_beta(&clamped);
            assert_eq!(read(&o), read(&block_on(attention.forward(&inputs)).unwrap()));
        }
    }
    let mut gates = vec![-0.1; 40];
    gates[27] = 0.5;
    let g = tensor([1, 2, 5, 4], &gates);
    let inputs = LinearInputs::new(&x, &x, &x).with_gates(&g);
    let o = block_on(attention.forward(&inputs)).unwrap();
    let gradients = block_on(attention.backward(&inputs, &x, None)).unwrap();
    for found in [o, gradients.dq, gradients.dg.unwrap()] {
        says(block_on(found.read()), &["g[0][1][1] is positive or NaN", "at most 0"]);
    }
    // Shared by two heads each.
    let wide = tensor([1, 4, 5, 4], &random(9, 80));
    let mut gates = vec![-0.1; 10];
    gates[7] = 0.5;
    let g = tensor([1, 2, 5, 1], &gates);
    let o = block_on(attention.forward(&LinearInputs::new(&wide, &x, &x).with_gates(&g))).unwrap();
    says(block_on(o.read()), &["g[0][1][2] is positive or NaN", "at most 0"]);
}

/// A normalised call goes on where another ended: with its state and sum of keys, returned or updated in place.
#[test]
fn normalised_calls_go_on() {
    let (heads, n, d) = (2, 12, 8);
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, heads * n * d));
    let params = LinearParams { feature_map: FeatureMap::Elu1, normalize: Some(1e-6), ..LinearParams::default() };
    let attention = LinearAttention::new(gpu(), params).unwrap();
    let part = |which: std::ops::Range<usize>| {
        [&q, &k, &v].map(|values| common::tokens(values, [1, heads, n, d], which.clone()))
    };
    let [all, first, rest] = [0..n, 0..5, 5..n].map(part);
    let [whole, first, rest] = [&all, &first, &rest].map(|[q, k, v]| LinearInputs::new(q, k, v));
    let (o, last, sums) = block_on(attention.forward_with_states(&whole)).unwrap();
    let (_, state, z) = block_on(attention.forward_with_states(&first)).unwrap();
    let (then, end, end_sums) = block_on(attention.forward_with_states(&rest.with_states(&state, &z))).unwrap();
    let in_place = block_on(attention.forward_in_place_with_sums(&rest, &state, &z)).unwrap();
    assert_eq!(bits(&read(&then)), bits(&read(&in_place)));
    for (a, b) in [(&end, &last), (&end_sums, &sums), (&state, &end), (&z, &end_sums)] {
        assert!(ratio(&read(a), &read(b)) < 2e-6);
    }
    for (whole, rest) in read(&o).chunks(n * d).zip(read(&then).chunks((n - 5) * d)) {
        assert!(ratio(rest, &whole[5 * d..]) < 2e-6);
    }
}
