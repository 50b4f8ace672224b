//! Rotary embeddings on the GPU, beside attention's forward pass on the same queries.
//! `cargo bench --features catalogue --bench rotary`.

mod common;

use common::{Timed, group, ratios, testing};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use wgpu_attention::catalogue::{AttentionCase, Case, CasePositions, RotaryCase};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{DType, Gpu, RotaryParams};

fn bench(criterion: &mut Criterion) {
    let gpu = pollster::block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}\nthrpt counts the bytes that are read and written", gpu.caps());
    let (heads, n, d) = match gpu.caps().kind {
        _ if testing() => (1, 50, 16),
        AdapterKind::Software => (8, 2048, 64),
        _ => (32, 8192, 128),
    };
    let case = |interleaved, positions| RotaryCase {
        shape: [1, heads, n, d],
        params: RotaryParams { interleaved, ..RotaryParams::default() },
        backward: false,
        positions,
        dtypes: [DType::F32; 2],
        strided: false,
        seed: 1,
    };
    let cases = [
        ("half-split", case(false, CasePositions::Counted(0, 1))),
        ("interleaved", case(true, CasePositions::Counted(0, 1))),
        ("positions given", case(false, CasePositions::Given(1 << 20, true))),
    ];
    let time = |case: &RotaryCase| pollster::block_on(case.time(&gpu)).expect("a GPU that works").seconds;
    let size = format!("H {heads} N {n} D {d}");
    for (name, case) in &cases {
        let mut group = group(criterion, "rotary");
        group.throughput(Throughput::Bytes(8 * (heads * n * d) as u64));
        group.bench_function(format!("{name}/{size}"), |b| {
            b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| time(case)).sum()));
        });
        group.finish();
    }
    let attention = AttentionCase { heads: (heads, heads), lengths: (n, n), dims: (d, d), ..AttentionCase::default() };
    let attention = Timed::new(&gpu, &format!("attention/{size}"), attention, (n * n) as f64);
    let seconds = || attention.seconds();
    let runs: Vec<_> = cases.iter().map(|(name, case)| (*name, || time(case))).collect();
    let mut all: Vec<(&str, &dyn Fn() -> f64)> = vec![("attention", &seconds)];
    all.extend(runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> f64)));
    ratios(&size, &all);
}

criterion_group!(benches, bench);
criterion_main!(benches);
