//! Host time: what it takes to record a prepared call, and a whole kept `forward` of the same.
//! `cargo bench --bench encode`.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pollster::block_on;
use wgpu_attention::{AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Gpu, Layout, Tensor};

fn bench(criterion: &mut Criterion) {
    let gpu = block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}", gpu.caps());
    let tensor =
        |shape| block_on(Tensor::empty(&gpu, Layout::heads_first(DType::F32, shape))).expect("memory for a tensor");
    let [q, k, v, out] = [(); 4].map(|()| tensor([1, 2, 64, 32]));
    let lse = tensor([1, 2, 64, 1]);
    let attention = FlashAttention::new(&gpu, FlashParams::default()).expect("valid params");
    let call = (AttentionInputs::new(&q, &k, &v), AttentionOutputs::new(&out, &lse));
    let prepared = block_on(attention.prepare(&call)).expect("shapes that fit");
    criterion.bench_function("encode/flash", |b| {
        let record =
            |encoder: &mut wgpu_attention::wgpu::CommandEncoder| prepared.encode(encoder, &call).expect("as prepared");
        b.iter_batched_ref(|| gpu.device().create_command_encoder(&Default::default()), record, BatchSize::SmallInput);
    });
    criterion.bench_function("forward/flash", |b| {
        b.iter(|| block_on(attention.forward_with_lse(&call.0)).expect("a GPU that works"));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
