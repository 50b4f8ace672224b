//! Shaders are lists of plain WGSL files behind a prelude. This is the only place that knows the files; it writes the
//! constants, the bindings and one accessor for each tensor from the same typed list that makes the bind group layout.

mod accessor;
mod chain;
pub(crate) mod file;
#[cfg(test)]
pub(crate) mod layout;
mod unroll;

pub(crate) use chain::{Chain, Gradient};

use crate::hook::{self, Placed};
use crate::{DType, Error};
use accessor::accessor;
use std::fmt::Write;

/// One binding of group 0, at its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Binding {
    /// `var<uniform> NAME: TYPE`.
    Uniform { name: &'static str, ty: &'static str },
    /// `var<storage, ACCESS> NAME: array<TYPE>`, or `var<uniform> NAME: array<TYPE, LENGTH>`, which does not count among the
    /// storage buffers: a table that the host or another kernel wrote.
    Table { name: &'static str, ty: &'static str, length: Option<usize>, write: bool },
    /// Tensor data, reached through accessors.
    Data { name: String, words: Words, write: bool },
}

/// What tensor data is declared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// `array<vec4f>`: f32, four elements a load.
    F32x4,
    /// `array<vec2u>`: 16-bit, four elements a load.
    U32x2,
    /// `array<u32>`: anything, a word at a time.
    U32,
}

/// How a tensor is reached: `load_NAME4(i, n)`, `store_NAME4(i, n, x)` for n valid elements from index i on, or
/// `store_NAME(i, bits)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Access {
    pub name: &'static str,
    /// The binding that holds it.
    pub binding: usize,
    pub dtype: DType,
    /// Every row starts at a multiple of four elements and holds a multiple of four.
    pub wide: bool,
    pub kind: AccessKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Load4,
    /// `load_NAME(i)`: one element.
    Load1,
    /// `load_NAME(i)`: one word.
    LoadBits,
    Store4,
    StoreBits,
    /// Both [`AccessKind::Load4`] and [`AccessKind::Store4`]: read and written in place.
    Update4,
}

/// A shader before assembly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shader {
    /// Kernel and variant, for errors.
    pub name: String,
    pub constants: Vec<(&'static str, u32)>,
    pub bindings: Vec<Binding>,
    pub accesses: Vec<Access>,
    pub chain: Option<Chain>,
    pub files: Vec<&'static str>,
    /// Whether loops over what a thread holds in registers are written out.
    pub unrolled: bool,
}

/// Whose a part of the text is.
enum Part<'a> {
    Own,
    /// A caller's source, as it is.
    Source(&'a Placed),
    /// The call of a caller's function.
    Call(&'a Placed),
}

impl Binding {
    /// Whether it counts among the storage buffers.
    pub fn is_storage(&self) -> bool {
        !matches!(self, Binding::Uniform { .. } | Binding::Table { length: Some(_), .. })
    }

    fn ty(&self) -> wgpu::BufferBindingType {
        match self {
            Binding::Uniform { .. } | Binding::Table { length: Some(_), .. } => wgpu::BufferBindingType::Uniform,
            Binding::Table { write, .. } | Binding::Data { write, .. } => {
                wgpu::BufferBindingType::Storage { read_only: !write }
            }
        }
    }

    /// Address space and access, name, type.
    fn declaration(&self) -> (&'static str, &str, String) {
        let storage = |write: bool| if write { "storage, read_write" } else { "storage, read" };
        match self {
            Binding::Uniform { name, ty } => ("uniform", name, ty.to_string()),
            Binding::Table { name, ty, length: Some(length), .. } => {
                ("uniform", name, format!("array<{ty}, {length}>"))
            }
            Binding::Table { name, ty, length: None, write } => (storage(*write), name, format!("array<{ty}>")),
            Binding::Data { name, words, write } => (storage(*write), name, format!("array<{}>", words.wgsl())),
        }
    }
}

impl Words {
    fn wgsl(self) -> &'static str {
        match self {
            Words::F32x4 => "vec4f",
            Words::U32x2 => "vec2u",
            Words::U32 => "u32",
        }
    }
}

impl Shader {
    /// A text without bindings so far.
    pub fn of(
        name: impl Into<String>,
        constants: Vec<(&'static str, u32)>,
        files: Vec<&'static str>,
        chain: Option<Chain>,
    ) -> Self {
        Self { name: name.into(), constants, bindings: vec![], accesses: vec![], chain, files, unrolled: false }
    }

    /// Holds only code of this crate, whose every index is in bounds.
    pub fn is_trusted(&self) -> bool {
        self.hooks().is_empty()
    }

    /// The caller's functions in it.
    pub fn hooks(&self) -> &[Placed] {
        self.chain.as_ref().map_or(&[], |chain| &chain.hooks)
    }

    /// Storage buffers, those of hooks included.
    pub fn storage_buffers(&self) -> u64 {
        (self.bindings.iter().filter(|b| b.is_storage()).count() + hook::buffers(self.hooks()).len()) as u64
    }

    /// The whole text.
    pub fn source(&self) -> String {
        self.parts().into_iter().map(|(_, text)| text).collect()
    }

    /// The text in parts.
    fn parts(&self) -> Vec<(Part<'_>, String)> {
        let mut parts = vec![(Part::Own, self.prelude())];
        let text = |file: &&'static str| match self.unrolled {
            true => unroll::unrolled(file, &self.constants),
            false => unroll::looped(file),
        };
        parts.extend(self.files.iter().map(|file| (Part::Own, format!("\n{}", text(file)))));
        let hooks = self.hooks();
        for (i, placed) in hooks.iter().enumerate() {
            if hooks[..i].iter().all(|other| other.hook.source != placed.hook.source) {
                parts.push((Part::Source(placed), format!("{}\n", placed.hook.source)));
            }
            parts.push((Part::Call(placed), placed.call(i)));
        }
        parts
    }

    /// The error behind a compiler's complaint about line `line` (from 1) of the text.
    pub fn complaint(&self, line: Option<u32>, message: &str) -> Error {
        let mut rest = line.unwrap_or(0);
        for (part, text) in self.parts() {
            let lines = text.lines().count() as u32;
            let within = (1..=lines).contains(&rest);
            let (placed, line) = match part {
                Part::Source(placed) if within => (placed, Some(rest)),
                Part::Call(placed) if within => (placed, None),
                _ => {
                    rest = rest.saturating_sub(lines);
                    continue;
                }
            };
            return Error::Hook { hook: placed.describe(), line, message: message.into() };
        }
        Error::Shader { shader: self.name.clone(), message: message.into() }
    }

    /// Constants, bindings, accessors, and the chain of functions that change a score.
    fn prelude(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (i, binding) in self.bindings.iter().enumerate() {
            let (space, name, ty) = binding.declaration();
            let _ = writeln!(text, "@group(0) @binding({i}) var<{space}> {name}: {ty};");
        }
        for (i, (name, tensor)) in hook::buffers(self.hooks()).into_iter().enumerate() {
            let _ =
                writeln!(text, "@group(1) @binding({i}) var<storage, read> {name}: array<{}>;", hook::element(tensor));
        }
        for access in &self.accesses {
            text += &accessor(access, &self.bindings[access.binding]);
        }
        text + &self.chain.as_ref().map_or(String::new(), Chain::wgsl)
    }
}

/// A compiled shader and the layouts that its bind groups have.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub compute: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// The layout of the caller's buffers.
    pub hook_layout: Option<wgpu::BindGroupLayout>,
}

/// Compiles `source`, which is `shader`'s text, to a module. Errors go to the scopes around the call.
pub(crate) fn module(device: &wgpu::Device, shader: &Shader, source: &str, trusted: bool) -> wgpu::ShaderModule {
    let label = Some(shader.name.as_str());
    let descriptor = wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) };
    let loops = shader.hooks().iter().any(|placed| ["for", "while", "loop"].iter().any(|word| placed.says(word)));
    if !trusted || loops {
        return device.create_shader_module(descriptor);
    }
    let checks = match shader.is_trusted() {
        true => wgpu::ShaderRuntimeChecks::unchecked(),
        false => wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() },
    };
    // SAFETY: without bounds checks the text is this crate's own. Tensor indices come from layouts that `Tensor::wrap` and
    // `plan` have checked against the bound range, and tokens are clamped to it. Without loop bounding every loop is this
    // crate's own, and ends after a bounded count: a caller's text with a loop, or anything like it, went the other way.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

impl Pipeline {
    /// The pipeline of `shader`'s module. Errors go to the scopes around the call.
    pub fn build(device: &wgpu::Device, shader: &Shader, module: &wgpu::ShaderModule) -> Self {
        let label = Some(shader.name.as_str());
        let group = |types: Vec<wgpu::BufferBindingType>| {
            let entries: Vec<_> = types.into_iter().zip(0u32..).map(|(ty, i)| layout_entry(ty, i)).collect();
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries })
        };
        let layout = group(shader.bindings.iter().map(Binding::ty).collect());
        let hook_buffers = hook::buffers(shader.hooks()).len();
        let read = wgpu::BufferBindingType::Storage { read_only: true };
        let hook_layout = (hook_buffers > 0).then(|| group(vec![read; hook_buffers]));
        let layouts: Vec<_> = std::iter::once(&layout).chain(&hook_layout).map(Some).collect();
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &layouts,
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
        Self { compute, layout, hook_layout }
    }
}

fn layout_entry(ty: wgpu::BufferBindingType, binding: u32) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
