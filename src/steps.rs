//! Kernels one after another, with what lies between them. A family names its tensors by an enum `P`.

use crate::arguments::Argument;
use crate::dispatch::{Kernel, Launch, Scratch};
use crate::error::{require, require_set};
use crate::few::Few;
use crate::shader::AccessKind;
use crate::{Gpu, Layout, Result, Slice, Tensor};

/// Where each tensor lies, and which lie in one buffer.
#[derive(Clone, Debug)]
pub(crate) struct Places<P>(Few<P, (Layout, usize)>);

impl<P> Default for Places<P> {
    fn default() -> Self {
        Self(Few::default())
    }
}

impl<P: Copy + PartialEq> Places<P> {
    /// A tensor of the caller's.
    pub fn with(mut self, part: P, layout: &Layout, buffer: usize) -> Self {
        self.0.insert(part, (layout.clone(), buffer));
        self
    }

    /// A tensor with a buffer of its own.
    pub fn own(&mut self, part: P, layout: Layout) {
        let buffer = self.0.values().map(|(_, buffer)| buffer + 1).max().unwrap_or(0);
        self.0.insert(part, (layout, buffer));
    }

    pub fn has(&self, part: P) -> bool {
        self.0.get(&part).is_some()
    }

    pub fn layout(&self, part: P) -> &Layout {
        &self.0[&part].0
    }

    /// A tensor as a kernel sees it.
    pub fn argument(&self, name: &'static str, part: P, kind: AccessKind, heads: Heads) -> Argument {
        let (layout, buffer) = self.0[&part].clone();
        let Heads { group, spread, whole } = heads;
        Argument { name, layout, kind, group, spread, buffer, whole }
    }
}

/// Heads of work to one head of a tensor, heads of the tensor to one of work, and whether a workgroup reads all batch entries.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub group: usize,
    pub spread: usize,
    pub whole: bool,
}

/// As many heads as there are of work.
pub(crate) const EACH: Heads = Heads { group: 1, spread: 1, whole: false };

/// A kernel with its slices and its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step<P> {
    pub kernel: Kernel,
    pub slices: Vec<Slice>,
    pub parts: Vec<P>,
}

/// Kernels one after another, with what lies between them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Steps<P> {
    pub steps: Vec<Step<P>>,
    pub between: Vec<(P, Layout)>,
}

impl<P> Steps<P> {
    /// The layout of what lies between.
    pub fn layout(&self, part: P) -> Option<&Layout>
    where
        P: PartialEq,
    {
        self.between.iter().find(|(other, _)| *other == part).map(|(_, layout)| layout)
    }

    /// The text of each kernel, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let text = |step: &Step<P>| step.kernel.shader.source();
        self.steps.iter().map(|step| (step.kernel.shader.name.as_str(), text(step))).collect()
    }
}

/// The tensors of a call.
pub(crate) type Tensors<'a, P> = Few<P, &'a Tensor>;

/// The same compiled.
#[derive(Debug)]
pub(crate) struct StepsPrepared<P> {
    gpu: Gpu,
    steps: Vec<(Launch, Vec<P>)>,
    between: Few<P, Tensor>,
}

impl<P: Copy + PartialEq> StepsPrepared<P> {
    /// Compiles and allocates. `tables` has what kernels write for one another beside tensors.
    pub async fn new(gpu: &Gpu, all: &Steps<P>, tables: &Scratch) -> Result<Self> {
        let mut steps = vec![];
        for Step { kernel, slices, parts } in &all.steps {
            steps.push((Launch::prepare(gpu, kernel, slices, tables).await?, parts.clone()));
        }
        let mut between = Few::default();
        for (part, layout) in &all.between {
            between.insert(*part, Tensor::empty(gpu, layout.clone()).await?);
        }
        Ok(Self { gpu: gpu.clone(), steps, between })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What lies between, after the last call that did not bring its own.
    pub fn between(&self, part: P) -> Option<&Tensor> {
        self.between.get(&part)
    }

    fn tensors<'a>(&'a self, parts: &[P], given: &Tensors<'a, P>) -> Vec<&'a Tensor> {
        parts.iter().map(|part| given.get(part).copied().unwrap_or_else(|| &self.between[part])).collect()
    }

    /// Records everything.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, given: &Tensors<'_, P>) -> Result<()> {
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
    pub async fn submit(&self, given: &Tensors<'_, P>) -> Result<()> {
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
pub(crate) fn as_prepared(name: &str, given: Option<&Tensor>, prepared: Option<&Layout>) -> Result<()> {
    require_set(name, given.is_some(), prepared.is_some(), "as prepared")?;
    let Some((given, prepared)) = given.zip(prepared) else { return Ok(()) };
    let same = given.layout().shape == prepared.shape && given.layout().dtype == prepared.dtype;
    require(same, name, format!("{:?}", given.layout()), format!("as prepared: {prepared:?}"))
}
