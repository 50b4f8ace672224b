//! Flash attention on the GPU, timed by its own timestamps where it has them: sweeps over length and head dim, hooks on and
//! off, packed against padded, each beside the same in three tiled but unfused kernels (`unfused.wgsl`).
//! `cargo bench --features catalogue --bench flash`; the first line says on which adapter, the last ones give ratios of
//! interleaved runs, which mean more than times where a machine is shared.

mod common;
#[path = "flash/unfused.rs"]
mod unfused;

use common::{Gradients, Timed, group, ratios, testing};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use unfused::Unfused;
use wgpu_attention::catalogue::{AttentionCase, KnownHook};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{Causal, DType, FlashParams, Gpu};

fn dense(heads: usize, n: usize, d: usize) -> AttentionCase {
    AttentionCase { heads: (heads, heads), lengths: (n, n), dims: (d, d), ..AttentionCase::default() }
}

fn causal() -> FlashParams {
    FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() }
}

/// Lengths 1, 2, … `longest`, one after another.
fn packed(heads: usize, longest: usize, d: usize) -> AttentionCase {
    let offsets: Vec<usize> = (0..=longest).map(|n| n * (n + 1) / 2).collect();
    let rows = *offsets.last().expect("at least one");
    AttentionCase { cu_seqlens: Some([offsets.clone(), offsets]), ..dense(heads, rows, d) }
}

/// The same sequences, each in a batch entry of its own, as long as the longest.
fn padded(heads: usize, longest: usize, d: usize) -> AttentionCase {
    let lengths: Vec<usize> = (1..=longest).collect();
    AttentionCase {
        batch: longest,
        seqlens_q: Some(lengths.clone()),
        seqlens_k: Some(lengths),
        ..dense(heads, longest, d)
    }
}

/// What to measure: sizes for a processor, for a GPU, or just large enough to see that it still works.
struct Sizes {
    heads: usize,
    lengths: &'static [usize],
    head_dims: &'static [usize],
    n: usize,
    longest: usize,
}

impl Sizes {
    fn of(kind: AdapterKind) -> Self {
        match kind {
            _ if testing() => Self { heads: 1, lengths: &[70], head_dims: &[16], n: 70, longest: 9 },
            AdapterKind::Software => Self {
                heads: 8,
                lengths: &[256, 512, 1024, 2048],
                head_dims: &[32, 64, 80, 128, 256],
                n: 1024,
                longest: 512,
            },
            _ => Self {
                heads: 16,
                lengths: &[512, 1024, 2048, 4096, 8192, 16384],
                head_dims: &[32, 64, 80, 96, 128, 256],
                n: 4096,
                longest: 512,
            },
        }
    }
}

fn bench(criterion: &mut Criterion) {
    let gpu = pollster::block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}\nan element is a floating-point operation: thrpt is in FLOP/s and bytes/s", gpu.caps());
    pollster::block_on(unfused::check(&gpu));
    let sizes = Sizes::of(gpu.caps().kind);
    for &n in sizes.lengths {
        lengths(criterion, &gpu, sizes.heads, n, 64);
    }
    lengths(criterion, &gpu, sizes.heads, sizes.n, 128);
    for &d in sizes.head_dims {
        let name = format!("head dim/D {d} N {} H {}", sizes.n / 2, sizes.heads);
        let n = sizes.n / 2;
        Timed::new(&gpu, &name, dense(sizes.heads, n, d), (n * n) as f64).measure(criterion);
    }
    hooks(criterion, &gpu, sizes.heads, sizes.n);
    hooks(criterion, &gpu, sizes.heads, 2 * sizes.n);

    gradients(criterion, &gpu, sizes.heads, sizes.n);
    packing(criterion, &gpu, sizes.longest);
    few_queries(criterion, &gpu, sizes.heads, 4 * sizes.n);
}

fn lengths(criterion: &mut Criterion, gpu: &Gpu, heads: usize, n: usize, d: usize) {
    let size = format!("B 1 H {heads} N {n} D {d}");
    let pairs = (n * n) as f64;
    let full = Timed::new(gpu, &format!("f32/{size}"), dense(heads, n, d), pairs);
    let half = dense(heads, n, d).of_type(DType::F16);
    let half = Timed::new(gpu, &format!("f16/{size}"), half, pairs);
    let causal = AttentionCase { params: causal(), ..dense(heads, n, d) };
    let causal = Timed::new(gpu, &format!("f32 causal/{size}"), causal, pairs / 2.0);
    for timed in [&full, &half, &causal] {
        timed.measure(criterion);
    }
    let unfused = Unfused::new(gpu, &full.case);
    if let Some(unfused) = &unfused {
        let seconds = ratios(&size, &[("flash", &|| full.seconds()), ("unfused", &|| unfused.seconds())]);
        println!("  unfused {:.3} ms, {:.4} TFLOP/s", 1e3 * seconds[1], full.flops / seconds[1] * 1e-12);
    } else {
        println!("{size}: unfused does not run, its scores do not fit a binding");
    }
    ratios(&size, &[("flash", &|| full.seconds()), ("causal", &|| causal.seconds()), ("f16", &|| half.seconds())]);
}

fn hooks(criterion: &mut Criterion, gpu: &Gpu, heads: usize, n: usize) {
    let size = format!("B 1 H {heads} N {n} D 64");
    let pairs = (n * n) as f64;
    let with = |name: &str, change: &dyn Fn(AttentionCase) -> AttentionCase, visible: f64| {
        Timed::new(gpu, &format!("{name}/{size}"), change(dense(heads, n, 64)), visible)
    };
    let hook = |hook: KnownHook| move |case| AttentionCase { hooks: vec![hook], ..case };
    let documents = 16;
    let all = [
        with("plain", &|case| case, pairs),
        with(
            "softcap",
            &|case| AttentionCase { params: FlashParams { softcap: Some(8.0), ..case.params.clone() }, ..case },
            pairs,
        ),
        with("score_mod tanh", &hook(KnownHook::TanhCap), pairs),
        with("score_mod with a buffer", &hook(KnownHook::Relative), pairs),
        with("bias", &|case| AttentionCase { bias: Some([true, false, false, false]), ..case }, pairs),
        with("mask, random", &|case| AttentionCase { mask: Some([true, true, false, false]), ..case }, 0.9 * pairs),
        with("mask_mod prefix", &hook(KnownHook::Prefix), pairs / 2.0),
        with("mask_mod 16 documents", &hook(KnownHook::Documents(documents)), pairs / documents as f64),
    ];
    for timed in &all {
        timed.measure(criterion);
    }
    let runs: Vec<_> = all.iter().map(|timed| (timed.name.as_str(), || timed.seconds())).collect();
    let runs: Vec<(&str, &dyn Fn() -> f64)> = runs.iter().map(|(name, run)| (*name, run as _)).collect();
    ratios(&size, &runs);
}

fn packing(criterion: &mut Criterion, gpu: &Gpu, longest: usize) {
    let pairs: f64 = (1..=longest).map(|n| (n * n) as f64).sum();
    let n = pairs.sqrt().round() as usize;
    let sequences = format!("lengths 1 to {longest} H 1 D 64");
    let dense = Timed::new(gpu, &format!("as many pairs in one sequence/N {n} H 1 D 64"), dense(1, n, 64), pairs);
    let packed = Timed::new(gpu, &format!("packed/{sequences}"), packed(1, longest, 64), pairs);
    let padded = padded(1, longest, 64);
    let padded = Timed::new(gpu, &format!("padded/{sequences}"), padded, pairs / longest as f64);
    for timed in [&dense, &packed, &padded] {
        timed.measure(criterion);
    }
    let runs: [(&str, &dyn Fn() -> f64); 3] =
        [("one sequence", &|| dense.seconds()), ("packed", &|| packed.seconds()), ("padded", &|| padded.seconds())];
    ratios(&sequences, &runs);
}

/// The backward pass beside the forward pass. Arithmetic says 3.5 times the time.
fn gradients(criterion: &mut Criterion, gpu: &Gpu, heads: usize, n: usize) {
    for d in [64, 128] {
        let size = format!("B 1 H {heads} N {n} D {d}");
        let forward = Timed::new(gpu, &format!("forward/{size}"), dense(heads, n, d), (n * n) as f64);
        let backward = Gradients::new(gpu, dense(heads, n, d));
        let mut group = group(criterion, "flash");
        group.throughput(Throughput::Elements((2.5 * forward.flops) as u64));
        group.bench_function(format!("backward/{size}"), |b| {
            b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| backward.seconds()).sum()));
        });
        group.finish();
        let medians = ratios(&size, &[("forward", &|| forward.seconds()), ("backward", &|| backward.seconds())]);
        println!("ratio    forward and backward {:.3}", 1.0 + medians[1] / medians[0]);
    }
}

/// A long cache and one query, or as many as make a tile.
fn few_queries(criterion: &mut Criterion, gpu: &Gpu, heads: usize, keys: usize) {
    let with = |queries: usize| {
        let case = AttentionCase { lengths: (queries, keys), ..dense(heads, keys, 64) };
        let name = format!("few queries/{queries} of B 1 H {heads} N {keys} D 64");
        Timed::new(gpu, &name, case, (queries * keys) as f64)
    };
    let (tile, one) = (with(64), with(1));
    for timed in [&tile, &one] {
        timed.measure(criterion);
    }
    ratios(&format!("N {keys}"), &[("64 queries", &|| tile.seconds()), ("1 query", &|| one.seconds())]);
}

criterion_group!(benches, bench);
criterion_main!(benches);
