//! What a device can do, as plain data: planning needs no GPU.

use crate::{Error, Result};
use std::fmt;

/// The kind of processor behind an adapter. It decides how much work goes into one submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum AdapterKind {
    /// The CPU runs the shaders.
    Software,
    /// Shares memory with the CPU, or unknown.
    Integrated,
    /// A separate card.
    Discrete,
}

/// The interface through which a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Backend {
    /// None: nothing runs.
    Noop,
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// Direct3D 12.
    Dx12,
    /// OpenGL or OpenGL ES.
    Gl,
    /// A browser's WebGPU.
    BrowserWebGpu,
}

/// The engine that processes the tiles of softmax attention and the tokens of linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Engine {
    /// For every device: core WebGPU is enough. Rows and columns pass through workgroup memory.
    Portable,
    /// For adapters whose shaders run on a CPU. Rows stay in registers. Columns come by subgroup broadcasts; in subgroups of fewer than 8
    /// threads, or without any, they are staged in workgroup memory (forward pass only, and not on Mesa's llvmpipe). It serves softmax
    /// attention's forward pass. Where all subgroups have one size, it also serves the gradients of queries, keys and values (in subgroups
    /// of 4, up to widths of 64) and linear attention token by token (up to 32 rows of the state for each thread of a subgroup). The other
    /// engine serves the rest.
    Processor,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Portable => "portable",
            Engine::Processor => "processor",
        })
    }
}

/// The limits and features of a device that planning looks at.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default = "Caps::core", deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Caps {
    /// The adapter's name, as the driver gives it.
    pub adapter: String,
    /// Vulkan, Metal, DX12 or the browser.
    pub backend: Backend,
    /// The driver's name and version.
    pub driver: String,
    /// Software, integrated or discrete.
    pub kind: AdapterKind,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Threads of a workgroup.
    pub invocations: u32,
    /// Storage buffers of one shader.
    pub storage_buffers: u32,
    /// Bytes of one storage binding.
    pub binding_bytes: u64,
    /// Bytes of one buffer.
    pub buffer_bytes: u64,
    /// Workgroups along one dimension of a dispatch.
    pub workgroups: u32,
    /// Alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u32,
    /// Alignment of a uniform binding's offset, in bytes.
    pub uniform_alignment: u32,
    /// Whether the GPU can time its own work.
    pub timestamps: bool,
    /// Threads of a subgroup, if the device has subgroups and all have this size; else 0.
    pub subgroup: u32,
    /// The same for the adapter, whether or not the device was made with the feature.
    pub adapter_subgroup: u32,
    /// The engine for tiles and tokens: [`Engine::Processor`] only if `subgroup` is 0 or a power of two from 4 to 64.
    pub engine: Engine,
}

impl Caps {
    /// What WebGPU guarantees on every adapter: the default limits, no optional feature.
    pub fn core() -> Self {
        Self {
            adapter: "WebGPU core".into(),
            backend: Backend::BrowserWebGpu,
            driver: String::new(),
            kind: AdapterKind::Integrated,
            workgroup_memory: 16 << 10,
            invocations: 256,
            storage_buffers: 8,
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            workgroups: 65535,
            storage_alignment: 256,
            uniform_alignment: 256,
            timestamps: false,
            subgroup: 0,
            adapter_subgroup: 0,
            engine: Engine::Portable,
        }
    }

    /// No limits at all: to plan without running.
    pub fn unlimited() -> Self {
        Self {
            adapter: "no device".into(),
            backend: Backend::Noop,
            binding_bytes: u64::MAX,
            buffer_bytes: u64::MAX,
            workgroups: u32::MAX,
            storage_buffers: u32::MAX,
            ..Self::core()
        }
    }

    /// The same with changes.
    ///
    /// ```
    /// use wgpu_attention::plan::Caps;
    /// assert_eq!(Caps::core().with(|caps| caps.workgroup_memory = 32 << 10).workgroup_memory, 32768);
    /// ```
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// What a device could have that was made with more than the default limits and features, where this one was not: the adapter's
    /// subgroups, and as much workgroup memory as nearly all adapters have.
    pub(crate) fn beyond_default(&self) -> Self {
        let core = Self::core();
        Self {
            workgroup_memory: if self.workgroup_memory == core.workgroup_memory {
                32 << 10
            } else {
                self.workgroup_memory
            },
            subgroup: if self.subgroup == core.subgroup { self.adapter_subgroup } else { self.subgroup },
            ..self.clone()
        }
    }

    /// Whether [`Engine::Processor`] runs in subgroups of so many threads, or without any.
    pub(crate) fn serves_processor(subgroup: u32) -> bool {
        subgroup == 0 || (subgroup.is_power_of_two() && (4..=64).contains(&subgroup))
    }

    /// Bytes that the offset of a tensor's binding is a multiple of: the device's, and whole vec4.
    pub(crate) fn binding_alignment(&self) -> u64 {
        u64::from(self.storage_alignment.max(16))
    }

    /// Floating-point operations that one submit should hold: 50 to 100 ms, far from any watchdog.
    pub(crate) fn submit_flops(&self) -> f64 {
        match self.kind {
            AdapterKind::Software => 5e8,
            AdapterKind::Integrated => 5e10,
            AdapterKind::Discrete => 5e11,
        }
    }

    /// Whether loops over what a thread holds in registers are better written out. A browser clamps every index that is not a
    /// number in the text: on its software adapter, attention at N 1024 D 64 takes 0.95 s with them and 1.5 s without. Native
    /// compilers see through loops, and some take seconds for the longer text.
    pub(crate) fn wants_unrolled(&self) -> bool {
        self.backend == Backend::BrowserWebGpu
    }

    /// A browser's own software adapter: SwiftShader.
    pub(crate) fn is_software_in_browser(&self) -> bool {
        self.kind == AdapterKind::Software && self.backend == Backend::BrowserWebGpu
    }

    /// The same with less workgroup memory where compiling for more takes longer than the work on [.., queries, keys]: a browser's
    /// software adapter writes each word's zero as an instruction, which for 16 KiB are 1.4 s.
    pub(crate) fn for_attention(&self, [.., queries, keys]: [usize; 4]) -> Self {
        let little = queries.saturating_mul(keys) < 1 << 20;
        let most = if little && self.is_software_in_browser() { 6 << 10 } else { u32::MAX };
        Self { workgroup_memory: self.workgroup_memory.min(most), ..self.clone() }
    }

    /// Workgroups that it works on at the same time, about: fewer in one submit take as long.
    pub(crate) fn concurrency(&self) -> usize {
        match self.kind {
            AdapterKind::Software => 16,
            AdapterKind::Integrated => 64,
            AdapterKind::Discrete => 256,
        }
    }

    /// How often the loops of one invocation go round, all in all, if that is bounded: Mesa's llvmpipe then ends them without a
    /// word, and results are wrong.
    pub(crate) fn loop_rounds(&self) -> Option<u64> {
        self.driver.contains("llvmpipe").then_some(65535)
    }

    /// `Ok` if `needed` is within what the device has.
    pub(crate) fn within(&self, what: &str, limit: &'static str, needed: u64, available: u64) -> Result<()> {
        if needed <= available {
            return Ok(());
        }
        Err(Error::Limit { what: what.into(), limit, needed, available, adapter: self.adapter.clone() })
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:?}, {}, {}): {} KiB workgroup memory, {} threads a workgroup, {} storage buffers of at most {} MiB, {}{}, \
             engine {}",
            self.adapter,
            self.backend,
            self.driver,
            match self.kind {
                AdapterKind::Software => "software",
                AdapterKind::Integrated => "integrated",
                AdapterKind::Discrete => "discrete",
            },
            self.workgroup_memory / 1024,
            self.invocations,
            self.storage_buffers,
            self.binding_bytes >> 20,
            if self.timestamps { "timestamps" } else { "no timestamps" },
            match (self.subgroup, self.adapter_subgroup) {
                (0, 0) => String::new(),
                (0, unused) => format!(", subgroups of {unused} not enabled"),
                (size, _) => format!(", subgroups of {size}"),
            },
            self.engine
        )
    }
}
