//! The command line on files and JSON that nobody means: it ends by itself, in time, with a result or with one line that says why not.

use super::common::program_on_driver;
use super::program::{Files, floats, integers};
use super::source::Source;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, Instant};
use wgpu_attention::DType;

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

const KERNELS: [&str; 4] = ["flash", "block-sparse", "linear", "neighborhood"];

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn tensors(s: &mut Source, kernel: &str) -> Vec<Stored> {
    let (b, h, n, d) = (s.pick(&[1, 2]), s.pick(&[1, 2]), s.pick(&[1, 4, 9]), s.pick(&[1, 4, 8]));
    let mut all = vec![floats("q", 1, &[b, h, n, d]), floats("k", 2, &[b, h, n, d]), floats("v", 3, &[b, h, n, d])];
    let mut more: Vec<Stored> = match kernel {
        "linear" => {
            vec![floats("g", 4, &[b, h, n]), floats("h0", 5, &[b, h, d, d]), integers("cu_seqlens", &[0, 1, 1])]
        }
        _ => vec![
            floats("bias", 4, &[1, h, n, n]),
            integers("seqlens_q", &vec![1; b]),
            integers("seqlens_k", &[n as i32, -1][..b.min(2)]),
            integers("cu_seqlens_q", &[0, 1, n as i32]),
            integers("cu_seqlens_k", &[0, 1, n as i32]),
            floats("additional_k", 6, &[b, h, 2, d]),
            floats("additional_v", 7, &[b, h, 2, d]),
            floats("alibi_slopes", 8, &[h]),
            floats("dout", 9, &[b, h, n, d]),
        ],
    };
    more.retain(|_| s.one_in(4));
    all.append(&mut more);
    if kernel == "block-sparse" {
        all.push(("mask", Dtype::U8, vec![1, 1, 1, 1], vec![1]));
    }
    all
}

/// The bytes of a file: a length, a JSON header, values.
fn spoil(s: &mut Source, bytes: &mut Vec<u8>) {
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    match s.below(5) {
        0 => bytes.truncate(s.below(bytes.len())),
        1 => {
            let at = s.below(bytes.len());
            bytes[at] = s.below(256) as u8;
        }
        2 => {
            let at = 8 + s.below(header);
            bytes[at] = s.pick(b"0123456789[]{},:\"-");
        }
        3 => {
            // Another number somewhere in the header, with the right length.
            let text = String::from_utf8_lossy(&bytes[8..8 + header]).into_owned();
            let digits: Vec<usize> = text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
            let at = s.pick(&digits);
            let text = [&text[..at], &s.number().to_string(), &text[at + 1..]].concat();
            let values = bytes.split_off(8 + header);
            *bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &values].concat();
        }
        _ => {}
    }
}

fn json(s: &mut Source, depth: usize) -> String {
    match s.below(if depth > 3 { 5 } else { 7 }) {
        0 => s.number().to_string(),
        1 => format!("{:e}", s.float()),
        2 => s.pick(&["null", "true", "\"bottom_right\"", "\"\"", "-1", "1e999", "{", "[", "\"f32\""]).into(),
        3 => s.small().to_string(),
        4 => format!("\"{}\"", s.name()),
        5 => {
            let count = s.below(5);
            format!("[{}]", (0..count).map(|_| json(s, depth + 1)).collect::<Vec<_>>().join(", "))
        }
        _ => object(s, depth + 1),
    }
}

const FIELDS: [&str; 24] = [
    "causal",
    "window",
    "scale",
    "softcap",
    "left",
    "right",
    "axes",
    "length",
    "stride",
    "dilation",
    "block",
    "slopes",
    "chunk",
    "algorithm",
    "reverse",
    "score_mod",
    "source",
    "entry",
    "buffers",
    "selector",
    "q",
    "dtype",
    "shape",
    "wanted",
];

fn object(s: &mut Source, depth: usize) -> String {
    let count = s.below(4);
    let field = |s: &mut Source| format!("\"{}\": {}", s.pick(&FIELDS), json(s, depth));
    format!("{{{}}}", (0..count).map(|_| field(s)).collect::<Vec<_>>().join(", "))
}

/// A problem as `check` writes it, with something else in what it says of itself.
fn problem(s: &mut Source) -> Vec<u8> {
    let shape = [s.pick(&[1, 2]), 2, s.pick(&[0, 1, 9]), 4];
    let mut layout = s.layout(DType::F32, shape);
    if s.one_in(2) {
        let (which, n) = (s.below(8), s.number());
        match which {
            0..3 => layout.strides[which] = n,
            3 => layout.offset = n,
            _ => layout.shape[which - 4] = n,
        }
    }
    let mut metadata = HashMap::from([
        ("kernel", "rotary".to_string()),
        ("params", "{\"theta\": 100}".into()),
        ("shapes", format!("{{\"x\": {}}}", serde_json::to_string(&layout).expect("plain data"))),
        ("backward", "false".into()),
        ("case", "a turn".into()),
    ]);
    if s.one_in(3) {
        let name = s.pick(&["kernel", "params", "shapes", "backward", "case"]);
        metadata.insert(name, if s.one_in(2) { json(s, 0) } else { object(s, 0) });
    }
    let values = vec![0; 4 * shape.iter().product::<usize>()];
    let view = TensorView::new(Dtype::F32, shape.into(), &values).expect("as many values as its shape says");
    let expected = TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("one value");
    let metadata = metadata.into_iter().map(|(name, text)| (name.into(), text)).collect();
    safetensors::serialize([("x", view), ("expected.out", expected)], Some(metadata)).expect("valid tensors")
}

/// One call of the program.
pub fn attempt(s: &mut Source, files: &Files) {
    let params = match s.below(4) {
        0 => "{}".into(),
        1 => json(s, 0),
        _ => object(s, 0),
    };
    let words: Vec<String> = if s.one_in(3) {
        let kernel = s.pick(&["flash", "gate", "decode-gate", "merge", "rotary", "score-reduction", "linear"]);
        let shapes = s.pick(&[
            r#"{"q": {"dtype": "f32", "shape": [1, 2, 9, 8]}, "k": {"dtype": "f32", "shape": [1, 2, 9, 8]}, "v": {"dtype": "f32", "shape": [1, 2, 9, 8]}}"#,
            r#"{"x": {"dtype": "f16", "shape": [1, 2, 9, 8]}}"#,
            "",
        ]);
        let shapes = if shapes.is_empty() { object(s, 0) } else { shapes.into() };
        vec!["plan".into(), kernel.into(), format!("--shapes={shapes}"), format!("--params={params}"), "--json".into()]
    } else if s.one_in(3) {
        std::fs::write(files.path("input"), problem(s)).expect("a writable folder");
        vec!["run".into(), "problem".into(), files.path("input"), files.path("output")]
    } else {
        let kernel = s.pick(&KERNELS);
        let input = files.write("input", &tensors(s, kernel));
        let mut bytes = std::fs::read(&input).expect("just written");
        spoil(s, &mut bytes);
        std::fs::write(&input, bytes).expect("a writable folder");
        let params =
            if kernel == "neighborhood" && s.one_in(2) { r#"{"axes": [9], "window": [3]}"#.into() } else { params };
        let backend = s.pick(&["gpu", "reference", "reference"]);
        let mut words = vec!["run".into(), kernel.into(), input, files.path("output")];
        words.extend([format!("--params={params}"), format!("--backend={backend}")]);
        words.extend(s.maybe(4, |_| "--backward".into()));
        words.extend(s.maybe(4, |_| "--layout=heads-last".into()));
        words
    };
    let mut command = program_on_driver(env!("CARGO_BIN_EXE_wgpu-attention"));
    command.args(&words).env("XDG_RUNTIME_DIR", std::env::temp_dir()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("hangs: {words:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("a child");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 2)), "{}: {words:?}: {message}", output.status);
    assert!(output.status.success() || message.trim().lines().count() == 1, "{words:?}: {message}");
}
