//! What the benches share: a problem ready to be timed, and ratios of interleaved runs.
#![allow(dead_code)] // each bench uses its part

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use std::time::Duration;
use wgpu_attention::catalogue::{AttentionCase, AttentionTensors, BackwardCase};
use wgpu_attention::{AttentionInputs, AttentionOutputs, Gpu, Prepared};

/// Whether this is a test that benches still work, not a measurement.
pub fn testing() -> bool {
    std::env::args().all(|argument| argument != "--bench")
}

/// A group with few samples: what is measured takes long.
/// Whether the command line names this part, or none.
pub fn wanted(part: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|name| name == part)
}

pub fn group<'a>(criterion: &'a mut Criterion, family: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(family);
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(2));
    group
}

/// A problem on the GPU, ready to be timed.
pub struct Timed {
    pub name: String,
    pub case: AttentionCase,
    /// Multiply and add of every pair of query and key that see each other count as two each.
    pub flops: f64,
    gpu: Gpu,
    prepared: Prepared,
    tensors: AttentionTensors,
}

impl Timed {
    /// `visible` pairs of query and key to a head see each other.
    pub fn new(gpu: &Gpu, name: &str, case: AttentionCase, visible: f64) -> Self {
        let (tensors, prepared) = pollster::block_on(async {
            let tensors = case.upload(gpu).await.expect("memory for the tensors");
            let prepared = case.prepare(gpu, &tensors).await.expect("a valid case");
            (tensors, prepared)
        });
        let flops = 2.0 * visible * (case.batch * case.heads.0 * (case.dims.0 + case.dims.1)) as f64;
        Self { name: name.into(), case, flops, gpu: gpu.clone(), prepared, tensors }
    }

    /// What runs.
    pub fn plan(&self) -> String {
        self.prepared.plan().to_string()
    }

    /// What it reads and writes.
    pub fn arguments(&self) -> (AttentionInputs<'_>, AttentionOutputs) {
        self.case.arguments(&self.tensors)
    }

    pub fn seconds(&self) -> f64 {
        let call = self.arguments();
        let time = self.gpu.time(|pass| self.prepared.encode_in(pass, call));
        pollster::block_on(time).expect("a GPU that works").seconds
    }

    /// Bytes that have to be moved at least: every input read and the output written once.
    pub fn bytes(&self) -> f64 {
        let tensors = ["q", "k", "v", "out", "lse"].into_iter().filter_map(|name| self.tensors.get(name));
        tensors.map(|t| t.shape().iter().product::<usize>() as f64 * t.layout().dtype.bytes() as f64).sum()
    }

    pub fn measure(&self, criterion: &mut Criterion) {
        let mut group = group(criterion, wgpu_attention::catalogue::Case::kernel(&self.case));
        group.throughput(Throughput::ElementsAndBytes { elements: self.flops as u64, bytes: self.bytes() as u64 });
        group.bench_function(&self.name, |b| {
            b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| self.seconds()).sum()));
        });
        group.finish();
    }
}

/// The gradients of a case, ready to be timed.
pub struct Gradients {
    gpu: Gpu,
    ready: wgpu_attention::catalogue::Ready,
}

impl Gradients {
    pub fn new(gpu: &Gpu, case: AttentionCase) -> Self {
        let case = BackwardCase::of(case);
        let ready = pollster::block_on(case.prepare(gpu)).expect("memory for the tensors");
        Self { gpu: gpu.clone(), ready }
    }

    pub fn seconds(&self) -> f64 {
        pollster::block_on(self.ready.time(&self.gpu)).expect("a GPU that works").seconds
    }
}

/// Medians of interleaved runs, printed over the first one's: times drift on a shared machine, these do not.
pub fn ratios(what: &str, runs: &[(&str, &dyn Fn() -> f64)]) -> Vec<f64> {
    let rounds = 5;
    let mut times = vec![vec![]; runs.len()];
    for _ in 0..rounds {
        for (times, (_, run)) in times.iter_mut().zip(runs) {
            times.push(run());
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("ratio  {what}: {} 1 = {:.3} ms", runs[0].0, 1e3 * medians[0]);
    for ((name, _), median) in runs.iter().zip(&medians).skip(1) {
        println!("ratio    {name} {:.3}", median / medians[0]);
    }
    medians
}

/// Of an odd number of times.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
