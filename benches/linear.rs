//! Linear attention on the GPU: tokens per second at a constant number of tokens, beside this crate's own causal flash attention; the
//! three algorithms beside one another; each rule and kind of gates beside the plain rule; decoding in place beside a copy of the state.
//! `cargo bench --features catalogue --bench linear`, or some of it: `-- rules decoding`.

mod common;

use common::{Timed, group, ratios, testing, wanted};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollster::block_on;
use std::time::Duration;
use wgpu_attention::catalogue::{AttentionCase, LinearCase, LinearMomentumCase, Ready};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{Causal, FlashParams, Gpu, LinearAlgorithm, LinearParams, LinearRule};

/// Sizes to measure.
struct Sizes {
    heads: usize,
    dim: usize,
    /// Batch entries times tokens.
    all: usize,
    tokens: Vec<usize>,
    /// The longest that flash attention is measured at.
    flash: usize,
    /// Batch entries and heads of decoding.
    decoding: (usize, usize),
}

fn sizes(gpu: &Gpu) -> Sizes {
    match gpu.caps().kind {
        _ if testing() => Sizes { heads: 1, dim: 16, all: 128, tokens: vec![64, 128], flash: 64, decoding: (1, 2) },
        AdapterKind::Software => Sizes {
            heads: 4,
            dim: 64,
            all: 32768,
            tokens: (10..=15).map(|log| 1 << log).collect(),
            flash: 4096,
            decoding: (64, 16),
        },
        _ => Sizes {
            heads: 32,
            dim: 128,
            all: 131_072,
            tokens: (10..=17).map(|log| 1 << log).collect(),
            flash: 8192,
            decoding: (64, 32),
        },
    }
}

fn case(batch: usize, heads: usize, tokens: usize, dim: usize, algorithm: Option<LinearAlgorithm>) -> LinearCase {
    let slopes = Some(LinearParams::retnet_slopes(heads));
    let params = LinearParams { slopes, algorithm, ..LinearParams::default() };
    LinearCase { batch, heads: [heads; 3], tokens, dims: (dim, dim), params, ..LinearCase::default() }
}

/// On the GPU, warm.
fn ready(gpu: &Gpu, case: &LinearCase) -> Ready {
    let ready = block_on(case.ready(gpu)).expect("memory for the tensors");
    seconds(gpu, &ready);
    ready
}

fn seconds(gpu: &Gpu, ready: &Ready) -> f64 {
    block_on(ready.time(gpu)).expect("a GPU that works").seconds
}

fn bench(criterion: &mut Criterion) {
    let gpu = block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}", gpu.caps());
    let sizes = sizes(&gpu);
    if wanted("lengths") {
        lengths(criterion, &gpu, &sizes);
    }
    if wanted("algorithms") {
        algorithms(&gpu, &sizes);
    }
    if wanted("rules") {
        rules(&gpu, &sizes, |rule| rule != LinearRule::Momentum);
    }
    if wanted("momentum") {
        rules(&gpu, &sizes, |rule| rule == LinearRule::Momentum);
    }
    if wanted("decoding") {
        decoding(&gpu, &sizes);
    }
}

/// The same number of tokens in ever longer sequences.
fn lengths(criterion: &mut Criterion, gpu: &Gpu, sizes: &Sizes) {
    let Sizes { heads, dim, all, .. } = *sizes;
    let found: Vec<_> = sizes
        .tokens
        .iter()
        .map(|&tokens| (tokens, ready(gpu, &case(all / tokens, heads, tokens, dim, None))))
        .collect();
    let mut group = group(criterion, "linear");
    group.throughput(Throughput::Elements(all as u64));
    for (tokens, ready) in &found {
        group.bench_function(format!("B {} H {heads} T {tokens} D {dim}", all / tokens), |b| {
            b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| seconds(gpu, ready)).sum()));
        });
    }
    group.finish();
    let params = FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let flash: Vec<_> = sizes
        .tokens
        .iter()
        .filter(|&&tokens| tokens <= sizes.flash)
        .map(|&n| {
            let (heads, lengths, dims) = ((heads, heads), (n, n), (dim, dim));
            let case =
                AttentionCase { batch: all / n, heads, lengths, dims, params: params.clone(), ..Default::default() };
            let timed = Timed::new(gpu, "flash", case, (n * (n + 1) / 2) as f64);
            timed.seconds();
            (n, timed)
        })
        .collect();
    let names: Vec<String> = found.iter().map(|(tokens, _)| format!("linear, T {tokens}")).collect();
    let flash_names: Vec<String> = flash.iter().map(|(tokens, _)| format!("causal flash, T {tokens}")).collect();
    let runs: Vec<Box<dyn Fn() -> f64>> = found
        .iter()
        .map(|(_, ready)| Box::new(|| seconds(gpu, ready)) as Box<dyn Fn() -> f64>)
        .chain(flash.iter().map(|(_, timed)| Box::new(|| timed.seconds()) as _))
        .collect();
    let named: Vec<_> =
        names.iter().chain(&flash_names).map(String::as_str).zip(runs.iter().map(|run| run as _)).collect();
    let medians = ratios(&format!("H {heads} D {dim}, {all} tokens in all"), &named);
    for ((tokens, ready), seconds) in found.iter().zip(&medians) {
        println!("         T {tokens}: {:.3e} tokens/s; {}", all as f64 / seconds, ready.plan());
    }
    let own = &medians[..found.len()];
    let (least, most) = own.iter().fold((f64::INFINITY, 0f64), |(least, most), &x| (least.min(x), most.max(x)));
    println!("ratio    slowest over fastest length {:.3}", most / least);
    for ((tokens, _), (ours, flash)) in flash.iter().zip(own.iter().zip(&medians[found.len()..])) {
        println!("ratio    T {tokens}: flash over linear {:.2}", flash / ours);
    }
}

/// Each algorithm by the number of tokens, for one sequence and for many.
fn algorithms(gpu: &Gpu, sizes: &Sizes) {
    let Sizes { heads, dim, .. } = *sizes;
    let longest = sizes.tokens.iter().copied().max().unwrap_or(1) / 4;
    let lengths = [1, 4, 8, 16, 24, 32, 64, 256, 1024, longest].into_iter().filter(|&tokens| tokens <= longest);
    for tokens in lengths {
        for batch in [1, 16] {
            let all = [
                ("token by token", LinearAlgorithm::Recurrent),
                ("one pass", LinearAlgorithm::OnePass),
                ("three passes", LinearAlgorithm::ThreePass),
            ]
            .map(|(name, algorithm)| (name, ready(gpu, &case(batch, heads, tokens, dim, Some(algorithm)))));
            let runs = all.each_ref().map(|(name, ready)| (*name, || seconds(gpu, ready)));
            let named = runs.each_ref().map(|(name, run)| (*name, run as &dyn Fn() -> f64));
            ratios(&format!("B {batch} H {heads} D {dim}, T {tokens}"), &named);
        }
    }
}

/// Each rule with each kind of gates by the length, in turns with the plain rule at the first length, and what its arithmetic has more.
fn rules(gpu: &Gpu, sizes: &Sizes, takes: impl Fn(LinearRule) -> bool) {
    let Sizes { heads, all, .. } = *sizes;
    let (dim, first) = (if testing() { sizes.dim } else { 128 }, sizes.tokens[0]);
    let case = |tokens: usize, rule: LinearRule, gated: bool, by_channel: bool| {
        let case = case(all / tokens, heads, tokens, dim, None);
        let params = LinearParams { rule, slopes: None, ..case.params };
        let betas = (rule == LinearRule::Delta).then_some(heads);
        LinearCase { params, gates: gated.then_some((1.0, 1000)), by_channel, betas, ..case }
    };
    let ready = |case: &LinearCase, algorithm| match case.params.rule {
        LinearRule::Momentum => {
            let mut case = LinearMomentumCase::of(case.clone());
            case.tokens.params.algorithm = algorithm;
            let ready = block_on(case.ready(gpu)).expect("memory for the tensors");
            seconds(gpu, &ready);
            ready
        }
        _ => ready(gpu, case),
    };
    let plain = ready(&case(first, LinearRule::Linear, false, false), None);
    let [one_by_one, one_pass] = [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass].map(Some);
    // Operations of a token for each element of the state.
    for (name, work, rule, gated, by_channel, algorithm) in [
        ("plain", 5.0, LinearRule::Linear, false, false, None),
        ("gates by token", 5.0, LinearRule::Linear, true, false, None),
        ("gates by channel", 5.0, LinearRule::Linear, true, true, None),
        ("delta", 7.0, LinearRule::Delta, false, false, None),
        ("delta, gates by token", 7.0, LinearRule::Delta, true, false, None),
        ("delta, gates by channel", 7.0, LinearRule::Delta, true, true, None),
        ("momentum, token by token", 10.0, LinearRule::Momentum, false, false, one_by_one),
        ("momentum, one pass", 10.0, LinearRule::Momentum, false, false, one_pass),
    ]
    .into_iter()
    .filter(|(_, _, rule, ..)| takes(*rule))
    // Where shaders run on a processor, arithmetic is what counts: chunks take minutes.
    .filter(|(.., algorithm)| *algorithm != one_pass || testing() || gpu.caps().kind != AdapterKind::Software)
    {
        let lengths = sizes.tokens.iter();
        let calls: Vec<_> = lengths.map(|&n| (n, ready(&case(n, rule, gated, by_channel), algorithm))).collect();
        let names: Vec<String> = calls.iter().map(|(tokens, _)| format!("{name}, T {tokens}")).collect();
        let runs: Vec<_> = calls.iter().map(|(_, call)| || seconds(gpu, call)).collect();
        let of_plain = || seconds(gpu, &plain);
        let mut named: Vec<(&str, &dyn Fn() -> f64)> = vec![("plain rule", &of_plain)];
        named.extend(names.iter().zip(&runs).map(|(name, run)| (name.as_str(), run as &dyn Fn() -> f64)));
        let medians = ratios(&format!("{name}, H {heads} D {dim}, {all} tokens in all"), &named);
        let (least, most) =
            medians[1..].iter().fold((f64::INFINITY, 0f64), |(least, most), &x| (least.min(x), most.max(x)));
        println!(
            "         {:.3e} tokens/s, {:.2} of the plain rule's time, {:.2} of its operations; slowest over fastest length {:.3}; {}",
            all as f64 / medians[1],
            medians[1] / medians[0],
            work / 5.0,
            most / least,
            calls[0].1.plan()
        );
    }
}

/// A token in place, beside a kernel that reads and writes as much.
fn decoding(gpu: &Gpu, sizes: &Sizes) {
    let ((batch, heads), dim) = (sizes.decoding, if testing() { sizes.dim } else { 128 });
    let bytes = (8 * batch * heads * dim * dim) as f64;
    let copy = Copy::new(gpu, bytes as u64 / 2);
    copy.seconds(gpu);
    for tokens in [1, 2, 8] {
        let of = |gates| LinearCase { in_place: true, gates, ..case(batch, heads, tokens, dim, None) };
        let by_head = ready(gpu, &of(None));
        let mut by_token = of(Some((1.0, 1000)));
        by_token.params.slopes = None;
        let by_token = ready(gpu, &by_token);
        let mut delta = of(Some((1.0, 1000)));
        delta.params = LinearParams { rule: LinearRule::Delta, slopes: None, ..delta.params };
        delta.betas = Some(heads);
        let delta = ready(gpu, &delta);
        let (a, b, c) = (|| copy.seconds(gpu), || seconds(gpu, &by_head), || seconds(gpu, &by_token));
        let d = || seconds(gpu, &delta);
        let runs: [(&str, &dyn Fn() -> f64); 4] =
            [("copy of the state", &a), ("gates by head", &b), ("gates by token", &c), ("delta, gates by token", &d)];
        let medians = ratios(&format!("decoding {tokens} in place, B {batch} H {heads} D {dim}"), &runs);
        for ((name, _), seconds) in runs.iter().zip(&medians) {
            println!(
                "         {name}: {:.2} GB/s of states, {:.2} of the copy",
                bytes / seconds * 1e-9,
                medians[0] / seconds
            );
        }
    }
}

/// A kernel that only copies.
struct Copy {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: u32,
}

impl Copy {
    fn new(gpu: &Gpu, bytes: u64) -> Self {
        let text = "@group(0) @binding(0) var<storage, read> a: array<vec4f>;
            @group(0) @binding(1) var<storage, read_write> b: array<vec4f>;
            @compute @workgroup_size(64)
            fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) thread: u32) {
                for (var i = 0u; i < 16u; i++) { let at = (w.x * 16u + i) * 64u + thread; b[at] = a[at]; }
            }";
        let device = gpu.device();
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some("copy"), source };
        // SAFETY: the buffers hold as much as the workgroups reach.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("copy"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        let workgroups = bytes.div_ceil(16 * 16 * 64) as u32;
        let size = u64::from(workgroups) * 16 * 16 * 64;
        let buffer = || {
            let usage = wgpu::BufferUsages::STORAGE;
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("copy"),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let (a, b) = (buffer(), buffer());
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("copy"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: a.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: b.as_entire_binding() },
            ],
        });
        Self { pipeline, group, workgroups }
    }

    fn seconds(&self, gpu: &Gpu) -> f64 {
        let time = gpu.time(|pass| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(self.workgroups, 1, 1);
            Ok(())
        });
        block_on(time).expect("a GPU that works").seconds
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
