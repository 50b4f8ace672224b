//! `run`: forms of inputs and params.

#[path = "common/program.rs"]
mod program;

use program::{Files, agree, floats, integers, refuses, succeeds};
use safetensors::{Dtype, SafeTensors};

#[test]
fn run_takes_packed_sequences_and_a_real_model() {
    let files = Files::new("run-packed");
    let (total, h, d) = (25, 2, 8);
    let tensors = [
        floats("q", 1, &[total, h, d]),
        floats("k", 2, &[total, h, d]),
        floats("v", 3, &[total, h, d]),
        integers("cu_seqlens_q", &[0, 10, 10, 25]),
        integers("cu_seqlens_k", &[0, 4, 9, 25]),
    ];
    let input = files.write("input", &tensors);
    let params = ["--params", r#"{"causal": "bottom_right", "max_seqlen_q": 15, "max_seqlen_k": 16}"#];
    let shapes = agree(&files, &input, &params, 2e-5);
    assert_eq!(shapes, (vec![total, h, d], vec![h, total]));
    let model = "tests/data/minilm_layer3_s256.safetensors";
    let said = succeeds(&["run", "flash", model, &files.path("model")]);
    assert!(said.contains("not read: lse, out") || said.contains("not read: out, lse"), "{said}");
    let bytes = std::fs::read(model).expect("the repository has it");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for name in ["out", "lse"] {
        let expected: Vec<f32> = bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data());
        let (_, found) = files.read("model", name);
        assert!(found.iter().zip(&expected).all(|(a, b)| a == b || (a - b).abs() < 2e-5), "{name}");
    }
}

#[test]
fn doubles_are_taken_as_singles_and_causal_has_one_form() {
    let files = Files::new("run-forms");
    let single = ["q", "k", "v"].map(|name| floats(name, 1, &[1, 2, 6, 8]));
    let double = single.clone().map(|(name, _, shape, bytes)| {
        let values: Vec<f64> = bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).into_iter().map(f64::from).collect();
        (name, Dtype::F64, shape, bytemuck::cast_slice(&values).to_vec())
    });
    let inputs = [files.write("single", &single), files.write("double", &double)];
    let run = |kernel: &str, input: &str, params: &str| {
        let params = ["--params", params, "--dtype", "f32"];
        let said = succeeds(&[&["run", kernel, input, &files.path("found")], &params[..]].concat());
        (said, files.read("found", if kernel == "linear" { "o" } else { "out" }))
    };
    for (kernel, other) in [("flash", ""), ("linear", ""), ("neighborhood", r#""space": [2, 3], "window": [2, 2], "#)] {
        let params = |causal: &str| format!(r#"{{{other}"causal": {causal}}}"#);
        let (said, expected) = run(kernel, &inputs[0], &params("true"));
        assert!(!said.contains("F64"), "{said}");
        let (said, found) = run(kernel, &inputs[1], &params("\"bottom_right\""));
        assert!(said.contains("taken as F32, not F64: "), "{said}");
        assert_eq!(expected, found, "{kernel}");
        assert_ne!(run(kernel, &inputs[0], &params("false")).1, found, "{kernel}");
    }
}

/// Rows by index, as an independent implementation has them; a file with x and y serves both ways.
#[test]
fn rows_by_index() {
    let files = Files::new("run-rows");
    let golden = "tests/data/rows_by_index.safetensors";
    let bytes = std::fs::read(golden).expect("the repository has it");
    let known = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let output = files.path("out");
    for (name, params) in
        [("gathered", "{}"), ("scattered_sum", r#"{"n": 37}"#), ("scattered_mean", r#"{"n": 37, "reduce": "mean"}"#)]
    {
        for backend in ["gpu", "reference"] {
            succeeds(&["run", "rows", golden, &output, "--params", params, "--backend", backend]);
            let ((shape, found), view) = (files.read("out", "out"), known.tensor(name).expect(name));
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
            assert_eq!(shape, view.shape());
            assert!(found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6), "{name} {backend}");
        }
    }
    let bad = |params: &str, words: &[&str]| refuses(&["run", "rows", golden, &output, "--params", params], words);
    bad(r#"{"reduce": "mean"}"#, &["n is unset", "how many rows"]);
    bad(r#"{"n": 36}"#, &["index[", "is 36", "below 36"]);
    bad(r#"{"reduce": "max", "n": 37}"#, &["unknown variant `max`"]);
    refuses(&["run", "rows", golden, &output, "--backward"], &["--backward is set", "scatter by sum"]);
    // One index for all, of signed numbers.
    let shared = ("index", Dtype::I32, vec![1, 1, 3], bytemuck::cast_slice(&[2i32, -1, 0]).to_vec());
    let x = files.write("x", &[floats("x", 1, &[2, 2, 3, 2]), shared]);
    for backend in ["gpu", "reference"] {
        succeeds(&["run", "rows", &x, &output, "--backend", backend]);
        let ((shape, found), (_, values)) = (files.read("out", "out"), files.read("x", "x"));
        assert_eq!(shape, [2, 2, 3, 2]);
        let rows = values.chunks(6).flat_map(|head| [&head[4..6], &[0.0; 2], &head[..2]].concat());
        assert!(found.into_iter().eq(rows));
    }
    let y = files.write("y", &[floats("y", 1, &[1, 1, 4, 2]), integers("index", &[0, 1])]);
    refuses(&["run", "rows", &y, &output, "--params", r#"{"n": 2}"#], &["index is of shape [2]", "three dimensions"]);
}

/// Lists of tokens, as an independent implementation has them, forward and backward.
#[test]
fn token_lists() {
    let files = Files::new("run-lists");
    let golden = "tests/data/token_list_blocks_gqa.safetensors";
    let bytes = std::fs::read(golden).expect("the repository has it");
    let known = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let output = files.path("out");
    let params = ["--params", r#"{"block": 16, "causal": true}"#];
    for backend in ["gpu", "reference"] {
        for (backward, names) in [(false, &["out", "lse"][..]), (true, &["dq", "dk", "dv"])] {
            let switch: &[&str] = if backward { &["--backward"] } else { &[] };
            succeeds(&[&["run", "block-sparse", golden, &output, "--backend", backend], &params[..], switch].concat());
            for name in names {
                let ((shape, found), view) = (files.read("out", name), known.tensor(name).expect(name));
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
                assert_eq!(shape, view.shape());
                let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() < 1e-4;
                assert!(found.iter().zip(&values).all(near), "{name} {backend}");
            }
        }
    }
    let bad = |input: &str, params: &str, words: &[&str]| {
        refuses(&["run", "block-sparse", input, &output, "--params", params], words);
    };
    bad(golden, r#"{"block": 8}"#, &["token_lists.tokens.shape is [2, 2, 4, 40]", "7, any number"]);
    bad(golden, r#"{"block": 0}"#, &["token_lists.block is 0", "power of two"]);
    bad(golden, r#"{"block": [16, 16]}"#, &["--params", "block"]);
    let tokens = [floats("q", 1, &[1, 2, 1, 4]), floats("k", 2, &[1, 2, 9, 4]), floats("v", 3, &[1, 2, 9, 4])];
    let lists = |values: [i32; 3]| {
        let list = ("tokens", Dtype::I32, vec![1, 1, 1, 3], bytemuck::cast_slice(&values).to_vec());
        files.write("lists", &[tokens.to_vec(), vec![list]].concat())
    };
    bad(&lists([1, 4, 4]), "{}", &["tokens[0][0][0][2] is 4", "ascends"]);
    bad(&lists([1, 9, -1]), "{}", &["tokens[0][0][0][1] is 9", "below 9"]);
    succeeds(&["run", "block-sparse", &lists([1, 8, -1]), &output]);
}
