//! Titans' linear memory with momentum: the catalogue, an independent implementation, decoding, and what is refused.

mod common;

use common::golden::{file, floats};
use common::{bits, gpu, random, ratio, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::backward::LinearGradients;
use wgpu_attention::catalogue::{
    Case, LinearCase, LinearMomentumCase, linear_momentum_cases, random_linear_momentum_cases,
};
use wgpu_attention::plan::{AdapterKind, Caps, Shapes};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&linear_momentum_cases());
}

#[test]
fn random_cases() {
    run_all(&random_linear_momentum_cases(6, 1));
}

fn params(chunk: Option<usize>) -> LinearParams {
    LinearParams { rule: LinearRule::Momentum, chunk, ..LinearParams::default() }
}

fn of_file(file: &SafeTensors, name: &str) -> Tensor {
    let mut shape = file.tensor(name).expect(name).shape().to_vec();
    shape.resize(4, 1);
    tensor([shape[0], shape[1], shape[2], shape[3]], &floats(file, name))
}

/// `tests/data/titans_momentum.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("titans_momentum");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v, dout, alpha, eta, theta, m0, dm] =
        ["q", "k", "v", "dout", "alpha", "eta", "theta", "m0", "dm"].map(|name| of_file(&file, name));
    let inputs = LinearInputs::new(&q, &k, &v).with_state(&m0);
    let inputs = inputs.with_momentum(LinearMomentum::new(&alpha, &eta, &theta));
    let attention = LinearAttention::new(gpu(), params(Some(1))).unwrap();
    for algorithm in [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass] {
        let params = LinearParams { algorithm: Some(algorithm), ..params(Some(1)) };
        let attention = LinearAttention::new(gpu(), params).unwrap();
        let (o, memory, momentum) = block_on(attention.forward_with_momentum(&inputs)).unwrap();
        for (name, found) in [("out", &o), ("m", &memory), ("s", &momentum)] {
            let ratio = ratio(&read(found), &floats(&file, name));
            assert!(ratio < 2e-6, "{name}, {algorithm:?}: {ratio}");
        }
    }
    let found = block_on(attention.backward_with_momentum(&inputs, &dout, Some(&dm), None)).unwrap();
    let LinearGradients { dq, dk, dv, dalpha, deta, dtheta, dh0, ds0, .. } = found;
    assert!(ds0.is_none());
    let all = [("dq", Some(dq)), ("dk", Some(dk)), ("dv", Some(dv)), ("dm0", dh0)];
    for (name, found) in all.into_iter().chain([("dalpha", dalpha), ("deta", deta), ("dtheta", dtheta)]) {
        let ratio = ratio(&read(&found.expect(name)), &floats(&file, name));
        assert!(ratio < 1e-5, "{name}: {ratio}");
    }
}

/// Tokens go over chunks where that is asked for, by the smallest multiple of 32 from 64 on that is one of `chunk`; else one by one.
#[test]
fn ways_over_chunks() {
    let caps = Caps::unlimited().with(|caps| (caps.kind, caps.workgroup_memory) = (AdapterKind::Discrete, 32 << 10));
    let like = |width| Layout::heads_first(DType::F32, [1, 4, 600, width]);
    let shapes = ["alpha", "eta", "theta"].into_iter().fold(Shapes::default(), |all, name| all.tensor(name, like(1)));
    let shapes = ["q", "k", "v"].into_iter().fold(shapes, |all, name| all.tensor(name, like(64)));
    let words = |params: LinearParams| params.plan(&caps, &shapes).expect("a plan").to_string();
    for (chunk, of_walk) in [(None, 64), (Some(16), 64), (Some(24), 96), (Some(64), 64), (Some(128), 128)] {
        for (algorithm, known) in [(LinearAlgorithm::OnePass, "one pass"), (LinearAlgorithm::ThreePass, "three passes")]
        {
            let found = words(LinearParams { algorithm: Some(algorithm), ..params(chunk) });
            assert!(found.contains(known) && found.contains(&format!("chunks of {of_walk} tokens")), "{found}");
        }
        assert!(words(params(chunk)).contains("token by token"));
    }
}

/// Without momentum it is the gated delta rule with g = ln(1 − α), β = θ / (1 − α) and values (1 − α) v.
#[test]
fn without_momentum_it_is_the_delta_rule() {
    let (heads, n, d) = (2, 40, 16);
    let [q, v] = [1, 3].map(|seed| random(seed, heads * n * d));
    let k: Vec<f32> = random(2, heads * n * d).into_iter().map(|x| 0.3 * x).collect();
    let of = |f: &dyn Fn(usize) -> f32| tensor([1, heads, n, 1], &(0..heads * n).map(f).collect::<Vec<_>>());
    let alpha = |i: usize| 0.01 * (i % 30) as f32;
    let theta = |i: usize| 0.05 * (i % 13) as f32;
    let (alphas, zeros, thetas) = (of(&alpha), of(&|_| 0.0), of(&theta));
    let (gates, betas) = (of(&|i| (1.0 - alpha(i)).ln()), of(&|i| theta(i) / (1.0 - alpha(i))));
    let faded: Vec<f32> = v.iter().enumerate().map(|(i, v)| (1.0 - alpha(i / d)) * v).collect();
    let [q, k, v, faded] = [q, k, v, faded].map(|x| tensor([1, heads, n, d], &x));
    let steps = LinearMomentum::new(&alphas, &zeros, &thetas);
    let attention = LinearAttention::new(gpu(), params(None)).unwrap();
    let inputs = LinearInputs::new(&q, &k, &v).with_momentum(steps);
    let (o, memory, _) = block_on(attention.forward_with_momentum(&inputs)).unwrap();
    let delta = LinearParams { rule: LinearRule::Delta, scale: Some(1.0), ..LinearParams::default() };
    let inputs = LinearInputs::new(&q, &k, &faded).with_gates(&gates).with_beta(&betas);
    let found = block_on(LinearAttention::new(gpu(), delta).unwrap().forward_with_state(&inputs)).unwrap();
    for (name, ours, known) in [("o", &o, &found.0), ("state", &memory, &found.1)] {
        let ratio = ratio(&read(ours), &read(known));
        assert!(ratio < 3e-6, "{name}: {ratio}");
    }
}

/// Chunk after chunk in place, as one call, with the same bits.
#[test]
fn decoding_goes_on_with_the_same_bits() {
    let (heads, n, d) = (2, 24, 12);
    for chunk in [1, 4] {
        let all = [1, 2, 3].map(|seed| random(seed, heads * n * d).into_iter().map(|x| 0.4 * x).collect::<Vec<_>>());
        let steps =
            [4, 5, 6].map(|seed| random(seed, heads * n).into_iter().map(|x| x.abs().min(1.0)).collect::<Vec<_>>());
        let attention = LinearAttention::new(gpu(), params(Some(chunk))).unwrap();
        let part = |which: std::ops::Range<usize>| {
            let tokens = all.each_ref().map(|x| common::tokens(x, [1, heads, n, d], which.clone()));
            (tokens, steps.each_ref().map(|x| common::tokens(x, [1, heads, n, 1], which.clone())))
        };
        let run = |which, memory: &Tensor, momentum: &Tensor| {
            let ([q, k, v], [alpha, eta, theta]) = part(which);
            let inputs = LinearInputs::new(&q, &k, &v).with_momentum(LinearMomentum::new(&alpha, &eta, &theta));
            read(&block_on(attention.forward_in_place_with_momentum(&inputs, memory, momentum)).unwrap())
        };
        let states = || [(); 2].map(|()| tensor([1, heads, d, d], &vec![0.0; heads * d * d]));
        let ([memory, momentum], [again, other]) = (states(), states());
        let whole = run(0..n, &memory, &momentum);
        for first in (0..n).step_by(chunk) {
            let found = run(first..first + chunk, &again, &other);
            let known: Vec<f32> =
                (0..heads).flat_map(|h| whole[(h * n + first) * d..(h * n + first + chunk) * d].to_vec()).collect();
            assert_eq!(bits(&found), bits(&known), "chunk {chunk}, token {first}");
        }
        assert_eq!(bits(&read(&memory)), bits(&read(&again)));
        assert_eq!(bits(&read(&momentum)), bits(&read(&other)));
    }
}

/// The states of gradients are kept at other distances where 32 tokens' do not fit: the plan says which, and the results are right.
#[test]
fn segments_are_those_that_fit() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).expect("a GPU driver");
    let tokens = LinearCase { heads: [1; 3], tokens: 300, dims: (16, 16), h0: true, seed: 7, ..LinearCase::default() };
    let case = LinearMomentumCase { s0: true, backward: Some(true), ..LinearMomentumCase::of(tokens) };
    for (binding, segment) in [(128 << 20, 32), (80 << 10, 16), (64 << 10, 16)] {
        let limits = wgpu::Limits { max_storage_buffer_binding_size: binding, ..wgpu::Limits::default() };
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = block_on(adapter.request_device(&descriptor)).expect("a device with these limits");
        let gpu = Gpu::from_device(&device, &queue);
        let ready = block_on(case.ready(&gpu));
        if binding < 74 << 10 {
            says(ready, &["states", "maxStorageBufferBindingSize"]);
            continue;
        }
        let words = ready.unwrap().plan().to_string();
        assert!(words.contains(&format!("both states kept every {segment} tokens")), "{words}");
        assert!(block_on(case.run(&gpu)).unwrap().passed());
    }
}

#[test]
fn bad_input() {
    let new = |params| LinearAttention::new(gpu(), params);
    for (chunk, value) in [(0, "chunk is 0"), (257, "chunk is 257")] {
        says(new(params(Some(chunk))), &[value, "within 1..=256 with the rule momentum"]);
    }
    says(new(LinearParams { slopes: Some(vec![0.1; 2]), ..params(None) }), &["slopes is set", "alpha"]);
    says(new(LinearParams { causal: false, ..params(None) }), &["causal is false", "with momentum"]);
    says(new(LinearParams { normalize: Some(0.0), ..params(None) }), &["normalize is 0", "with momentum"]);
    let zeros = |shape: [usize; 4]| tensor(shape, &vec![0.0; shape.iter().product()]);
    let (q, step, state) = (zeros([1, 2, 5, 4]), zeros([1, 2, 5, 1]), zeros([1, 2, 4, 4]));
    let inputs = LinearInputs::new(&q, &q, &q);
    let with = inputs.with_momentum(LinearMomentum::new(&step, &step, &step));
    let run = |inputs: &LinearInputs| block_on(new(params(None)).unwrap().forward(inputs));
    assert!(run(&with).is_ok());
    says(run(&inputs), &["alpha is unset", "set"]);
    let plain = new(LinearParams::default()).unwrap();
    says(block_on(plain.forward(&with)), &["alpha is set", "except for the rule momentum"]);
    says(run(&with.with_gates(&step)), &["g is set", "alpha"]);
    says(run(&with.with_beta(&step)), &["beta is set", "except for the delta rule"]);
    for (chunk, reverse, why) in [(11, false, "no multiple of 32"), (2, true, "begin at the first token")] {
        let algorithm = Some(LinearAlgorithm::ThreePass);
        let words = format!("unset or recurrent with chunk {chunk}");
        says(new(LinearParams { algorithm, reverse, ..params(Some(chunk)) }), &["algorithm is ThreePass", &words, why]);
        let attention = new(LinearParams { reverse, ..params(Some(chunk)) }).unwrap();
        assert!(block_on(attention.forward(&with)).is_ok());
    }
    let narrow = zeros([1, 2, 4, 1]);
    let bad = LinearMomentum { eta: &narrow, ..LinearMomentum::new(&step, &step, &step) };
    says(run(&inputs.with_momentum(bad)), &["eta.shape is [1, 2, 4, 1]", "[1, 2, 5, 1]"]);
    let bad = LinearMomentum { s0: Some(&q), ..LinearMomentum::new(&step, &step, &step) };
    says(run(&inputs.with_momentum(bad)), &["s0.shape", "[1, 2, 4, 4]"]);
    let attention = new(params(None)).unwrap();
    says(block_on(attention.forward_in_place(&with, &state)), &["s is unset", "updated in place"]);
    says(block_on(attention.forward_with_snapshots(&with)), &["snapshots is set", "momentum"]);
    says(block_on(attention.summary(&with)), &["rule is momentum", "two states"]);
    says(block_on(plain.forward_with_momentum(&inputs)), &["st is set", "except for the rule momentum"]);
    says(block_on(plain.backward_with_momentum(&inputs, &q, None, Some(&state))), &["dst is set", "momentum"]);
}

/// On the GPU: clamped, and told when a result is read.
#[test]
fn steps_out_of_range() {
    let n = 5;
    let one = |x: f32, good: f32| {
        let values: Vec<f32> = (0..2 * n).map(|i| if i == n + 3 { x } else { good }).collect();
        tensor([1, 2, n, 1], &values)
    };
    let x = tensor([1, 2, n, 4], &random(1, 2 * n * 4));
    let attention = LinearAttention::new(gpu(), params(None)).unwrap();
    // What is told, and what is in the output of an encoded call, which nobody asked.
    let run = |[alpha, eta, theta]: [&Tensor; 3]| {
        let inputs = LinearInputs::new(&x, &x, &x).with_momentum(LinearMomentum::new(alpha, eta, theta));
        let told = block_on(async { attention.forward(&inputs).await?.read().await });
        let o = tensor([1, 2, n, 4], &vec![0.0; 2 * n * 4]);
        let call = (inputs, [("o", &o)]);
        let prepared = block_on(attention.prepare(&call)).unwrap();
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, call).unwrap();
        gpu().queue().submit([encoder.finish()]);
        (told, read(&o))
    };
    let good = [0.1, 0.5, 0.3];
    for (which, value, counts) in
        [(0, 1.5, 1.0), (0, f32::NAN, 0.0), (1, -0.25, 0.0), (2, -1.0, 0.0), (2, f32::INFINITY, 0.0), (1, 2.0, 1.0)]
    {
        let steps = |value: f32| [0, 1, 2].map(|i| one(if i == which { value } else { good[i] }, good[i]));
        let (bad, clamped) = (steps(value), steps(counts));
        let (told, values) = run(bad.each_ref());
        let name = ["alpha", "eta", "theta"][which];
        says(
            told,
            &[&format!("{name}[0][1][3] is"), if which < 2 { "within [0, 1]" } else { "finite and at least 0" }],
        );
        let (fine, known) = run(clamped.each_ref());
        assert!(fine.is_ok());
        assert_eq!(bits(&values), bits(&known), "{name} {value}");
    }
}
