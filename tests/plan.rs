//! What the command line plans without a GPU, as JSON, run by plain wgpu: the same bits as this crate's.

mod common;
#[path = "common/plain.rs"]
mod plain;
#[path = "common/program.rs"]
mod program;

use common::{bits, random, read};
use pollster::block_on;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use wgpu_attention::backward::{AttentionGradients, OutputGradients};
use wgpu_attention::plan::Name;
use wgpu_attention::score_reduction::{
    KeyGroups, QueryGroups, Reduction, ScoreReduction, ScoreReductionInputs, ScoreReductionParams,
};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, Call, Causal, DType, FlashAttention, FlashParams, Gpu, GpuOptions, Hook, Layout,
    Prepared, Seqlens, Tensor,
};

/// Plain wgpu has checks in its shaders.
fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    let options = GpuOptions { checked_shaders: true, ..common::options() };
    GPU.get_or_init(|| block_on(Gpu::request_with(&options)).expect("a GPU driver"))
}

fn tensor(shape: [usize; 4], seed: u64) -> Tensor {
    let values = random(seed, shape.iter().product());
    block_on(Tensor::upload(gpu(), shape, DType::F32, &values)).unwrap()
}

fn empty(dtype: DType, shape: [usize; 4]) -> Tensor {
    block_on(Tensor::empty(gpu(), Layout::heads_first(dtype, shape))).unwrap()
}

/// What `plan --json` prints for the shapes of a call on this device.
fn planned(kernel: &str, params: &str, call: &impl Call, backward: bool) -> Value {
    let caps = std::env::temp_dir().join(format!("wgpu-attention-caps-{}-{kernel}-{backward}", std::process::id()));
    std::fs::write(&caps, serde_json::to_string(gpu().caps()).unwrap()).unwrap();
    let layout = |(name, tensor): (Name, &Tensor)| (name.to_string(), serde_json::to_value(tensor.layout()).unwrap());
    let mut shapes: serde_json::Map<String, Value> = call.tensors().into_iter().map(layout).collect();
    shapes.extend(call.numbers().into_iter().map(|(name, numbers)| (name.to_string(), json!(numbers))));
    let shapes = Value::from(shapes).to_string();
    let mut arguments =
        vec!["plan", kernel, "--json", "--params", params, "--caps", caps.to_str().unwrap(), "--shapes", &shapes];
    arguments.extend(backward.then_some("--backward"));
    let output = program::run(&arguments);
    std::fs::remove_file(&caps).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a call here and its JSON in plain wgpu. All its tensors are contiguous and of 32 bits. `written` is in alphabetical order.
fn same(prepared: &Prepared, program: &Value, call: &impl Call, written: &[&str]) {
    let mut contents = BTreeMap::new();
    for (name, tensor) in call.tensors() {
        let words = match tensor.layout().dtype {
            DType::U32 => block_on(tensor.read_u32()).unwrap(),
            _ => bits(&read(tensor)),
        };
        contents.insert(name.to_string(), words.iter().flat_map(|word| word.to_le_bytes()).collect());
    }
    let buffers = plain::run(gpu().device(), gpu().queue(), program, &contents);
    block_on(prepared.submit(call)).unwrap();
    let mut compared = vec![];
    for (spec, buffer) in program["tensors"].as_array().unwrap().iter().zip(&buffers) {
        let name = spec["name"].as_str().unwrap();
        let tensors = call.tensors();
        let (_, ours) = tensors.iter().find(|(other, _)| other == name).expect("a tensor of the call");
        let theirs = Tensor::wrap(gpu(), buffer, ours.layout().clone()).unwrap();
        let words = |tensor: &Tensor| match ours.layout().dtype {
            DType::U32 => block_on(tensor.read_u32()).unwrap(),
            _ => bits(&read(tensor)),
        };
        assert_eq!(words(ours), words(&theirs), "{name}");
        if spec["written"] == true {
            assert!(words(ours).iter().any(|&word| word != 0), "{name}");
            compared.push(name);
        }
    }
    assert_eq!(compared, written);
}

#[test]
fn flash_attention() {
    let [q, k, v] = [[1, 4, 90, 32], [1, 2, 130, 32], [1, 2, 130, 16]].map(|shape| tensor(shape, shape[2] as u64));
    let (out, lse) = (empty(DType::F32, [1, 4, 90, 16]), empty(DType::F32, [1, 4, 90, 1]));
    let params = FlashParams { causal: Some(Causal::BottomRight), softcap: Some(20.0), ..FlashParams::default() };
    let lengths = block_on(Tensor::upload_u32(gpu(), &[101])).unwrap();
    // The table that a kernel makes of lengths on the GPU is bound as a uniform buffer.
    for seqlens_k in [None, Some(Seqlens::Gpu(&lengths))] {
        let inputs = AttentionInputs { seqlens_k, ..AttentionInputs::new(&q, &k, &v) };
        let call = (inputs, AttentionOutputs::new(&out, &lse));
        let program = planned("flash", r#"{"causal": "bottom_right", "softcap": 20}"#, &call, false);
        let prepared = block_on(FlashAttention::new(gpu(), params.clone()).unwrap().prepare(&call)).unwrap();
        same(&prepared, &program, &call, &["lse", "out"]);
    }
}

#[test]
fn gradients_of_packed_sequences_with_a_hook() {
    let offsets = [0, 3, 3, 90, 150];
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| tensor([1, 2, 150, 16], seed));
    let table = tensor([1, 1, 1, 64], 5);
    let source = "fn near(score: f32, at: Position) -> f32 {
    return score + table[min(max(at.query, at.key) - min(at.query, at.key), 63u)];
}
fn near_grad(score: f32, at: Position, d_out: f32) -> f32 { return d_out; }";
    let hook = Hook::new("near", source).with_gradient("near_grad").declaring("table", table.layout().clone());
    let params = FlashParams { score_mod: vec![hook], ..FlashParams::default() };
    let (side, buffers) = (Some(Seqlens::Host(&offsets)), [("table", &table)]);
    let inputs = AttentionInputs {
        cu_seqlens_q: side,
        cu_seqlens_k: side,
        buffers: &buffers,
        ..AttentionInputs::new(&q, &k, &v)
    };
    let attention = FlashAttention::new(gpu(), params.clone()).unwrap();
    let (out, lse) = block_on(attention.forward_with_lse(&inputs)).unwrap();
    let [dq, dk, dv] = [(); 3].map(|()| empty(DType::F32, [1, 2, 150, 16]));
    let to = AttentionGradients { dq, dk, dv, dbias: None, d_additional_k: None, d_additional_v: None };
    let call = (inputs, AttentionOutputs::new(&out, &lse), OutputGradients::new(&dout), &to);
    let program = planned("flash", &serde_json::to_string(&params).unwrap(), &call, true);
    let prepared = block_on(attention.prepare_backward(&call)).unwrap();
    same(&prepared, &program, &call, &["dk", "dq", "dv"]);
}

#[test]
fn the_keys_with_the_largest_sums() {
    let [q, k] = [[2, 4, 40, 32], [2, 2, 100, 32]].map(|shape| tensor(shape, shape[2] as u64));
    let inputs = AttentionInputs::new(&q, &k, &k);
    let params = ScoreReductionParams {
        reduction: Reduction::Sum,
        queries: QueryGroups::Blocks(4),
        keys: KeyGroups::Blocks(8),
        top_k: Some(3),
        ..ScoreReductionParams::default()
    };
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&inputs)).unwrap();
    let (values, indices) = (empty(DType::F32, [2, 4, 10, 3]), empty(DType::U32, [2, 4, 10, 3]));
    let call = (
        ScoreReductionInputs { attention: inputs, lse: &lse, segments: None },
        [("values", &values), ("indices", &indices)],
    );
    let program = planned("score-reduction", &serde_json::to_string(&params).unwrap(), &call, false);
    let prepared = block_on(ScoreReduction::new(gpu(), params).unwrap().prepare(&call)).unwrap();
    same(&prepared, &program, &call, &["indices", "values"]);
}

#[test]
fn what_cannot_be_planned_is_refused_in_one_line() {
    let q = r#""q": {"dtype": "f32", "shape": [1, 2, 8, 16]}"#;
    let shapes = format!("{{{q}}}");
    program::refuses(&["plan", "flash", "--shapes", &shapes], &["k is unset", "set"]);
    program::refuses(&["plan", "flash", "--shapes", "{q}"], &["--shapes", "JSON"]);
    program::refuses(&["plan", "flash", "--shapes", "no such file"], &["--shapes is no such file", "a file"]);
    program::refuses(&["plan", "flash", "--shapes", "{}", "--params", r#"{"casual": 1}"#], &["casual", "causal"]);
    program::refuses(&["plan", "merge", "--shapes", "{}", "--backward"], &["--backward", "no gradients"]);
    program::refuses(&["plan", "flash", "--shapes", "{}", "--caps", "none"], &["--caps is none", "a file"]);
}

#[test]
fn words_without_a_gpu() {
    let token = |name: &str| format!(r#""{name}": {{"dtype": "f16", "shape": [1, 8, 1024, 64]}}"#);
    let shapes = format!("{{{}, {}, {}, \"seqlens_k\": [700]}}", token("q"), token("k"), token("v"));
    let output = program::run(&["plan", "flash", "--shapes", &shapes]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("flash, portable: 64 × 64 tiles"), "{text}");
}
