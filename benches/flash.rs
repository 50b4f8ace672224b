//! Flash attention on the GPU: time by its own timestamps, against the same in three unfused kernels (`unfused.wgsl`).
//! `cargo bench --bench flash`; the first lines say on which adapter.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use wgpu_attention::catalogue::{FlashCase, FlashTensors, normal};
use wgpu_attention::{Causal, DType, FlashInputs, FlashOutputs, FlashParams, FlashPrepared, Gpu, Layout, Tensor};

const HEADS: usize = 8;

fn case(n: usize, d: usize, causal: bool) -> FlashCase {
    FlashCase {
        heads: (HEADS, HEADS),
        lengths: (n, n),
        dims: (d, d),
        params: FlashParams { causal: causal.then_some(Causal::BottomRight), ..FlashParams::default() },
        ..FlashCase::default()
    }
}

/// The baseline, prepared for one size.
struct Unfused {
    gpu: Gpu,
    group: wgpu::BindGroup,
    stages: Vec<(wgpu::ComputePipeline, [u32; 3])>,
    out: Tensor,
}

impl Unfused {
    async fn new(gpu: &Gpu, case: &FlashCase) -> Self {
        let (n, d) = (case.lengths.0, case.dims.0);
        let device = gpu.device();
        let shape = [1, HEADS, n, d];
        let mut tensors = Vec::new();
        for seed in 0..3 {
            let values = normal(case.seed + seed, HEADS * n * d, 1.0, DType::F32);
            tensors.push(Tensor::upload(gpu, shape, DType::F32, &values).await.expect("memory for q, k, v"));
        }
        for shape in [[1, HEADS, n, n], shape] {
            let layout = Layout::heads_first(DType::F32, shape);
            tensors.push(Tensor::empty(gpu, layout).await.expect("memory for scores and output"));
        }
        let sizes = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("sizes"),
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let scale = (1.0 / (d as f32).sqrt()).to_bits();
        let words = [n as u32, d as u32, scale, case.params.causal.is_some().into()];
        gpu.queue().write_buffer(&sizes, 0, &words.map(u32::to_le_bytes).concat());
        let buffers = || std::iter::once(&sizes).chain(tensors.iter().map(Tensor::buffer)).zip(0..);
        let entries: Vec<_> = buffers()
            .map(|(_, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => wgpu::BufferBindingType::Uniform,
                        _ => wgpu::BufferBindingType::Storage { read_only: binding < 4 },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let module = device.create_shader_module(wgpu::include_wgsl!("unfused.wgsl"));
        let tiles = |size: usize, tile: usize| size.div_ceil(tile) as u32;
        let heads = HEADS as u32;
        let stages = [
            ("score", [tiles(n, 16), tiles(n, 16), heads]),
            ("soften", [tiles(n, 64), 1, heads]),
            ("weigh", [tiles(d, 16), tiles(n, 16), heads]),
        ]
        .map(|(entry, size)| {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: Default::default(),
                cache: None,
            });
            (pipeline, size)
        });
        let entries: Vec<_> = buffers()
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        let out = tensors.pop().expect("five tensors");
        Self { gpu: gpu.clone(), group, stages: stages.into(), out }
    }

    async fn time(&self) -> f64 {
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            pass.set_bind_group(0, &self.group, &[]);
            for (pipeline, [x, y, z]) in &self.stages {
                pass.set_pipeline(pipeline);
                pass.dispatch_workgroups(*x, *y, *z);
            }
            Ok(())
        };
        self.gpu.time(record).await.expect("a GPU that works").seconds
    }
}

/// The kernel, prepared for one case.
struct Fused {
    gpu: Gpu,
    prepared: FlashPrepared,
    tensors: FlashTensors,
}

impl Fused {
    async fn new(gpu: &Gpu, case: &FlashCase) -> Self {
        let tensors = case.upload(gpu).await.expect("memory for the tensors");
        let prepared = case.prepare(gpu, &tensors).await.expect("a valid case");
        Self { gpu: gpu.clone(), prepared, tensors }
    }

    async fn time(&self) -> f64 {
        let FlashTensors { inputs: [q, k, v], outputs: [out, lse], .. } = &self.tensors;
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            self.prepared.encode_in(pass, &FlashInputs::new(q, k, v), &FlashOutputs { out, lse })
        };
        self.gpu.time(record).await.expect("a GPU that works").seconds
    }
}

/// The baseline must compute the same, or its time means nothing.
async fn check_baseline(gpu: &Gpu) {
    for causal in [false, true] {
        let case = case(80, 20, causal);
        let unfused = Unfused::new(gpu, &case).await;
        unfused.time().await;
        let out = unfused.out.read().await.expect("a GPU that works");
        assert!(case.compare_out(&out).passed(), "the unfused kernels are wrong");
    }
}

fn bench(criterion: &mut Criterion) {
    let gpu = pollster::block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}", gpu.caps());
    pollster::block_on(check_baseline(&gpu));
    let mut group = criterion.benchmark_group("flash");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(4));
    // `cargo test` runs each benchmark once, to see that it still works: small ones will do.
    let testing = std::env::args().all(|argument| argument != "--bench");
    for (d, n) in if testing { [(16, 70), (128, 20)] } else { [(64, 1024), (128, 1024)] } {
        let flops = 4.0 * (HEADS * n * n * d) as f64;
        let (full, causal) = (case(n, d, false), case(n, d, true));
        let unfused = pollster::block_on(Unfused::new(&gpu, &full));
        let [full, causal] = [full, causal].map(|case| pollster::block_on(Fused::new(&gpu, &case)));
        let mut measure = |name: &str, flops: f64, time: &dyn Fn() -> f64| {
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(format!("{name}/B 1 H {HEADS} N {n} D {d} f32"), |b| {
                b.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| time()).sum()));
            });
        };
        measure("unfused", flops, &|| pollster::block_on(unfused.time()));
        measure("flash", flops, &|| pollster::block_on(full.time()));
        measure("flash causal", flops / 2.0, &|| pollster::block_on(causal.time()));
        ratios(n, d, &unfused, &full, &causal);
    }
    group.finish();
}

/// Times drift on a shared machine; ratios of interleaved runs do not.
fn ratios(n: usize, d: usize, unfused: &Unfused, full: &Fused, causal: &Fused) {
    let rounds = 5;
    let mut times = [vec![], vec![], vec![]];
    for _ in 0..rounds {
        times[0].push(pollster::block_on(unfused.time()));
        times[1].push(pollster::block_on(full.time()));
        times[2].push(pollster::block_on(causal.time()));
    }
    let [unfused, full, causal] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[rounds / 2]
    });
    println!(
        "N {n} D {d}, medians of {rounds} interleaved runs: unfused / flash {:.2}, causal / not causal {:.3}",
        unfused / full,
        causal / full
    );
}

criterion_group!(benches, bench);
criterion_main!(benches);
