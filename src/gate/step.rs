//! The gate's kernels as planned: what they read and write, by name.

use super::frame::Frame;
use crate::arguments::Argument;
use crate::dispatch::{Kernel, Launch, Scratch};
use crate::error::require;
use crate::rotary::angles;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::{Caps, Gpu, Layout, Result, Slice, Tensor};
use std::collections::BTreeMap;

/// A tensor of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Q,
    K,
    Wq,
    Wk,
    NormQ,
    NormK,
    Chosen,
    Logits,
    Scores,
    /// Pooled tokens.
    PooledQ,
    PooledK,
    /// The gate's vectors.
    VectorsQ,
    VectorsK,
    /// What a target is made of, and the target.
    Wanted,
    Target,
    /// Gradient of the logits.
    LogitsGradient,
    /// The loss row by row, and all of it.
    RowShares,
    Loss,
    /// Gradients of the gate's vectors, and of the projected features.
    VectorsQGradient,
    VectorsKGradient,
    ProjectedQGradient,
    ProjectedKGradient,
    /// Of weights and norms.
    WqGradient,
    WkGradient,
    NormQRows,
    NormKRows,
    NormQGradient,
    NormKGradient,
}

/// Where each tensor lies, and which lie in one buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(BTreeMap<Part, (Layout, usize)>);

impl Places {
    /// A tensor of the caller's.
    pub fn with(mut self, part: Part, layout: &Layout, buffer: usize) -> Self {
        self.0.insert(part, (layout.clone(), buffer));
        self
    }

    /// A tensor with a buffer of its own.
    pub fn own(&mut self, part: Part, layout: Layout) {
        self.0.insert(part, (layout, 1000 + part as usize));
    }

    pub fn has(&self, part: Part) -> bool {
        self.0.contains_key(&part)
    }

    pub fn layout(&self, part: Part) -> &Layout {
        &self.0[&part].0
    }
}

/// The uniform struct of `shaders/gate/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    pub x: [u32; 4],
    pub weights: [u32; 4],
    pub norm: [u32; 4],
    pub query: [u32; 4],
    pub key: [u32; 4],
    pub logits: [u32; 4],
    pub scores: [u32; 4],
    pub wanted: [u32; 4],
    pub chosen: [u32; 4],
    pub gradient: [u32; 4],
    pub shares: [u32; 4],
    pub to: [u32; 4],
    pub first: [u32; 3],
    pub rows: u32,
    pub cols: u32,
    pub query_block: u32,
    pub key_block: u32,
    pub causal: u32,
    pub past: u32,
    pub complete: u32,
    pub forced: u32,
    pub side: u32,
    pub joined: u32,
    pub pools: u32,
    pub ring: u32,
    pub pad: u32,
    pub pool: [u32; 4],
    pub bound: f32,
    pub scale: f32,
    pub epsilon: f32,
    pub weight: f32,
    pub heads: u32,
    pub inner: u32,
    pub from_row: u32,
    pub end: u32,
}

/// Heads of work to one head of a tensor, heads of the tensor to one of work, and whether a workgroup reads all batch entries.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub group: usize,
    pub spread: usize,
    pub whole: bool,
}

/// As many heads as there are of work.
pub(super) const EACH: Heads = Heads { group: 1, spread: 1, whole: false };

/// A kernel before it is planned.
pub(super) struct Task {
    pub name: &'static str,
    pub files: Vec<&'static str>,
    pub constants: Vec<(&'static str, u32)>,
    /// Name in the shader, tensor, access, heads.
    pub tensors: Vec<(&'static str, Part, AccessKind, Heads)>,
    pub tables: Vec<(Binding, Option<Vec<u8>>)>,
    /// Batch entries, heads and tiles, and floating-point operations of a tile.
    pub work: [usize; 3],
    pub flops: f64,
    pub params: Params,
}

/// A kernel with its slices and its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub kernel: Kernel,
    slices: Vec<Slice>,
    parts: Vec<Part>,
}

/// Threads of a workgroup.
pub(super) const THREADS: u32 = 64;

impl Task {
    pub fn plan(self, caps: &Caps, frame: &Frame, places: &Places) -> Result<Step> {
        let Task { name, files, constants, tensors, mut tables, work: [batches, heads, tiles], flops, params } = self;
        let argument =
            |&(name, part, kind, Heads { group, spread, whole }): &(&'static str, Part, AccessKind, Heads)| {
                let (layout, buffer) = places.0[&part].clone();
                Argument { name, layout, kind, group, spread, buffer, whole }
            };
        let arguments: Vec<Argument> = tensors.iter().map(argument).collect();
        let whole = Slice { batches: 0..batches, heads: 0..heads, tiles: 0..tiles };
        let slices = if batches * heads * tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
        let of_slice = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            x: address("x"),
            weights: address("weights"),
            norm: address("norm"),
            query: address("query"),
            key: address("key"),
            logits: address("logits"),
            scores: address("scores"),
            wanted: address("wanted"),
            chosen: address("chosen"),
            gradient: address("gradient"),
            shares: address("shares"),
            to: address("to"),
            first: slice.first(),
            ..params
        };
        tables.insert(0, frame.table());
        let files = [vec![file::GATE_SHARED, file::ROW, file::ELEMENT], files].concat();
        let constants = [vec![("WG", THREADS)], constants].concat();
        let shader = Shader::of(format!("gate {name}"), constants, files, None);
        let kernel = Kernel::sliced(caps, shader, arguments, tables, &slices, of_slice)?;
        Ok(Step { kernel, slices, parts: tensors.into_iter().map(|(_, part, ..)| part).collect() })
    }
}

/// Kernels one after another, with what lies between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chain {
    pub steps: Vec<Step>,
    pub between: Vec<(Part, Layout)>,
    /// Base and width of rotary angles.
    pub angles: Option<(f32, usize)>,
}

impl Chain {
    /// The text of each kernel, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let text = |step: &Step| step.kernel.shader.source();
        self.steps.iter().map(|step| (step.kernel.shader.name.as_str(), text(step))).collect()
    }
}

/// The tensors of a call.
pub(super) type Tensors<'a> = BTreeMap<Part, &'a Tensor>;

/// A chain compiled.
#[derive(Debug)]
pub(super) struct ChainPrepared {
    gpu: Gpu,
    steps: Vec<(Launch, Vec<Part>)>,
    between: BTreeMap<Part, Tensor>,
}

impl ChainPrepared {
    pub async fn new(gpu: &Gpu, chain: &Chain) -> Result<Self> {
        let tables = match chain.angles {
            Some((theta, dim)) => angles(gpu, theta, dim).await?,
            None => Scratch::new(),
        };
        let mut steps = vec![];
        for Step { kernel, slices, parts } in &chain.steps {
            let launch = Launch::prepare(gpu, kernel, slices, &tables).await?;
            steps.push((launch, parts.clone()));
        }
        let mut between = BTreeMap::new();
        for (part, layout) in &chain.between {
            between.insert(*part, Tensor::empty(gpu, layout.clone()).await?);
        }
        Ok(Self { gpu: gpu.clone(), steps, between })
    }

    fn tensors<'a>(&'a self, parts: &[Part], given: &Tensors<'a>) -> Vec<&'a Tensor> {
        parts.iter().map(|part| given.get(part).copied().unwrap_or_else(|| &self.between[part])).collect()
    }

    /// Records everything.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, given: &Tensors<'_>) -> Result<()> {
        self.gpu.alive()?;
        for (launch, parts) in &self.steps {
            launch.check(&self.tensors(parts, given), &(0..0))?;
        }
        for (launch, parts) in &self.steps {
            launch.encode(pass, &self.tensors(parts, given), 0..launch.slices().len())?;
        }
        Ok(())
    }

    /// Records each slice into an encoder of its own and submits it.
    pub async fn submit(&self, given: &Tensors<'_>) -> Result<()> {
        for (launch, parts) in &self.steps {
            for slice in 0..launch.slices().len() {
                let mut encoder = self.gpu.encoder();
                let tensors = self.tensors(parts, given);
                launch.encode(&mut encoder.begin_compute_pass(&Default::default()), &tensors, slice..slice + 1)?;
                self.gpu.submit(encoder).await?;
            }
        }
        Ok(())
    }
}

/// Checks a tensor against what was prepared for, by the caller's name of it.
pub(super) fn as_prepared(name: &str, given: Option<&Tensor>, prepared: Option<&Layout>) -> Result<()> {
    let has = |set: bool| if set { "set" } else { "unset" };
    let bound = format!("{}, as prepared", has(prepared.is_some()));
    require(given.is_some() == prepared.is_some(), name, has(given.is_some()), bound)?;
    let Some((given, prepared)) = given.zip(prepared) else { return Ok(()) };
    let same = given.layout().shape == prepared.shape && given.layout().dtype == prepared.dtype;
    require(same, name, format!("{:?}", given.layout()), format!("as prepared: {prepared:?}"))
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::GATE_SHARED,
            x weights norm query key logits scores wanted chosen gradient shares to first rows cols query_block key_block causal past
            complete forced side joined pools ring pool bound scale epsilon weight heads inner from_row end
        );
    }
}
