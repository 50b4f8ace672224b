//! `run linear`.

#[path = "common/program.rs"]
mod program;

use program::{Files, floats, integers, refuses, succeeds};
use safetensors::{Dtype, SafeTensors};

/// Linear attention, as an independent implementation has it.
#[test]
fn run_linear() {
    let files = Files::new("run-linear");
    let results = ["o", "ht", "zt", "dq", "dk", "dv", "dg", "dgk", "dbeta", "dh0", "dz0"];
    for (golden, params) in [
        ("simple_gla", r#"{"scale": 0.125}"#),
        ("gated_delta", r#"{"scale": 0.125, "rule": "delta"}"#),
        ("kda", r#"{"scale": 0.125, "rule": "delta"}"#),
        ("linear_norm_elu1", r#"{"scale": 1.0, "feature_map": "elu1", "normalize": true, "eps": 1e-10}"#),
        ("based_norm", r#"{"feature_map": "taylor2", "normalize": true}"#),
    ] {
        let params = ["--layout", "heads-last", "--params", params];
        let golden = format!("tests/data/{golden}.safetensors");
        let bytes = std::fs::read(&golden).expect("the repository has it");
        let known = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        for backend in ["gpu", "reference"] {
            let run = |to: &str, more: &[&str]| {
                succeeds(
                    &[&["run", "linear", &golden, &files.path(to), "--backend", backend], &params[..], more].concat(),
                )
            };
            run("found", &[]);
            run("back", &["--backward"]);
            // Our states of the Taylor map are folded.
            let has = |name: &str| known.tensor(name).is_ok() && !(golden.contains("based") && name.ends_with('t'));
            for name in results.into_iter().filter(|name| has(name)) {
                let (shape, found) = files.read(if name.starts_with('d') { "back" } else { "found" }, name);
                let view = known.tensor(name).expect(name);
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
                assert_eq!(shape, view.shape());
                let largest = values.iter().fold(0f32, |most, x| most.max(x.abs()));
                let near = found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 6e-6 * largest);
                assert!(near, "{golden} {backend} {name}");
            }
        }
    }
    let packed = files.write(
        "packed",
        &[
            floats("q", 1, &[30, 2, 8]),
            floats("k", 2, &[30, 1, 8]),
            floats("v", 3, &[30, 2, 12]),
            integers("cu_seqlens", &[0, 10, 10, 30]),
            ("slopes", Dtype::F32, vec![2], bytemuck::cast_slice(&[0.5f32, 0.01]).to_vec()),
        ],
    );
    let tokens = [floats("q", 1, &[1, 2, 4, 8]), floats("k", 2, &[1, 2, 4, 8]), floats("v", 3, &[1, 2, 4, 8])];
    let gates = bytemuck::cast_slice(&[-0.5f32, 0.0, -1.0, -2.0, -0.1, -0.1, 0.25, -0.1]).to_vec();
    let gated = files.write("gated", &[&tokens[..], &[("g", Dtype::F32, vec![1, 2, 4], gates)]].concat());
    for backend in ["gpu", "reference"] {
        succeeds(&["run", "linear", &packed, &files.path(backend), "--backend", backend]);
        let bad = |params: &str, words: &[&str]| {
            let output = files.path("output");
            refuses(&["run", "linear", &packed, &output, "--backend", backend, "--params", params], words);
        };
        bad(r#"{"causal": false}"#, &["slopes is set", "not causal"]);
        bad(r#"{"rule": "deltas"}"#, &["unknown variant `deltas`"]);
        bad(r#"{"normalize": true, "rule": "delta"}"#, &["normalize is 0.000001", "unset with the delta rule"]);
        bad(r#"{"chunk": 33}"#, &["chunk is 33", "a multiple of 32"]);
        refuses(&["run", "linear", &packed, &files.path("output"), "--backward"], &["do", "missing"]);
        refuses(
            &["run", "linear", &gated, &files.path("output"), "--backend", backend],
            &["g[0][1][2] is 0.25", "at most 0"],
        );
    }
    for name in ["o", "ht"] {
        let (found, known) = (files.read("gpu", name), files.read("reference", name));
        assert_eq!(found.0, if name == "o" { vec![30, 2, 12] } else { vec![3, 2, 8, 12] });
        assert!(found.1.iter().zip(&known.1).all(|(a, b)| (a - b).abs() < 2e-5), "{name}");
    }
}

/// Titans' memory with momentum, as an independent implementation has it.
#[test]
fn memory_with_momentum() {
    let files = Files::new("run-linear-momentum");
    let golden = "tests/data/titans_momentum.safetensors";
    let bytes = std::fs::read(golden).expect("the repository has it");
    let known = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for backend in ["gpu", "reference"] {
        let params = r#"{"rule": "momentum", "chunk": 1}"#;
        let run = |to: &str, more: &[&str]| {
            succeeds(
                &[&["run", "linear", golden, &files.path(to), "--backend", backend, "--params", params], more].concat(),
            );
        };
        run("found", &[]);
        run("back", &["--backward"]);
        let back = ["dq", "dk", "dv", "dalpha", "deta", "dtheta", "dm0"];
        for (from, name) in
            ["out", "m", "s"].map(|name| ("found", name)).into_iter().chain(back.map(|name| ("back", name)))
        {
            let ((shape, found), view) = (files.read(from, name), known.tensor(name).expect(name));
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
            assert_eq!(shape, view.shape(), "{name}");
            let largest = values.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 6e-6 * largest), "{backend} {name}");
        }
    }
    let tokens = [floats("q", 1, &[1, 1, 2, 4]), floats("k", 2, &[1, 1, 2, 4]), floats("v", 3, &[1, 1, 2, 4])];
    let step = |name, values: [f32; 2]| (name, Dtype::F32, vec![1, 1, 2], bytemuck::cast_slice(&values).to_vec());
    let steps = [step("alpha", [0.0, 1.5]), step("eta", [0.5, 0.5]), step("theta", [0.1, f32::INFINITY])];
    let params = ["--params", r#"{"rule": "momentum"}"#];
    let output = files.path("output");
    let refused = |steps: &[_], words: &[&str]| {
        let input = files.write("input", &[&tokens[..], steps].concat());
        refuses(&[&["run", "linear", &input, &output], &params[..]].concat(), words);
    };
    refused(&steps[..2], &["theta is missing", "momentum"]);
    refused(&steps, &["alpha[0][0][1] is 1.5", "within [0, 1]"]);
    let [_, eta, theta] = &steps;
    refused(&[step("alpha", [0.0, 1.0]), eta.clone(), theta.clone()], &["theta[0][0][1] is inf", "finite"]);
}

/// Gates by softplus and betas by a sigmoid: per token and per channel, forward and backward.
#[test]
fn activated_gates() {
    let files = Files::new("run-linear-gates");
    for channels in [vec![], vec![8]] {
        let with = |shape: &[usize]| [shape, &channels].concat();
        let tokens = [("q", 1), ("k", 2), ("v", 3), ("do", 4)].map(|(name, seed)| floats(name, seed, &[1, 2, 20, 8]));
        let gates = [
            floats(if channels.is_empty() { "g" } else { "gk" }, 5, &with(&[1, 2, 20])),
            floats("a_log", 6, &[2]),
            floats("dt_bias", 7, &with(&[2])),
            floats("beta", 8, &[1, 2, 20]),
        ];
        let input = files.write("input", &[&tokens[..], &gates].concat());
        let params = r#"{"rule": "delta", "l2_norm": true, "gate": "softplus", "beta": "sigmoid"}"#;
        let names = ["dq", "dk", "dv", if channels.is_empty() { "dg" } else { "dgk" }, "da_log", "ddt_bias", "dbeta"];
        for (more, names) in [(None, &["o", "ht"][..]), (Some("--backward"), &names)] {
            for backend in ["gpu", "reference"] {
                let (output, options) = (files.path(backend), ["--backend", backend, "--params", params]);
                let all = ["run", "linear", &input, &output].into_iter().chain(options).chain(more);
                succeeds(&all.collect::<Vec<_>>());
            }
            for name in names {
                let ((shape, found), (same, known)) = (files.read("gpu", name), files.read("reference", name));
                assert_eq!(shape, same, "{name}");
                let largest = known.iter().fold(0f32, |most, x| most.max(x.abs()));
                assert!(found.iter().zip(&known).all(|(a, b)| (a - b).abs() < 1e-5 * largest), "{name}");
            }
        }
    }
    let input = files
        .write("bare", &[floats("q", 1, &[1, 1, 4, 8]), floats("k", 2, &[1, 1, 4, 8]), floats("v", 3, &[1, 1, 4, 8])]);
    let output = files.path("output");
    for (params, words) in [
        (r#"{"gate": "softplus"}"#, ["g is missing", "softplus"]),
        (r#"{"rule": "delta", "beta": "sigmoid"}"#, ["beta is missing", "sigmoid"]),
        (r#"{"gate": "exp"}"#, ["unknown variant `exp`", "softplus"]),
    ] {
        refuses(&["run", "linear", &input, &output, "--params", params], &words);
    }
}

/// ONNX's node tests of `LinearAttention` (opset 27), as its package has them: tensors `CASE/NAME`, the params of a case in the metadata.
#[test]
fn node_tests_of_onnx() {
    let files = Files::new("run-onnx");
    let bytes = std::fs::read("tests/data/onnx_linear_attention.safetensors").expect("the repository has it");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let cases = header.metadata().as_ref().expect("params of each case");
    assert_eq!(cases.len(), 14);
    for (case, params) in cases {
        let tensor = |name: &str| file.tensor(&format!("{case}/{name}")).ok();
        let given = |name: &'static str| {
            tensor(name).map(|view| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        let inputs: Vec<_> = ["q", "k", "v", "g", "beta", "h0"].into_iter().filter_map(given).collect();
        let input = files.write("input", &inputs);
        succeeds(&["run", "linear", &input, &files.path("found"), "--layout", "heads-last", "--params", params]);
        let bound = if inputs[0].1 == Dtype::F16 { 4e-3 } else { 2e-5 };
        for name in ["o", "ht"] {
            files.write("known", &[given(name).expect("a result")]);
            let ((shape, found), (known_shape, known)) = (files.read("found", name), files.read("known", name));
            assert_eq!(shape, known_shape, "{case} {name}");
            let largest = known.iter().fold(1f32, |most, x| most.max(x.abs()));
            assert!(found.iter().zip(&known).all(|(a, b)| (a - b).abs() <= bound * largest), "{case} {name}");
        }
    }
}
