//! SeerAttention's gate on the GPU beside this crate's own dense kernel, causal: gate and selection alone, and with attention over
//! what they chose, in one compute pass; then a step of decoding. `cargo bench --features catalogue --bench gate`.

mod common;

use common::{Timed, group, ratios, testing};
use criterion::{Criterion, criterion_group, criterion_main};
use pollster::block_on;
use std::time::Duration;
use wgpu_attention::catalogue::{AttentionCase, normal};
use wgpu_attention::gate::{
    SeerDecodeGate, SeerDecodeGateParams, SeerDecodeInputs, SeerDecodeWeights, SeerGate, SeerGateInputs,
    SeerGateParams, Selector,
};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{
    AttentionInputs, BlockMask, BlockSparseAttention, BlockSparseParams, Causal, DType, FlashParams, Gpu, Layout,
    Prepared, Seqlens, Tensor,
};

/// A gate, and attention over what it chooses.
struct Gated<'a> {
    name: String,
    gpu: &'a Gpu,
    dense: &'a Timed,
    wk: &'a Tensor,
    gate: Prepared,
    mask: BlockMask,
    attention: Prepared,
    /// The share of causal blocks that are not chosen.
    sparsity: f64,
}

impl<'a> Gated<'a> {
    async fn new(gpu: &'a Gpu, dense: &'a Timed, wk: &'a Tensor, name: &str, params: SeerGateParams) -> Self {
        let (attention, outputs) = dense.arguments();
        let inputs = SeerGateInputs::new(attention.q, attention.k, wk);
        let gate = SeerGate::new(gpu, params.clone()).expect("valid params");
        let mask = gate.forward(&inputs).await.expect("a GPU that works");
        let chosen = mask.read().await.expect("a mask");
        let ([_, _, queries, _], [_, _, keys, _]) = (attention.q.shape(), attention.k.shape());
        let (rows, cols) = (queries.div_ceil(params.block[0]), keys.div_ceil(params.block[1]));
        let causal = (chosen.len() / cols) * (rows + 1) / 2;
        let sparsity = 1.0 - chosen.iter().filter(|&&chosen| chosen).count() as f64 / causal as f64;
        let to = [("chosen", mask.chosen().expect("a mask of lists"))];
        let gate = gate.prepare((&inputs, to)).await.expect("valid shapes");
        let sparse = BlockSparseParams { causal: params.causal, ..BlockSparseParams::default() };
        let inputs = AttentionInputs { block_mask: Some(&mask), ..attention };
        let sparse = BlockSparseAttention::new(gpu, sparse).expect("valid params");
        let attention = sparse.prepare((&inputs, &outputs)).await.expect("valid shapes");
        let name = format!("{name}, sparsity {sparsity:.3}");
        Self { name, gpu, dense, wk, gate, mask, attention, sparsity }
    }

    fn seconds(&self, gate: bool, attention: bool) -> f64 {
        let (inputs, outputs) = self.dense.arguments();
        let gated = SeerGateInputs::new(inputs.q, inputs.k, self.wk);
        let to = [("chosen", self.mask.chosen().expect("a mask of lists"))];
        let sparse = AttentionInputs { block_mask: Some(&self.mask), ..inputs };
        let time = self.gpu.time(|pass| {
            if gate {
                self.gate.encode_in(pass, (&gated, to))?;
            }
            if attention { self.attention.encode_in(pass, (&sparse, &outputs)) } else { Ok(()) }
        });
        block_on(time).expect("a GPU that works").seconds
    }
}

fn bench(criterion: &mut Criterion) {
    let gpu = block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}", gpu.caps());
    let (heads, n, d, dtype) = match gpu.caps().kind {
        _ if testing() => (1, 300, 16, DType::F32),
        AdapterKind::Software => (1, 8192, 64, DType::F32),
        _ => (32, 8192, 128, DType::F16),
    };
    let case = AttentionCase {
        heads: (heads, heads),
        lengths: (n, n),
        dims: (d, d),
        params: FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() },
        ..AttentionCase::default().of_type(dtype)
    };
    let size = format!("H {heads} N {n} D {d} {dtype} blocks 64×64");
    let dense = Timed::new(&gpu, &format!("dense/{size}"), case, (n * (n + 1) / 2) as f64);
    let wk = normal(1, heads * 3 * d * d, 1.0 / (d as f32).sqrt(), DType::F32);
    let wk = block_on(Tensor::upload(&gpu, [1, heads, 3 * d, d], DType::F32, &wk)).expect("memory for the weights");
    let params = |selector, last_rows_dense| SeerGateParams { selector, last_rows_dense, ..SeerGateParams::default() };
    let all: Vec<Gated> = [
        ("density 0.1", params(Selector::Density(0.1), false)),
        ("density 0.1, last rows dense", params(Selector::Density(0.1), true)),
        ("budget of 256 keys, last rows dense", params(Selector::Budget(256), true)),
        ("threshold 0.05", params(Selector::Threshold(0.05), false)),
        ("top-p 0.3", params(Selector::TopP(0.3), false)),
    ]
    .into_iter()
    .map(|(name, params)| block_on(Gated::new(&gpu, &dense, &wk, name, params)))
    .collect();
    let mut group = group(criterion, "gate");
    for gated in &all {
        group.bench_function(format!("{}/{size}", gated.name), |b| {
            b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| gated.seconds(true, false)).sum()));
        });
    }
    group.finish();
    println!("  {}", all[0].gate.plan());
    let seconds = || dense.seconds();
    for (what, gate, attention) in [("gate and selection", true, false), ("gate, selection and attention", true, true)]
    {
        let runs: Vec<_> = all.iter().map(|gated| || gated.seconds(gate, attention)).collect();
        let mut runs_by_name: Vec<(&str, &dyn Fn() -> f64)> = vec![("dense", &seconds)];
        let names = all.iter().map(|gated| gated.name.as_str());
        runs_by_name.extend(names.zip(&runs).map(|(name, run)| (name, run as &dyn Fn() -> f64)));
        let medians = ratios(&format!("{what}, {size}"), &runs_by_name);
        for (gated, median) in all.iter().zip(&medians[1..]).filter(|_| attention) {
            let of = 1.0 / (1.0 - gated.sparsity);
            println!("ratio    dense over {}: {:.2} of {of:.2}", gated.name, medians[0] / median);
        }
    }
    block_on(decoding(&gpu));
}

/// A step of decoding: dense attention of one query over all keys, beside the gate, its choice and attention over that.
async fn decoding(gpu: &Gpu) {
    let (heads, n, d, budget) = match gpu.caps().kind {
        _ if testing() => ((4, 2), 300, 16, 64),
        AdapterKind::Software => ((8, 2), 32768, 64, 2048),
        _ => ((32, 8), 131_072, 128, 4096),
    };
    let params = FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let case = AttentionCase { heads, lengths: (1, n), dims: (d, d), params, ..AttentionCase::default() };
    let size = format!("H {}/{} D {d}, {n} keys", heads.0, heads.1);
    let dense = Timed::new(gpu, &format!("dense/{size}"), case, n as f64);
    let (attention, outputs) = dense.arguments();
    let spread = 1.0 / (d as f32).sqrt();
    let up = async |shape: [usize; 4]| {
        let values = normal(1, shape.iter().product(), spread, DType::F32);
        Tensor::upload(gpu, shape, DType::F32, &values).await.expect("memory for the weights")
    };
    let (wq, wk) = (up([1, heads.1, heads.0 / heads.1 * d, d]).await, up([1, heads.1, 3 * d, d]).await);
    let compressed = up([1, heads.1, n / 64 + 1, d]).await;
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: None, norm_k: None };
    let params = SeerDecodeGateParams { selector: Selector::Budget(budget), ..SeerDecodeGateParams::default() };
    let gate = SeerDecodeGate::new(gpu, params).expect("valid params");
    let inputs = SeerDecodeInputs { q: attention.q, compressed: &compressed, seqlens_k: Seqlens::Host(&[n]), keys: n };
    let grid = gate.grid(&inputs);
    let chosen = Tensor::empty(gpu, Layout::heads_first(DType::U32, grid.shape())).await.expect("memory for the mask");
    let of_step = (&weights, inputs, [("chosen", &chosen)]);
    let step = gate.prepare(of_step).await.expect("valid tensors");
    let mask = BlockMask::from_bits(gpu, grid, &chosen, None).expect("a bitmap of the grid's shape");
    let sparse = BlockSparseParams { causal: Some(Causal::BottomRight), ..BlockSparseParams::default() };
    let inputs = AttentionInputs { block_mask: Some(&mask), ..attention };
    let sparse = BlockSparseAttention::new(gpu, sparse).expect("valid params");
    let prepared = sparse.prepare((&inputs, &outputs)).await.expect("valid shapes");
    println!("  {}", prepared.plan());
    let time = |gate: bool, attention: bool| {
        let time = gpu.time(|pass| {
            if gate {
                step.encode_in(pass, of_step)?;
            }
            if attention { prepared.encode_in(pass, (&inputs, &outputs)) } else { Ok(()) }
        });
        block_on(time).expect("a GPU that works").seconds
    };
    let runs: [(&str, &dyn Fn() -> f64); 4] = [
        ("dense", &|| dense.seconds()),
        ("gate and selection", &|| time(true, false)),
        ("attention over the choice", &|| time(false, true)),
        ("both", &|| time(true, true)),
    ];
    let medians = ratios(&format!("decoding, {size}, budget of {budget}"), &runs);
    println!("ratio    dense over both: {:.2} of {:.2}", medians[0] / medians[3], n as f64 / budget as f64);
}

criterion_group!(benches, bench);
criterion_main!(benches);
