//! The engines in turns, on an adapter whose shaders run on a CPU: `portable` over `processor`, and the share of what the adapter
//! multiplies and adds at most (`common/peaks.wgsl`, in the same rounds).
//! `cargo bench --features catalogue --bench engines`. `BENCHMARKS.md` has what was seen.

mod common;
#[path = "common/peaks.rs"]
mod peaks;

use common::{Gradients, Timed, median, testing};
use peaks::Peaks;
use pollster::block_on;
use wgpu_attention::catalogue::{AttentionCase, BlockCase, LinearBackwardCase, LinearCase, Ready};
use wgpu_attention::plan::Engine;
use wgpu_attention::{Causal, FlashParams, Gpu, GpuOptions, LinearParams, NeighborhoodAxis};

const ROUNDS: usize = 5;

struct Workload {
    name: String,
    case: Box<dyn Fn() -> AttentionCase>,
    /// Pairs of query and key to a head that see each other.
    pairs: f64,
    gradients: bool,
}

fn dense(heads: usize, n: usize, d: usize) -> AttentionCase {
    AttentionCase { heads: (heads, heads), lengths: (n, n), dims: (d, d), ..AttentionCase::default() }
}

fn causal() -> FlashParams {
    FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() }
}

fn workloads() -> Vec<Workload> {
    let (mut all, small) = (vec![], testing());
    let mut add = |name: String, pairs: f64, gradients: bool, case: Box<dyn Fn() -> AttentionCase>| {
        all.push(Workload { name, case, pairs, gradients });
    };
    let sizes = [(8, 256, 64), (8, 1024, 32), (8, 1024, 64), (8, 1024, 128), (8, 4096, 64)];
    for (heads, n, d) in if small { vec![(1, 70, 16)] } else { sizes.to_vec() } {
        let (size, pairs) = (format!("H {heads} N {n} D {d}"), (n * n) as f64);
        add(format!("dense {size}"), pairs, n <= 1024, Box::new(move || dense(heads, n, d)));
        let causal = move || AttentionCase { params: causal(), ..dense(heads, n, d) };
        add(format!("causal {size}"), pairs / 2.0, n <= 1024, Box::new(causal));
    }
    let (side, window) = if small { (9, 3) } else { (64, 13) };
    let axes = vec![NeighborhoodAxis::new(side, window); 2];
    let neighborhood = move || AttentionCase { heads: (2, 2), dims: (64, 64), ..AttentionCase::neighborhood(&axes) };
    let pairs = (side * side * window * window) as f64;
    add(format!("neighborhood {side}², {window}², H 2 D 64"), pairs, true, Box::new(neighborhood));
    let n = if small { 200 } else { 8192 };
    let chosen =
        BlockCase { block: [64, 64], density: 0.1, by_row: true, repeated: [true, false], ..BlockCase::default() };
    let sparse = move || AttentionCase { blocks: Some(chosen.clone()), params: causal(), ..dense(1, n, 64) };
    let row = |i: usize| (0.1 * (i + 1) as f64).max(1.0).floor() * 64.0 * 64.0;
    let pairs = (0..n.div_ceil(64)).map(row).sum();
    add(format!("blocks of 64², 90 % hidden, H 1 N {n} D 64"), pairs, true, Box::new(sparse));
    let keys = if small { 1100 } else { 16384 };
    let dims = (128, 128);
    let decode = move || AttentionCase { heads: (32, 8), lengths: (1, keys), dims, ..AttentionCase::default() };
    add(format!("decode H 32/8 N {keys} D 128"), keys as f64, false, Box::new(decode));
    all
}

fn main() {
    let gpu = |engine| {
        let options = GpuOptions { engine: Some(engine), ..GpuOptions::default() };
        block_on(Gpu::request_with(&options))
    };
    let portable = gpu(Engine::Portable).expect("a GPU driver");
    let processor = match gpu(Engine::Processor) {
        Ok(processor) => processor,
        Err(error) => return println!("engine processor does not run here: {error}"),
    };
    let peaks = Peaks::new(&portable);
    println!("{}", portable.caps());
    println!("medians of {ROUNDS} rounds in turns; portable over processor; of the multiply-add peak\n");
    println!(
        "| workload | portable ms | processor ms | ratio | GFLOP/s | peak | share |\n|---|---|---|---|---|---|---|"
    );
    for Workload { name, case, pairs, gradients } in workloads() {
        let forward = [&portable, &processor].map(|gpu| Timed::new(gpu, &name, case(), pairs));
        let flops = forward[0].flops;
        row(&name, flops, &peaks, [&|| forward[0].seconds(), &|| forward[1].seconds()]);
        if gradients {
            let backward = [&portable, &processor].map(|gpu| Gradients::new(gpu, case()));
            let name = format!("{name}, backward");
            row(&name, 2.5 * flops, &peaks, [&|| backward[0].seconds(), &|| backward[1].seconds()]);
        }
    }
    linear(&portable, &processor, &peaks);
    println!("\nreads: {:.1} GB/s at most", 1e-9 * median((0..ROUNDS).map(|_| peaks.reads()).collect()));
}

/// Linear attention with gates of heads, token by token: a state of D × D numbers absorbs and is read. Gradients take three such walks.
fn linear(portable: &Gpu, processor: &Gpu, peaks: &Peaks) {
    let (heads, tokens, dim) = if testing() { (1, 300, 16) } else { (4, 8192, 64) };
    let params = LinearParams { slopes: Some(LinearParams::retnet_slopes(heads)), ..LinearParams::default() };
    let forward = LinearCase { heads: [heads; 3], tokens, dims: (dim, dim), params, ..LinearCase::default() };
    let ready = [portable, processor].map(|gpu| block_on(forward.ready(gpu)).expect("memory for the tensors"));
    let backward = LinearBackwardCase { forward, dht: false };
    let gradients = [portable, processor].map(|gpu| block_on(backward.ready(gpu)).expect("memory for the tensors"));
    let seconds = |gpu: &Gpu, ready: &Ready| block_on(ready.time(gpu)).expect("a GPU that works").seconds;
    let name = format!("linear H {heads} T {tokens} D {dim}");
    let flops = (4 * heads * tokens * dim * dim) as f64;
    let all = [(name.clone(), flops, &ready), (format!("{name}, backward"), 3.0 * flops, &gradients)];
    for (name, flops, [a, b]) in all {
        row(&name, flops, peaks, [&|| seconds(portable, a), &|| seconds(processor, b)]);
    }
}

fn row(name: &str, flops: f64, peaks: &Peaks, runs: [&dyn Fn() -> f64; 2]) {
    let rounds = if testing() { 1 } else { ROUNDS };
    let (mut times, mut peak) = ([vec![], vec![]], vec![]);
    // The first round warms up.
    for _ in 0..=rounds {
        times.iter_mut().zip(runs).for_each(|(times, run)| times.push(run()));
        peak.push(peaks.multiply_adds());
    }
    let [portable, processor] = times.map(|times| median(times[1..].to_vec()));
    let (reached, peak) = (flops / processor, median(peak));
    println!(
        "| {name} | {:.1} | {:.1} | {:.2} | {:.1} | {:.1} | {:.0} % |",
        1e3 * portable,
        1e3 * processor,
        portable / processor,
        1e-9 * reached,
        1e-9 * peak,
        100.0 * reached / peak
    );
}
