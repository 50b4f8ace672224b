//! The baseline: attention as three kernels with the scores in memory.

use wgpu_attention::catalogue::{AttentionCase, normal};
use wgpu_attention::{Causal, DType, FlashParams, Gpu, Layout, Tensor};

/// The three kernels, prepared for one size.
pub struct Unfused {
    gpu: Gpu,
    group: wgpu::BindGroup,
    stages: Vec<(wgpu::ComputePipeline, [u32; 3])>,
    out: Tensor,
}

impl Unfused {
    /// `None` where the scores are larger than a binding may be.
    pub fn new(gpu: &Gpu, case: &AttentionCase) -> Option<Self> {
        let ((heads, _), (n, _), (d, _)) = (case.heads, case.lengths, case.dims);
        if (heads * n * n * 4) as u64 > gpu.caps().binding_bytes {
            return None;
        }
        let mut tensors = Vec::new();
        for seed in 0..3 {
            let values = normal(case.seed + seed, heads * n * d, 1.0, DType::F32);
            let tensor = Tensor::upload(gpu, [1, heads, n, d], DType::F32, &values);
            tensors.push(pollster::block_on(tensor).expect("memory for q, k, v"));
        }
        for shape in [[1, heads, n, n], [1, heads, n, d]] {
            let tensor = Tensor::empty(gpu, Layout::heads_first(DType::F32, shape));
            tensors.push(pollster::block_on(tensor).expect("memory for scores and output"));
        }
        let device = gpu.device();
        let sizes = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("sizes"),
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let scale = (1.0 / (d as f32).sqrt()).to_bits();
        let words = [n as u32, d as u32, scale, case.params.causal.is_some().into()];
        gpu.queue().write_buffer(&sizes, 0, &words.map(u32::to_le_bytes).concat());
        let buffers: Vec<&wgpu::Buffer> = std::iter::once(&sizes).chain(tensors.iter().map(Tensor::buffer)).collect();
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
        let out = tensors.pop().expect("five tensors");
        Some(Self { gpu: gpu.clone(), group, stages, out })
    }

    pub fn seconds(&self) -> f64 {
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            pass.set_bind_group(0, &self.group, &[]);
            for (pipeline, [x, y, z]) in &self.stages {
                pass.set_pipeline(pipeline);
                pass.dispatch_workgroups(*x, *y, *z);
            }
            Ok(())
        };
        pollster::block_on(self.gpu.time(record)).expect("a GPU that works").seconds
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

/// The baseline must compute the same, or its time means nothing.
pub async fn check(gpu: &Gpu) {
    for causal in [false, true] {
        let params = FlashParams { causal: causal.then_some(Causal::BottomRight), ..FlashParams::default() };
        let case = AttentionCase { lengths: (150, 150), dims: (20, 20), params, ..AttentionCase::default() };
        let unfused = Unfused::new(gpu, &case).expect("small scores");
        unfused.seconds();
        let out = unfused.out.read().await.expect("a GPU that works");
        assert!(case.compare_out(&out).passed(), "the unfused kernels are wrong");
    }
}
