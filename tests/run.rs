//! `run`: kernels on the tensors of files.

#[path = "common/program.rs"]
mod program;

use program::{Files, agree, agree_on, floats, integers, refuses, succeeds};
use safetensors::{Dtype, SafeTensors};

#[test]
fn run_computes_what_the_reference_does() {
    let files = Files::new("run");
    let (b, h, nq, nk, d) = (2, 4, 20, 30, 16);
    let first = |seed: u64| {
        vec![
            floats("q", seed, &[b, h, nq, d]),
            floats("k", seed + 1, &[b, 2, nk, d]),
            floats("v", seed + 2, &[b, 2, nk, 24]),
            floats("bias", seed + 3, &[1, h, nq, nk]),
            ("mask", Dtype::BOOL, vec![b, 1, 1, nk], (0..b * nk).map(|i| u8::from(i % 7 != 3)).collect()),
            integers("seqlens_k", &[30, 11]),
            floats("alibi_slopes", seed + 4, &[h]),
            floats("leftover", seed, &[1]),
        ]
    };
    let input = files.write("input", &first(1));
    let params = r#"{"causal": "bottom_right", "window": [9, null], "softcap": 5.0, "scale": null}"#;
    let shapes = agree(&files, &input, &["--params", params], 2e-5);
    assert_eq!(shapes, (vec![b, h, nq, 24], vec![b, h, nq]));
    let said = succeeds(&["run", "flash", &input, &files.path("again"), "--params", params]);
    assert!(said.contains("not read: leftover") && said.contains("out [2, 4, 20, 24] f32"), "{said}");
    agree(&files, &input, &["--dtype", "f16"], 2e-3);

    // The same numbers with heads last give the same result with heads last.
    let swap = |values: &[f32], [_, b, c, d]: [usize; 4]| -> Vec<f32> {
        let at = |i: usize| [i / d / b / c, i / d / b % c, i / d % b, i % d];
        (0..values.len()).map(at).map(|[w, x, y, z]| values[((w * b + y) * c + x) * d + z]).collect()
    };
    let mut last = first(1);
    for (name, _, shape, bytes) in last.iter_mut().filter(|(name, ..)| ["q", "k", "v"].contains(name)) {
        let size: [usize; 4] = shape.as_slice().try_into().expect(name);
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(bytes.as_slice());
        *bytes = bytemuck::cast_slice(&swap(&values, size)).to_vec();
        shape.swap(1, 2);
    }
    let last = files.write("last", &last);
    let params = ["--params", r#"{"causal": "top_left"}"#];
    agree(&files, &input, &params, 2e-5);
    let (_, expected) = files.read("gpu", "out");
    let shapes = agree(&files, &last, &[&params[..], &["--layout", "heads-last"]].concat(), 2e-5);
    assert_eq!(shapes, (vec![b, nq, h, 24], vec![b, h, nq]));
    assert_eq!(files.read("gpu", "out").1, swap(&expected, [b, h, nq, 24]));
}

#[test]
fn run_refuses_bad_input_in_one_line_and_leaves_nothing_behind() {
    let files = Files::new("run-bad");
    let good = || vec![floats("q", 1, &[1, 2, 6, 8]), floats("k", 2, &[1, 2, 6, 8]), floats("v", 3, &[1, 2, 6, 8])];
    let input = files.write("good", &good());
    let output = files.path("output");
    let with = |name: &str, more: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>| {
        let replaced: Vec<&str> = more.iter().map(|(name, ..)| *name).collect();
        let kept = good().into_iter().filter(|(name, ..)| !replaced.contains(name));
        files.write(name, &kept.chain(more).collect::<Vec<_>>())
    };
    let text = files.path("text");
    std::fs::write(&text, "not tensors").expect("a writable folder");
    let no_v = files.write("no_v", &good()[..2]);
    let wrong = with("wrong", vec![integers("q", &[1, 2, 3])]);
    let flat = with("flat", vec![floats("q", 1, &[6, 8])]);
    let wide = with("wide", vec![floats("k", 1, &[1, 2, 6, 9])]);
    let long = with("long", vec![integers("seqlens_k", &[7])]);
    let negative = with("negative", vec![integers("seqlens_q", &[-1])]);
    let one_side = with("one_side", vec![integers("cu_seqlens_q", &[0, 6])]);
    let sinks = with("sinks", vec![floats("sinks", 1, &[2])]);
    let bias = with("bias", vec![floats("bias", 1, &[1, 2, 6, 5])]);
    for backend in ["gpu", "reference"] {
        let bad = |input: &str, options: &[&str], words: &[&str]| {
            refuses(&[&["run", "flash", input, &output, "--backend", backend], options].concat(), words);
        };
        bad("no such file", &[], &["no such file", "a readable file"]);
        bad(&text, &[], &["text", "a safetensors file"]);
        bad(&no_v, &[], &["no_v: v is missing", "in the file", "the file has k, q"]);
        bad(&wrong, &[], &["wrong: q is of type I32", "F32, F16, BF16"]);
        bad(&flat, &[], &["flat: q is of shape [6, 8]", "four dimensions"]);
        bad(&wide, &[], &["k.shape[3] (head_dim) is 9", "8, as in q"]);
        bad(&long, &[], &["seqlens_k[0] is 7", "at most 6"]);
        bad(&negative, &[], &["seqlens_q[0] is -1", "0 or more"]);
        bad(&one_side, &[], &["cu_seqlens_k is missing", "as cu_seqlens_q is"]);
        bad(&sinks, &[], &["sinks is in the file", "absent"]);
        bad(&bias, &[], &["bias.shape is [1, 2, 6, 5]", "[1, 2, 6, 6]"]);
        bad(&input, &["--params", r#"{"sofcap": 3}"#], &["unknown field `sofcap`", "softcap"]);
        bad(&input, &["--params", r#"{"softcap": 0}"#], &["softcap is 0", "above 0"]);
        bad(&input, &["--params", "softcap=3"], &["--params is softcap=3"]);
        bad(
            &input,
            &["--params", r#"{"causal": "yes"}"#],
            &["causal must be true, false, \"bottom_right\", \"top_left\" or null"],
        );
        bad(&input, &["--params", r#"{"max_seqlen_q": 3}"#], &["max_seqlen_q is 3", "unset without packed"]);
        bad(&input, &["--layout", "sideways"], &["sideways", "heads-first"]);
    }
    refuses(&["run", "flush", &input, &output], &["flush", "flash"]);
    refuses(&["run", "flash", &input, &output, "--adapter", "no such GPU"], &["no such GPU", "present: ["]);
    refuses(&["run", "flash", &input, &input], &["output is", "good", "a file other than the input"]);
    let nowhere = files.path("no such folder/output");
    refuses(&["run", "flash", &input, &nowhere], &["no such folder/output", "a file that can be written"]);
    let left: Vec<String> = std::fs::read_dir(&files.0)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("output") || name.contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs a kernel's backward pass on the GPU and by the reference: each of these gradients has this shape, and both agree.
fn gradients_agree(files: &Files, kernel: &str, input: &str, params: &str, names: &[(&str, Vec<usize>)]) {
    for backend in ["gpu", "reference"] {
        let output = files.path(backend);
        succeeds(&["run", kernel, input, &output, "--backend", backend, "--backward", "--params", params]);
    }
    for (name, expected_shape) in names {
        let (shape, found) = files.read("gpu", name);
        let (_, expected) = files.read("reference", name);
        assert_eq!(shape, *expected_shape, "{name}");
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
        assert!(expected.iter().any(|x| x.abs() > 0.1), "{name}");
    }
}

#[test]
fn run_computes_the_gradients_that_the_reference_does() {
    let files = Files::new("run-backward");
    let (b, h, nq, nk, d) = (2, 4, 20, 30, 16);
    let tensors = [
        floats("q", 1, &[b, h, nq, d]),
        floats("k", 2, &[b, 2, nk, d]),
        floats("v", 3, &[b, 2, nk, 24]),
        floats("bias", 4, &[1, h, 1, nk]),
        integers("seqlens_k", &[30, 11]),
        floats("dout", 5, &[b, h, nq, 24]),
        floats("dlse", 6, &[b, h, nq]),
    ];
    let input = files.write("input", &tensors);
    let params = r#"{"causal": "bottom_right", "softcap": 5.0}"#;
    let names = [
        ("dq", vec![b, h, nq, d]),
        ("dk", vec![b, 2, nk, d]),
        ("dv", vec![b, 2, nk, 24]),
        ("dbias", vec![1, h, 1, nk]),
    ];
    gradients_agree(&files, "flash", &input, params, &names);
    let without = files.write("without", &tensors[..5]);
    refuses(&["run", "flash", &without, &files.path("none"), "--backward"], &["dout is missing", "in the file"]);
    let wrong = [&tensors[..5], &[floats("dout", 5, &[b, h, nq, 23])]].concat();
    let wrong = files.write("wrong", &wrong);
    refuses(&["run", "flash", &wrong, &files.path("none"), "--backward"], &["dout.shape", "[2, 4, 20, 24]"]);
}

#[test]
fn run_block_sparse() {
    let files = Files::new("run-block-sparse");
    let (b, h, nq, nk, d) = (2, 4, 100, 150, 16);
    let mask: Vec<u8> = (0..h * 4 * 3).map(|i| u8::from(i % 5 < 2)).collect();
    let mask = ("mask", Dtype::BOOL, vec![1, h, 4, 3], mask);
    let tensors = [
        mask,
        floats("q", 1, &[b, h, nq, d]),
        floats("k", 2, &[b, 2, nk, d]),
        floats("v", 3, &[b, 2, nk, 24]),
        floats("dout", 6, &[b, h, nq, 24]),
        integers("seqlens_k", &[150, 70]),
    ];
    let input = files.write("input", &tensors);
    let params = r#"{"block": [32, 64], "causal": true, "softcap": 5}"#;
    let said = agree_on(&files, "block-sparse", &input, &["--params", params], 2e-5);
    assert_eq!(said, (vec![b, h, nq, 24], vec![b, h, nq]));
    let names = [("dq", vec![b, h, nq, d]), ("dk", vec![b, 2, nk, d]), ("dv", vec![b, 2, nk, 24])];
    gradients_agree(&files, "block-sparse", &input, params, &names);
    let packed = [
        ("mask", Dtype::U8, vec![2, 1, 1, 2], vec![1, 0, 0, 1]),
        floats("q", 1, &[70, h, d]),
        floats("k", 2, &[150, 2, d]),
        floats("v", 3, &[150, 2, 24]),
        integers("cu_seqlens_q", &[0, 50, 70]),
        integers("cu_seqlens_k", &[0, 50, 150]),
    ];
    let packed = files.write("packed", &packed);
    assert_eq!(agree_on(&files, "block-sparse", &packed, &[], 2e-5), (vec![70, h, 24], vec![h, 70]));
    let without = files.write("without", &tensors[1..]);
    refuses(&["run", "block-sparse", &without, &files.path("none")], &["mask is missing", "in the file"]);
    let gate = files.write("gate", &[&tensors[..], &[floats("gate_wk", 1, &[1])]].concat());
    refuses(&["run", "block-sparse", &gate, &files.path("none")], &["q_pre is missing", "in the file"]);
    for backend in ["gpu", "reference"] {
        let bad = |params: &str, words: &[&str]| {
            let output = files.path("output");
            refuses(&["run", "block-sparse", &input, &output, "--backend", backend, "--params", params], words);
        };
        bad(r#"{"block": [32, 48]}"#, &["block[1] is 48", "a power of two"]);
        bad("{}", &["mask.shape is [1, 4, 4, 3]", "2, 3]", "[64, 64]"]);
        bad(r#"{"causal": "diagonal"}"#, &["causal must be true, false, \"bottom_right\""]);
        bad(r#"{"selector": {"density": 0.1}}"#, &["selector is set", "unset without a gate", "q_pre is missing"]);
    }
}

/// A tensor of a golden file in this shape.
fn taken(file: &SafeTensors, name: &'static str, shape: &[usize]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    (name, Dtype::F32, shape.to_vec(), file.tensor(name).expect(name).data().to_vec())
}

/// SeerAttention's gate, for prompts and for decoding, as an independent implementation has it.
#[test]
fn run_block_sparse_with_a_gate() {
    let files = Files::new("run-gate");
    let golden = |name: &str| std::fs::read(format!("tests/data/{name}.safetensors")).expect("the repository has it");
    let (prefill, decode) = (golden("seer_prefill_mha_b32_thr"), golden("seer_decode_gqa_b16_budget"));
    let [prefill, decode] =
        [&prefill, &decode].map(|bytes| SafeTensors::deserialize(bytes).expect("a safetensors file"));
    let tokens = [1, 256, 2, 64];
    let mut first: Vec<_> =
        ["q", "k", "v", "q_pre", "k_pre"].into_iter().map(|name| taken(&prefill, name, &tokens)).collect();
    first.push(taken(&prefill, "gate_wk", &[2, 192, 64]));
    let first = files.write("first", &first);
    let (of_q, of_k) = ([2, 1, 8, 64], [2, 101, 2, 64]);
    let second = files.write(
        "second",
        &[
            taken(&decode, "q", &of_q),
            taken(&decode, "k", &of_k),
            taken(&decode, "v", &of_k),
            taken(&decode, "q_pre", &of_q),
            taken(&decode, "k_pre", &of_k),
            taken(&decode, "gate_wq", &[2, 4, 64, 64]),
            taken(&decode, "gate_wk", &[2, 192, 64]),
            taken(&decode, "gate_qnorm", &[64]),
            taken(&decode, "gate_knorm", &[64]),
        ],
    );
    let prompt = r#"{"block": [32, 32], "causal": true, "selector": {"threshold": 0.12}, "target": true}"#;
    let step = r#"{"block": [1, 16], "causal": true, "selector": {"budget": 64}, "sink": true, "target": true}"#;
    let names = ["out", "lse", "gate_logits", "gate_scores", "target", "mask"];
    for (input, params, golden, mask) in [(&first, prompt, &prefill, "mask"), (&second, step, &decode, "mask_used")] {
        let options = ["--params", params, "--layout", "heads-last"];
        agree_on(&files, "block-sparse", input, &options, 2e-5);
        for backend in ["gpu", "reference"] {
            let bytes = std::fs::read(files.path(backend)).expect("the program wrote it");
            let found = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            for name in names.into_iter().filter(|name| *name != "target" || mask == "mask") {
                let data = found.tensor(name).expect(name);
                let known = golden.tensor(if name == "mask" { mask } else { name }).expect(name);
                if name == "mask" {
                    assert_eq!(data.data(), known.data());
                    continue;
                }
                let values = |data: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(data);
                let (found, known) = (values(data.data()), values(known.data()));
                assert_eq!(found.len(), known.len(), "{name}");
                let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-5 || (a.is_infinite() && *b < -1e29);
                assert!(found.iter().zip(&known).all(near), "{backend} {name}");
            }
        }
    }
    let last = ["--layout", "heads-last", "--params"];
    for backend in ["gpu", "reference"] {
        let bad = |input: &str, params: &str, words: &[&str]| {
            let output = files.path("output");
            let run = ["run", "block-sparse", input, &output, "--backend", backend];
            refuses(&[&run[..], &last, &[params]].concat(), words);
        };
        bad(&first, r#"{"selector": {"threshold": 2}}"#, &["selector: Threshold is 2", "within 0..=1"]);
        bad(&first, r#"{"selector": {"density": 0}}"#, &["selector: Density is 0", "above 0"]);
        bad(&first, r#"{"selector": {"budget": 63}}"#, &["selector: Budget is 63", "at least 64"]);
        bad(&first, r#"{"selector": {"best": 2}}"#, &["unknown variant `best`"]);
        bad(&first, r#"{"pool_k": []}"#, &["pool_k is empty"]);
        bad(&first, r#"{"pool_k": ["max"]}"#, &["wk.shape", "[1, 2, 192, 64]"]);
        bad(&second, r#"{"block": [16, 16], "selector": {"budget": 64}}"#, &["block[0] is 16", "1 with a gate for"]);
        bad(&second, r#"{"block": [1, 16], "pool_k": ["max"]}"#, &["gate_wk.shape", "[1, 2, 64, 64]"]);
        bad(&second, r#"{"block": [1, 16], "diagonal": true}"#, &["diagonal is set", "unset with a gate for"]);
    }
}

#[test]
fn run_neighborhood() {
    let files = Files::new("run-neighborhood");
    let (b, h, n, d, more) = (2, 4, 7 * 9, 16, 5);
    let tensors = [
        floats("q", 1, &[b, h, n, d]),
        floats("k", 2, &[b, 2, n, d]),
        floats("v", 3, &[b, 2, n, 24]),
        floats("additional_k", 4, &[b, 2, more, d]),
        floats("additional_v", 5, &[b, 2, more, 24]),
        floats("dout", 6, &[b, h, n, 24]),
    ];
    let input = files.write("input", &tensors);
    let params =
        r#"{"space": [7, 9], "window": [3, 4], "stride": [1, 2], "dilation": [2, 1], "causal": [false, true]}"#;
    let said = agree_on(&files, "neighborhood", &input, &["--params", params], 2e-5);
    assert_eq!(said, (vec![b, h, n, 24], vec![b, h, n]));
    let names = [
        ("dq", vec![b, h, n, d]),
        ("dk", vec![b, 2, n, d]),
        ("dv", vec![b, 2, n, 24]),
        ("d_additional_k", vec![b, 2, more, d]),
        ("d_additional_v", vec![b, 2, more, 24]),
    ];
    gradients_agree(&files, "neighborhood", &input, params, &names);
    for backend in ["gpu", "reference"] {
        let bad = |params: &str, words: &[&str]| {
            let output = files.path("output");
            refuses(&["run", "neighborhood", &input, &output, "--backend", backend, "--params", params], words);
        };
        bad(r#"{"window": [3, 4]}"#, &["missing field `space`"]);
        bad(r#"{"space": [7, 9], "window": [3]}"#, &["window.len() is 1", "2, one per axis"]);
        bad(r#"{"space": [7, 9], "window": [3, 10]}"#, &["axes[1].window is 10", "2..=9"]);
        bad(r#"{"space": [7, 8], "window": [3, 4]}"#, &["q.shape[2] (tokens) is 63", "56", "[7, 8]"]);
        bad(r#"{"space": [63, 1], "window": [3, 1]}"#, &["axes[1].length is 1", "within 2"]);
    }
}
