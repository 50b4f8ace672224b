//! Attention inside a wgpu program: `cargo run --release --example embed`.
//!
//! The program owns the device, the buffers and the encoder. A kernel of its own projects tokens to queries, keys and values, attention
//! reads them where they lie, and another kernel of its own adds the result to the tokens, in one encoder and one submit, without copies.

use wgpu_attention::wgpu::{self, BufferUsages as Usage, util::DeviceExt};
use wgpu_attention::{AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Gpu, Layout, Tensor};

const TOKENS: usize = 96;
const HEADS: usize = 8;
const HEADS_KV: usize = 2;
const DIM: usize = 32;
/// How many numbers a token has, and how many are projected from it.
const WIDTH: usize = HEADS * DIM;
const PROJECTED: usize = (HEADS + 2 * HEADS_KV) * DIM;

/// The program's own kernels: `qkv = x w`, and `x += out`.
const KERNELS: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> to: array<f32>;
@group(0) @binding(2) var<storage, read> other: array<f32>;

@compute @workgroup_size(64)
fn project(@builtin(global_invocation_id) at: vec3u) {
    if at.x >= PROJECTED { return; }
    var sum = 0.0;
    for (var c = 0u; c < WIDTH; c++) { sum += x[at.y * WIDTH + c] * other[c * PROJECTED + at.x]; }
    to[at.y * PROJECTED + at.x] = sum;
}

@compute @workgroup_size(64)
fn add(@builtin(global_invocation_id) at: vec3u) {
    if at.x < WIDTH { to[at.y * WIDTH + at.x] = x[at.y * WIDTH + at.x] + other[at.y * WIDTH + at.x]; }
}
";

/// One of the program's own kernels with its three buffers.
struct Own {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Own {
    fn new(device: &wgpu::Device, entry: &str, buffers: [&wgpu::Buffer; 3]) -> Self {
        let source = format!("const WIDTH = {WIDTH}u;\nconst PROJECTED = {PROJECTED}u;\n{KERNELS}");
        let source = wgpu::ShaderSource::Wgsl(source.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: None,
            module: &module,
            entry_point: Some(entry),
            compilation_options: Default::default(),
            cache: None,
        });
        let resources = buffers.iter().map(|buffer| buffer.as_entire_binding());
        let entries = (0..).zip(resources).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource });
        let entries: Vec<_> = entries.collect();
        let layout = &pipeline.get_bind_group_layout(0);
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
        Self { pipeline, group }
    }

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, columns: usize) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(columns.div_ceil(64) as u32, TOKENS as u32, 1);
    }
}

/// Numbers that look like a trained model's.
fn numbers(count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|i| scale * (1.7 * i as f32 + (0.31 * i as f32).sin()).sin()).collect()
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    // The program's device: any will do, and this descriptor makes attention fast.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let (device, queue) = adapter.request_device(&Gpu::device_descriptor(&adapter)).await?;

    // Its buffers.
    let filled = |contents: &[f32]| {
        let (contents, usage) = (bytemuck::cast_slice(contents), Usage::STORAGE | Usage::COPY_SRC);
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents, usage })
    };
    let x = filled(&numbers(TOKENS * WIDTH, 1.0));
    let weights = filled(&numbers(WIDTH * PROJECTED, (WIDTH as f32).powf(-0.5)));
    let (qkv, out, sum) =
        (filled(&[0.0; TOKENS * PROJECTED]), filled(&[0.0; TOKENS * WIDTH]), filled(&[0.0; TOKENS * WIDTH]));

    // Attention over views of them. Preparing compiles; from then on nothing can fail but the device.
    let gpu = Gpu::from_device(&device, &queue);
    let parts = Layout::packed_qkv(DType::F32, [1, HEADS, TOKENS, DIM], HEADS_KV);
    let [q, k, v] = Tensor::wrap_all(&gpu, &qkv, parts)?;
    let to = Tensor::wrap(&gpu, &out, Layout::heads_last(DType::F32, [1, HEADS, TOKENS, DIM]))?;
    let lse = Tensor::empty(&gpu, Layout::heads_first(DType::F32, [1, HEADS, TOKENS, 1])).await?;
    let (inputs, outputs) = (AttentionInputs::new(&q, &k, &v), AttentionOutputs::new(&to, &lse));
    let prepared = FlashAttention::new(&gpu, FlashParams::causal())?.prepare((&inputs, &outputs)).await?;
    println!("{}\n", prepared.plan());

    let project = Own::new(&device, "project", [&x, &qkv, &weights]);
    let add = Own::new(&device, "add", [&x, &sum, &out]);
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        project.encode(&mut pass, PROJECTED);
        prepared.encode_in(&mut pass, (&inputs, &outputs))?;
        add.encode(&mut pass, WIDTH);
    }
    queue.submit([encoder.finish()]);

    // The first token sees only itself: its output is its own value.
    let values = [to.read().await?, v.read().await?];
    let found = Tensor::wrap(&gpu, &sum, Layout::heads_first(DType::F32, [1, 1, TOKENS, WIDTH]))?.read().await?;
    assert!((values[0][0] - values[1][0]).abs() < 1e-5);
    println!("{TOKENS} tokens of {WIDTH} numbers went through one encoder; the first is {:.3?} …", &found[..4]);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(run())
}
