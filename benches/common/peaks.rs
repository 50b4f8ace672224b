//! The limits of an adapter, measured by two small kernels: one that only multiplies and adds in registers, one that only reads.

use std::time::Instant;
use wgpu_attention::Gpu;

const THREADS: u32 = 64;
const WORKGROUPS: u32 = 1024;
/// What `multiply` does in a round of one thread.
const FLOPS: f64 = 384.0;
/// Bytes that are read: more than the caches of a processor hold.
const BYTES: u64 = 128 << 20;
/// Seconds that a run should take at least.
const LONG_ENOUGH: f64 = 0.02;

/// Both kernels, ready to be timed from submit to the end of the work.
pub struct Peaks {
    gpu: Gpu,
    multiply: (wgpu::ComputePipeline, wgpu::BindGroup),
    read: (wgpu::ComputePipeline, wgpu::BindGroup),
    /// Rounds of `multiply`: as many as take long enough.
    rounds: u32,
    params: wgpu::Buffer,
    vectors: u32,
}

impl Peaks {
    pub fn new(gpu: &Gpu) -> Self {
        let device = gpu.device();
        let source = wgpu::ShaderSource::Wgsl(include_str!("peaks.wgsl").into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("peaks"), source });
        let buffer = |label: &str, size: u64, usage: wgpu::BufferUsages| {
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        let bytes = BYTES.min(gpu.caps().binding_bytes);
        let params = buffer("params", 16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        let to = buffer("to", 16 * u64::from(THREADS * WORKGROUPS), wgpu::BufferUsages::STORAGE);
        let from = buffer("from", bytes, wgpu::BufferUsages::STORAGE);
        let kernel = |entry: &str, buffers: &[&wgpu::Buffer]| {
            let constants = [("THREADS", f64::from(THREADS))];
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
                cache: None,
            });
            let resources = buffers.iter().map(|buffer| buffer.as_entire_binding());
            let entries: Vec<_> =
                (0..).zip(resources).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
            let layout = &pipeline.get_bind_group_layout(0);
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
            (pipeline, group)
        };
        let multiply = kernel("multiply", &[&params, &to]);
        let read = kernel("read_all", &[&params, &to, &from]);
        let mut peaks = Self { gpu: gpu.clone(), multiply, read, rounds: 16, params, vectors: (bytes / 16) as u32 };
        peaks.reads();
        while peaks.seconds(&peaks.multiply) < LONG_ENOUGH {
            peaks.rounds *= 2;
        }
        peaks
    }

    /// Floating-point operations a second: multiply and add count as two.
    pub fn multiply_adds(&self) -> f64 {
        let all = f64::from(THREADS * WORKGROUPS) * f64::from(self.rounds) * FLOPS;
        all / self.seconds(&self.multiply)
    }

    /// Bytes a second.
    pub fn reads(&self) -> f64 {
        16.0 * f64::from(self.vectors) / self.seconds(&self.read)
    }

    fn seconds(&self, (pipeline, group): &(wgpu::ComputePipeline, wgpu::BindGroup)) -> f64 {
        let start = Instant::now();
        let words = [self.rounds, self.vectors, 0, 0];
        self.gpu.queue().write_buffer(&self.params, 0, &words.map(u32::to_le_bytes).concat());
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(WORKGROUPS, 1, 1);
        }
        self.gpu.queue().submit([encoder.finish()]);
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("a GPU that works");
        start.elapsed().as_secs_f64()
    }
}
