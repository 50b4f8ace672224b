//! Linear attention and its gradients against an independent implementation: `tests/data/`.

mod common;

use common::golden::{file, floats};
use common::{gpu, ratio, read, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::*;

/// [batch, tokens, heads, width] of a file as a tensor.
fn tokens(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    let [b, n, h] = [shape[0], shape[1], shape[2]];
    let d = shape.get(3).copied().unwrap_or(1);
    tensor([b, h, n, d], &common::heads_first(&floats(file, name), [b, h, n, d]))
}

fn near(what: &str, found: &[f32], expected: &[f32]) {
    let ratio = ratio(found, expected);
    assert!(ratio < 2e-6, "{what}: {ratio}");
}

fn near_gradient(what: &str, found: &[f32], expected: &[f32]) {
    let ratio = ratio(found, expected);
    assert!(ratio < 1e-5, "{what}: {ratio}");
}

const ALGORITHMS: [LinearAlgorithm; 3] =
    [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass];

fn states(file: &SafeTensors, name: &str) -> Tensor {
    let shape = file.tensor(name).expect(name).shape().to_vec();
    tensor([shape[0], shape[1], shape[2], shape[3]], &floats(file, name))
}

/// Outputs, states and gradients of an independent implementation: `tests/data/linear_*.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    let cases = [
        ("linear_plain", 0.125, LinearRule::Linear),
        ("lightning_tnl", 1.0, LinearRule::Linear),
        ("simple_gla", 0.125, LinearRule::Linear),
        ("gated_delta", 0.125, LinearRule::Delta),
        ("kda", 0.125, LinearRule::Delta),
    ];
    for (name, scale, rule) in cases {
        let bytes = file(name);
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let (h0, dht) = (states(&file, "h0"), states(&file, "dht"));
        let mut params = LinearParams { rule, scale: Some(scale), ..Default::default() };
        if name.ends_with("tnl") {
            let slopes = LinearParams::lightning_slopes(4, 3, 12).unwrap();
            assert!(slopes.iter().zip(floats(&file, "slope")).all(|(a, b)| (a - b).abs() < 1e-7));
            params.slopes = Some(slopes);
        }
        let [q, k, v, dout] = ["q", "k", "v", "do"].map(|name| tokens(&file, name));
        let some = |name: &str| file.tensor(name).is_ok().then(|| tokens(&file, name));
        let (g, beta) = (some("g").or(some("gk")), some("beta"));
        let inputs = LinearInputs { g: g.as_ref(), beta: beta.as_ref(), ..LinearInputs::new(&q, &k, &v) };
        let inputs = inputs.with_state(&h0);
        for algorithm in ALGORITHMS {
            let params = LinearParams { algorithm: Some(algorithm), ..params.clone() };
            let attention = LinearAttention::new(gpu(), params).unwrap();
            let (o, ht) = block_on(attention.forward_with_state(&inputs)).unwrap();
            near(&format!("{name} o, {algorithm:?}"), &read(&o), &read(&tokens(&file, "o")));
            near(&format!("{name} ht, {algorithm:?}"), &read(&ht), &floats(&file, "ht"));
        }
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let found = block_on(attention.backward(&inputs, &dout, Some(&dht))).unwrap();
        for (what, found) in [("dq", &found.dq), ("dk", &found.dk), ("dv", &found.dv)] {
            near_gradient(&format!("{name} {what}"), &read(found), &read(&tokens(&file, what)));
        }
        near_gradient(&format!("{name} dh0"), &read(found.dh0.as_ref().unwrap()), &floats(&file, "dh0"));
        assert_eq!((found.dg.is_some(), found.dslopes.is_some()), (g.is_some(), name.ends_with("tnl")));
        if let Some(dg) = &found.dg {
            let expected = some("dg").or(some("dgk")).expect("the gates' gradient");
            near_gradient(&format!("{name} dg"), &read(dg), &read(&expected));
        }
        assert_eq!(found.dbeta.is_some(), beta.is_some());
        if let Some(dbeta) = &found.dbeta {
            near_gradient(&format!("{name} dbeta"), &read(dbeta), &read(&tokens(&file, "dbeta")));
        }
    }
}

/// Mamba-2: q = C, k = B, v = dt · x, g = dt · A; D · x is the caller's to add. C and B are shared by both heads.
#[test]
fn an_independent_implementation_of_mamba_agrees() {
    let bytes = file("mamba2_ssd");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (h0, dht) = (states(&file, "h0"), states(&file, "dht"));
    let (x, dt, dout) = (tokens(&file, "x"), tokens(&file, "dt"), tokens(&file, "do"));
    let ([b, h, n, d], x, dt_values) = (x.shape(), read(&x), read(&dt));
    let (a, skip) = (floats(&file, "A"), floats(&file, "Dp"));
    let of_token = |i: usize| (dt_values[i / d], skip[i / d / n % h]);
    let v: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * of_token(i).0).collect();
    let g: Vec<f32> = dt_values.iter().enumerate().map(|(i, dt)| dt * a[i / n % h]).collect();
    let (q, k) = (tokens(&file, "Cm"), tokens(&file, "Bm"));
    let (v, g) = (tensor([b, h, n, d], &v), tensor([b, h, n, 1], &g));
    let inputs = LinearInputs { g: Some(&g), h0: Some(&h0), ..LinearInputs::new(&q, &k, &v) };
    for algorithm in ALGORITHMS {
        let params = LinearParams { scale: Some(1.0), algorithm: Some(algorithm), ..Default::default() };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let (o, ht) = block_on(attention.forward_with_state(&inputs)).unwrap();
        let o: Vec<f32> = read(&o).iter().zip(&x).enumerate().map(|(i, (o, x))| o + of_token(i).1 * x).collect();
        near(&format!("o, {algorithm:?}"), &o, &read(&tokens(&file, "o")));
        near(&format!("ht, {algorithm:?}"), &read(&ht), &floats(&file, "ht"));
    }
    let attention = LinearAttention::new(gpu(), LinearParams { scale: Some(1.0), ..Default::default() }).unwrap();
    let found = block_on(attention.backward(&inputs, &dout, Some(&dht))).unwrap();
    near_gradient("dC", &read(&found.dq), &read(&tokens(&file, "dCm")));
    near_gradient("dB", &read(&found.dk), &read(&tokens(&file, "dBm")));
    near_gradient("dh0", &read(found.dh0.as_ref().unwrap()), &floats(&file, "dh0"));
    let (dv, dg, dout) = (read(&found.dv), read(found.dg.as_ref().unwrap()), read(&dout));
    let dx: Vec<f32> =
        dv.iter().zip(&dout).enumerate().map(|(i, (dv, dy))| of_token(i).0 * dv + of_token(i).1 * dy).collect();
    near_gradient("dx", &dx, &read(&tokens(&file, "dx")));
    let of_v = |i: usize| (0..d).map(|e| dv[i * d + e] * x[i * d + e]).sum::<f32>();
    let ddt: Vec<f32> = (0..dt_values.len()).map(|i| of_v(i) + dg[i] * a[i / n % h]).collect();
    near_gradient("ddt", &ddt, &read(&tokens(&file, "ddt")));
    let mut da = vec![0.0; h];
    dg.iter().zip(&dt_values).enumerate().for_each(|(i, (dg, dt))| da[i / n % h] += f64::from(*dg) * f64::from(*dt));
    let da: Vec<f32> = da.iter().map(|&x| x as f32).collect();
    near_gradient("dA", &da, &floats(&file, "dA"));
}

/// A row of 1 + d + d² features, the pairs row by row, from ours, in which i ≤ j are folded.
fn unfolded(folded: &[f32], d: usize) -> Vec<f32> {
    let width = folded.len() / FeatureMap::Taylor2.features(d);
    let row = |n: usize| folded[n * width..][..width].iter();
    let pair = |i: usize, j: usize| {
        let (i, j) = (i.min(j), i.max(j));
        // Rows i' < i of the upper triangle have d − i' pairs.
        let n = 1 + d + i * d - i * i.saturating_sub(1) / 2 + j - i;
        let factor = if i == j { 1.0 } else { std::f32::consts::FRAC_1_SQRT_2 };
        row(n).map(move |x| factor * x)
    };
    let pairs = (0..d).flat_map(|i| (0..d).map(move |j| (i, j))).flat_map(|(i, j)| pair(i, j));
    (0..=d).flat_map(row).copied().chain(pairs).collect()
}

/// Normalised: with elu(x) + 1 and states of both kinds, and with the Taylor map, whose states are folded.
#[test]
fn an_independent_implementation_of_normalised_features_agrees() {
    for (name, feature_map, scale, epsilon) in
        [("linear_norm_elu1", FeatureMap::Elu1, 1.0, 1e-10), ("based_norm", FeatureMap::Taylor2, 0.25, 1e-6)]
    {
        let bytes = file(name);
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let [q, k, v, dout] = ["q", "k", "v", "do"].map(|name| tokens(&file, name));
        let has = |name: &str| file.tensor(name).is_ok();
        let state = |name: &str| has(name).then(|| states(&file, name));
        let sums = |name: &str| {
            let [b, h, d] = [v.shape()[0], v.shape()[1], q.shape()[3]];
            has(name).then(|| tensor([b, h, d, 1], &floats(&file, name)))
        };
        let (h0, z0, dht, dzt) = (state("h0"), sums("z0"), state("dht"), sums("dzt"));
        let inputs = LinearInputs { h0: h0.as_ref(), z0: z0.as_ref(), ..LinearInputs::new(&q, &k, &v) };
        let params =
            LinearParams { feature_map, normalize: Some(epsilon), scale: Some(scale), ..LinearParams::default() };
        let known = |found: &Tensor| match feature_map {
            FeatureMap::Taylor2 => {
                let [_, heads, rows, width] = found.shape();
                let all = read(found);
                (0..heads).flat_map(|h| unfolded(&all[h * rows * width..][..rows * width], 16)).collect()
            }
            _ => read(found),
        };
        for algorithm in ALGORITHMS {
            let params = LinearParams { algorithm: Some(algorithm), ..params.clone() };
            let attention = LinearAttention::new(gpu(), params).unwrap();
            let (o, ht, zt) = block_on(attention.forward_with_states(&inputs)).unwrap();
            near(&format!("{name} o, {algorithm:?}"), &read(&o), &read(&tokens(&file, "o")));
            near(&format!("{name} ht, {algorithm:?}"), &known(&ht), &floats(&file, "ht"));
            near(&format!("{name} zt, {algorithm:?}"), &known(&zt), &floats(&file, "zt"));
        }
        for algorithm in [None, Some(LinearAlgorithm::ThreePass)] {
            let attention = LinearAttention::new(gpu(), LinearParams { algorithm, ..params.clone() }).unwrap();
            let found = block_on(attention.backward_with_states(&inputs, &dout, dht.as_ref(), dzt.as_ref())).unwrap();
            for (what, found) in [("dq", &found.dq), ("dk", &found.dk), ("dv", &found.dv)] {
                near_gradient(&format!("{name} {what}"), &read(found), &read(&tokens(&file, what)));
            }
            for (what, found) in [("dh0", &found.dh0), ("dz0", &found.dz0)] {
                assert_eq!(found.is_some(), has(what));
                found
                    .iter()
                    .for_each(|found| near_gradient(&format!("{name} {what}"), &read(found), &floats(&file, what)));
            }
        }
    }
}

/// Weights 1 + s + s²/2: as linear attention with the Taylor map, and as softmax attention with a `score_mod`, with gradients.
#[test]
fn an_independent_implementation_of_taylor_weights_agrees_with_both_ways() {
    let bytes = file("taylor_two_ways");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v, dout] = ["q", "k", "v", "dout"].map(|name| states(&file, name));
    for algorithm in ALGORITHMS {
        let params = LinearParams {
            feature_map: FeatureMap::Taylor2,
            normalize: Some(0.0),
            algorithm: Some(algorithm),
            ..Default::default()
        };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let inputs = LinearInputs::new(&q, &k, &v);
        let o = block_on(attention.forward(&inputs)).unwrap();
        near(&format!("out, {algorithm:?}"), &read(&o), &floats(&file, "out"));
        let found = block_on(attention.backward(&inputs, &dout, None)).unwrap();
        for (name, found) in [("dq", &found.dq), ("dk", &found.dk), ("dv", &found.dv)] {
            near_gradient(&format!("{name}, {algorithm:?}"), &read(found), &floats(&file, name));
        }
    }
    let taylor = Hook::new(
        "taylor",
        "fn taylor(s: f32, at: Position) -> f32 { return log(1.0 + s + 0.5 * s * s); }
        fn taylor_grad(s: f32, at: Position, d_out: f32) -> f32 { return d_out * (1.0 + s) / (1.0 + s + 0.5 * s * s); }",
    )
    .with_gradient("taylor_grad");
    let attention = FlashAttention::new(gpu(), FlashParams::causal().with_score_mod(taylor)).unwrap();
    let (out, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&q, &k, &v))).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    let found = block_on(attention.backward(&saved, &dout)).unwrap();
    for (name, found) in [("dq", &found.dq), ("dk", &found.dk), ("dv", &found.dv)] {
        near_gradient(name, &read(found), &floats(&file, name));
    }
}
