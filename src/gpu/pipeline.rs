//! From the text of a kernel to a pipeline.

use crate::program::hook::without_prefixes;
use crate::program::{BindingAccess, Guards, Kernel};
use crate::{Error, Gpu, Result};
use std::sync::Arc;

/// How many pipelines are kept where nothing else is said.
const KEPT: usize = 256;

/// The pipelines that were used last, by their texts, the oldest first.
#[derive(Debug)]
pub(crate) struct Pipelines {
    all: Vec<(String, Arc<Pipeline>)>,
    most: usize,
}

impl Default for Pipelines {
    fn default() -> Self {
        Self { all: vec![], most: KEPT }
    }
}

impl Pipelines {
    fn find(&mut self, wgsl: &str) -> Option<Arc<Pipeline>> {
        let i = self.all.iter().position(|(text, _)| text == wgsl)?;
        let found = self.all.remove(i);
        let pipeline = found.1.clone();
        self.all.push(found);
        Some(pipeline)
    }

    fn keep(&mut self, wgsl: &str, pipeline: Arc<Pipeline>) {
        // Another task may have built the same meanwhile.
        if self.find(wgsl).is_none() {
            self.all.push((wgsl.into(), pipeline));
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.all.len() > self.most {
            self.all.remove(0);
        }
    }
}

/// A compiled shader and the layouts of its bind groups.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub compute: wgpu::ComputePipeline,
    pub layouts: Vec<wgpu::BindGroupLayout>,
}

impl Gpu {
    /// Sets how many compiled kernels are kept, the most recently used ones (256 by default): a larger number takes more memory, a smaller
    /// one more compiling. Prepared calls keep their own kernels, and types keep what they prepared for their last 32 shapes.
    pub fn keep_pipelines(&self, most: usize) {
        let mut kept = self.kept_pipelines().lock().expect("no panic under this lock");
        kept.most = most;
        kept.trim();
    }

    /// How many compiled kernels are kept at present.
    pub fn pipelines(&self) -> usize {
        self.kept_pipelines().lock().expect("no panic under this lock").all.len()
    }

    /// The pipeline of a kernel: built once for each text, as long as it is kept.
    pub(crate) async fn pipeline_of(&self, kernel: &Kernel) -> Result<Arc<Pipeline>> {
        self.alive()?;
        if let Some(found) = self.kept_pipelines().lock().expect("no panic under this lock").find(&kernel.wgsl) {
            return Ok(found);
        }
        let (module, popped) = self.scoped(|device| module(device, kernel, self.checks_shaders()));
        if let Err(e) = self.refused("shader", popped.await).await {
            return Err(match e {
                Error::Internal { message, .. } => complaint(kernel, &module, message).await,
                other => other,
            });
        }
        let (pipeline, popped) = self.scoped(|device| Pipeline::build(device, kernel, &module));
        self.refused("pipeline", popped.await).await.map_err(|e| match e {
            Error::Internal { message, .. } => Error::Shader { shader: kernel.name.clone(), message },
            other => other,
        })?;
        let pipeline = Arc::new(pipeline);
        let mut kept = self.kept_pipelines().lock().expect("no panic under this lock");
        kept.keep(&kernel.wgsl, pipeline.clone());
        Ok(pipeline)
    }
}

/// Compiles a kernel's text to a module. Errors go to the scopes around the call.
fn module(device: &wgpu::Device, kernel: &Kernel, checked: bool) -> wgpu::ShaderModule {
    let source = wgpu::ShaderSource::Wgsl((&*kernel.wgsl).into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&kernel.name), source };
    let checks = match kernel.guards {
        _ if checked => return device.create_shader_module(descriptor),
        Guards::All => return device.create_shader_module(descriptor),
        Guards::None => wgpu::ShaderRuntimeChecks::unchecked(),
        Guards::Bounds => {
            wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() }
        }
    };
    // SAFETY: without bounds checks the text is this crate's own. Tensor indices come from layouts that `Tensor::wrap` and
    // planning have checked against the bound range, and tokens are clamped to it. Without loop bounding every loop is this
    // crate's own, and ends after a bounded count: a caller's text with a loop, or anything like it, went the other way.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// Why a module was rejected, by the compiler's first error.
async fn complaint(kernel: &Kernel, module: &wgpu::ShaderModule, message: String) -> Error {
    let info = module.get_compilation_info().await;
    let error = info.messages.into_iter().find(|m| m.message_type == wgpu::CompilationMessageType::Error);
    let (line, message) = match error {
        Some(e) => (e.location.map_or(0, |at| at.line_number), e.message),
        None => (0, message),
    };
    match kernel.hooks.iter().find(|hook| hook.lines.contains(&line)) {
        Some(hook) => {
            let line = hook.is_source.then(|| line - hook.lines.start + 1);
            Error::Hook { hook: hook.hook.clone(), line, message: without_prefixes(&message) }
        }
        None => Error::Shader { shader: kernel.name.clone(), message },
    }
}

impl Pipeline {
    /// The pipeline of a kernel's module. Errors go to the scopes around the call.
    fn build(device: &wgpu::Device, kernel: &Kernel, module: &wgpu::ShaderModule) -> Self {
        let label = Some(&*kernel.name);
        let groups = kernel.bindings.iter().map(|binding| binding.group + 1).max().unwrap_or(1);
        let group = |group: u32| {
            let own = kernel.bindings.iter().filter(|binding| binding.group == group);
            let entries: Vec<_> = own.map(|binding| layout_entry(binding.access, binding.binding)).collect();
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries })
        };
        let layouts: Vec<_> = (0..groups).map(group).collect();
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &layouts.iter().map(Some).collect::<Vec<_>>(),
            ..Default::default()
        });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every shader writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Self { compute, layouts }
    }
}

fn layout_entry(access: BindingAccess, binding: u32) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        BindingAccess::Uniform => wgpu::BufferBindingType::Uniform,
        BindingAccess::Read => wgpu::BufferBindingType::Storage { read_only: true },
        BindingAccess::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
