//! Shaders are lists of plain WGSL files behind a prelude. This is the only place that knows the files; it writes the
//! constants, the bindings and one accessor for each tensor from the same typed list that makes the bind group layout.

use crate::DType;
use std::fmt::Write;

macro_rules! files {
    ($($name:ident = $path:literal;)*) => { $(pub(crate) const $name: &str = include_str!(concat!("../shaders/", $path));)* };
}

/// The WGSL files, by name.
pub(crate) mod file {
    files! {
        ELEMENT = "lib/element.wgsl";
        PARAMS = "softmax/params.wgsl";
        PORTABLE = "softmax/portable.wgsl";
        SCORE_TILE = "softmax/score_tile.wgsl";
        TILES_DENSE = "tiles/dense.wgsl";
        ROWS_STRIDED = "rows/strided.wgsl";
        SCORE_POSITION = "score/position.wgsl";
        SCORE_SOFTCAP = "score/softcap.wgsl";
        SCORE_ALIBI = "score/alibi.wgsl";
        SCORE_BIAS = "score/bias.wgsl";
        SCORE_MASK = "score/mask.wgsl";
        STATE_SOFTMAX = "state/softmax.wgsl";
        EPILOGUE_FINAL = "epilogue/final.wgsl";
    }
}

/// One binding of group 0, at its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Binding {
    /// `var<uniform> NAME: TYPE`.
    Uniform { name: &'static str, ty: &'static str },
    /// `var<storage, read> NAME: array<TYPE>`, or `var<uniform> NAME: array<TYPE, LENGTH>`, which does not count among the
    /// storage buffers: a small table that the host wrote.
    Table { name: &'static str, ty: &'static str, length: Option<usize> },
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
    Store4,
    StoreBits,
}

/// A shader before assembly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shader {
    /// Kernel and variant, for errors.
    pub name: String,
    pub constants: Vec<(&'static str, u32)>,
    pub bindings: Vec<Binding>,
    pub accesses: Vec<Access>,
    /// The functions that change a score, in order.
    pub scores: Vec<&'static str>,
    /// The functions that hide keys.
    pub masks: Vec<&'static str>,
    pub files: Vec<&'static str>,
    /// Holds only code of this crate, whose every index is in bounds.
    pub trusted: bool,
}

impl Binding {
    /// Whether it counts among the storage buffers.
    pub fn is_storage(&self) -> bool {
        !matches!(self, Binding::Uniform { .. } | Binding::Table { length: Some(_), .. })
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
    /// The whole text.
    pub fn source(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (i, binding) in self.bindings.iter().enumerate() {
            let _ = match binding {
                Binding::Uniform { name, ty } => {
                    writeln!(text, "@group(0) @binding({i}) var<uniform> {name}: {ty};")
                }
                Binding::Table { name, ty, length: None } => {
                    writeln!(text, "@group(0) @binding({i}) var<storage, read> {name}: array<{ty}>;")
                }
                Binding::Table { name, ty, length: Some(length) } => {
                    writeln!(text, "@group(0) @binding({i}) var<uniform> {name}: array<{ty}, {length}>;")
                }
                Binding::Data { name, words, write } => {
                    let access = if *write { "read_write" } else { "read" };
                    writeln!(text, "@group(0) @binding({i}) var<storage, {access}> {name}: array<{}>;", words.wgsl())
                }
            };
        }
        for access in &self.accesses {
            text += &self.accessor(access);
        }
        text += &self.score();
        for file in &self.files {
            text += "\n";
            text += file;
        }
        text
    }

    /// The chain of functions that change a score; see `shaders/score/position.wgsl`.
    fn score(&self) -> String {
        let steps: String = self.scores.iter().map(|name| format!("x = {name}(x, at); ")).collect();
        let body = match steps.as_str() {
            "" => "return s;".into(),
            _ => format!("let at = position_of(r, c, w); var x = s; {steps}return x * 1.4426950408889634;"),
        };
        let masks: String = self.masks.iter().map(|name| format!(" && {name}(position_of(r, c, w))")).collect();
        format!(
            "const SCORED: bool = {};
const VEILED: bool = {};
fn score(s: f32, r: Row, c: Col, w: Work) -> f32 {{ {body} }}
fn unveiled(r: Row, c: Col, w: Work) -> bool {{ return true{masks}; }}
",
            !self.scores.is_empty(),
            !self.masks.is_empty()
        )
    }

    fn accessor(&self, access: &Access) -> String {
        let Binding::Data { name: data, words, .. } = &self.bindings[access.binding] else {
            unreachable!("an access names a data binding: both are made by this crate's planning")
        };
        let name = access.name;
        match access.kind {
            AccessKind::Load4 if access.wide => load_wide(name, data, *words, access.dtype),
            AccessKind::Load4 => load_narrow(name, data, access.dtype),
            AccessKind::Load1 => {
                format!("fn load_{name}(i: u32) -> f32 {{ return {}; }}\n", element(data, access.dtype))
            }
            AccessKind::Store4 if access.wide => store_wide(name, data, *words, access.dtype),
            AccessKind::Store4 => store_narrow(name, data, access.dtype),
            AccessKind::StoreBits => format!("fn store_{name}(i: u32, bits: u32) {{ {data}[i] = bits; }}\n"),
        }
    }
}

fn load_wide(name: &str, data: &str, words: Words, dtype: DType) -> String {
    let value = match (words, dtype) {
        (Words::F32x4, _) => format!("{data}[i / 4u]"),
        (Words::U32x2, _) => format!("{dtype}x4_of({data}[i / 4u])"),
        (Words::U32, DType::F32) => {
            format!("bitcast<vec4f>(vec4u({data}[i], {data}[i + 1u], {data}[i + 2u], {data}[i + 3u]))")
        }
        (Words::U32, _) => format!("{dtype}x4_of(vec2u({data}[i / 2u], {data}[i / 2u + 1u]))"),
    };
    format!("fn load_{name}4(i: u32, n: u32) -> vec4f {{ return {value}; }}\n")
}

/// The i-th element, from words.
fn element(data: &str, dtype: DType) -> String {
    match 4 / dtype.bytes() {
        1 => format!("bitcast<f32>({data}[i])"),
        per_word => format!("{dtype}_of({data}[i / {per_word}u], i % {per_word}u)"),
    }
}

/// One element at a time, zero past the n-th; never reads past the last valid one.
fn load_narrow(name: &str, data: &str, dtype: DType) -> String {
    let element = element(data, dtype);
    format!(
        "fn {name}_at(i: u32) -> f32 {{ return {element}; }}
fn load_{name}4(i: u32, n: u32) -> vec4f {{
    let last = i + min(n, 4u) - 1u;
    let x = vec4f({name}_at(i), {name}_at(min(i + 1u, last)), {name}_at(min(i + 2u, last)), {name}_at(min(i + 3u, last)));
    return select(vec4f(), x, vec4u(0u, 1u, 2u, 3u) < vec4u(n));
}}
"
    )
}

fn store_wide(name: &str, data: &str, words: Words, dtype: DType) -> String {
    let body = match (words, dtype) {
        (Words::F32x4, _) => format!("{data}[i / 4u] = x;"),
        (Words::U32x2, _) => format!("{data}[i / 4u] = {dtype}x4_bits(x);"),
        (Words::U32, DType::F32) => {
            (0..4).map(|e| format!("{data}[i + {e}u] = bitcast<u32>(x[{e}]); ")).collect::<String>()
        }
        (Words::U32, _) => {
            format!("let words = {dtype}x4_bits(x); {data}[i / 2u] = words.x; {data}[i / 2u + 1u] = words.y;")
        }
    };
    format!("fn store_{name}4(i: u32, n: u32, x: vec4f) {{ {body} }}\n")
}

/// Stores the n valid elements only. 16-bit rows start on even elements; the other half of a row's last word is kept.
fn store_narrow(name: &str, data: &str, dtype: DType) -> String {
    let body = match dtype {
        DType::F32 => {
            (0..4).map(|e| format!("    if (n > {e}u) {{ {data}[i + {e}u] = bitcast<u32>(x[{e}]); }}\n")).collect()
        }
        _ => {
            let pair = |e: u32, part: &str| {
                format!(
                    "    if (n > {last}u) {{ {data}[w + {word}u] = words.{part}; }}
    else if (n > {e}u) {{ {data}[w + {word}u] = ({data}[w + {word}u] & 0xffff0000u) | (words.{part} & 0xffffu); }}\n",
                    last = e + 1,
                    word = e / 2
                )
            };
            format!("    let w = i / 2u;\n    let words = {dtype}x4_bits(x);\n{}{}", pair(0, "x"), pair(2, "y"))
        }
    };
    format!("fn store_{name}4(i: u32, n: u32, x: vec4f) {{\n{body}}}\n")
}

/// A compiled shader and the layout that its bind groups have.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub compute: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    /// Compiles `source`, which is `shader`'s text. Errors go to the scopes around the call.
    pub fn build(device: &wgpu::Device, shader: &Shader, source: &str, trusted: bool) -> Self {
        let entries: Vec<_> = shader.bindings.iter().zip(0u32..).map(|(binding, i)| layout_entry(binding, i)).collect();
        let label = Some(shader.name.as_str());
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let descriptor = wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) };
        let module = if trusted {
            // SAFETY: the text is this crate's own. Tensor indices come from layouts that `Tensor::wrap` and `plan` have
            // checked against the bound range, tokens are clamped to it, and every loop ends after a bounded count.
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        } else {
            device.create_shader_module(descriptor)
        };
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every shader writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Self { compute, layout }
    }
}

fn layout_entry(binding: &Binding, i: u32) -> wgpu::BindGroupLayoutEntry {
    let ty = match binding {
        Binding::Uniform { .. } | Binding::Table { length: Some(_), .. } => wgpu::BufferBindingType::Uniform,
        Binding::Table { .. } => wgpu::BufferBindingType::Storage { read_only: true },
        Binding::Data { write, .. } => wgpu::BufferBindingType::Storage { read_only: !write },
    };
    wgpu::BindGroupLayoutEntry {
        binding: i,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
