//! `run`: forms of inputs and params.

#[path = "common/program.rs"]
mod program;

use program::{Files, agree, floats, integers, succeeds};
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
