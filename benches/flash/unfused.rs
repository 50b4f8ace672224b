//! The baseline: attention as three kernels with the scores in memory.

use wgpu_attention::{DType, Gpu, GpuTime, Layout, Result, Tensor, wgpu};

/// The three kernels, prepared for certain tensors.
pub struct Unfused {
    gpu: Gpu,
    group: wgpu::BindGroup,
    stages: Vec<(wgpu::ComputePipeline, [u32; 3])>,
    out: Tensor,
}

impl Unfused {
    /// For q, k and v, f32 [1, heads, n, d] each, contiguous. `None` where the scores are larger than a binding may be.
    pub async fn new(gpu: &Gpu, [q, k, v]: [&Tensor; 3], causal: bool) -> Result<Option<Self>> {
        let [_, heads, n, d] = q.shape();
        if (heads * n * n * 4) as u64 > gpu.caps().binding_bytes {
            return Ok(None);
        }
        let scores = Tensor::empty(gpu, Layout::heads_first(DType::F32, [1, heads, n, n])).await?;
        let out = Tensor::empty(gpu, Layout::heads_first(DType::F32, [1, heads, n, d])).await?;
        let device = gpu.device();
        let sizes = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("sizes"),
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let scale = (1.0 / (d as f32).sqrt()).to_bits();
        let words = [n as u32, d as u32, scale, causal.into()];
        gpu.queue().write_buffer(&sizes, 0, &words.map(u32::to_le_bytes).concat());
        let tensors = [q, k, v, &scores, &out].map(Tensor::buffer);
        let buffers: Vec<&wgpu::Buffer> = std::iter::once(&sizes).chain(tensors).collect();
        let layout = layout(device, buffers.len() as u32);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let source = wgpu::ShaderSource::Wgsl(include_str!("unfused.wgsl").into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some("unfused"), source };
        // SAFETY: every index is compared with its bound in the text, and every loop is bounded; the fused kernel is compiled
        // the same way.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let (rows, cols) = (n.div_ceil(64) as u32, d.div_ceil(64) as u32);
        let sizes = [[rows, rows, heads as u32], [n as u32, 1, heads as u32], [cols, rows, heads as u32]];
        let stage = |(entry, size): (&str, [u32; 3])| {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            (pipeline, size)
        };
        let stages = ["score", "soften", "weigh"].into_iter().zip(sizes).map(stage).collect();
        let entries: Vec<_> = buffers
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        Ok(Some(Self { gpu: gpu.clone(), group, stages, out }))
    }

    /// The output, of the last run.
    pub fn out(&self) -> &Tensor {
        &self.out
    }

    /// How long `repeat` runs take, one after another in one go.
    pub async fn time(&self, repeat: u32) -> Result<GpuTime> {
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            pass.set_bind_group(0, &self.group, &[]);
            for (pipeline, [x, y, z]) in (0..repeat).flat_map(|_| &self.stages) {
                pass.set_pipeline(pipeline);
                pass.dispatch_workgroups(*x, *y, *z);
            }
            Ok(())
        };
        self.gpu.time(record).await
    }
}

fn layout(device: &wgpu::Device, bindings: u32) -> wgpu::BindGroupLayout {
    let entry = |binding| wgpu::BindGroupLayoutEntry {
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
    };
    let entries: Vec<_> = (0..bindings).map(entry).collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}
