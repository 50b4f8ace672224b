//! Partial attention results over disjoint keys become one, by their log-sum-exp.
//!
//! `lse = ln Σ exp(lse_i)`, `out = Σ exp(lse_i − lse) · out_i`: ring attention (arXiv 2310.01889), cascade inference, sharded
//! key and value caches. Exact: the gradient of each part follows from the merged `out` and `lse`.

use crate::arguments::Argument;
use crate::dispatch::{Kernel, Launch, check_device};
use crate::error::require;
use crate::shader::{AccessKind, Shader, file};
use crate::slices::cut;
use crate::{AttentionOutputs, Caps, DType, Gpu, Layout, Result, Slice, Tensor};

/// Threads of a workgroup, each of which makes four elements of the output.
const THREADS: u32 = 128;

/// The uniform struct of `shaders/merge.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    a: [u32; 4],
    a_lse: [u32; 4],
    b: [u32; 4],
    b_lse: [u32; 4],
    out: [u32; 4],
    lse: [u32; 4],
    first: [u32; 3],
    parts: u32,
    rows: u32,
    pad: [u32; 7],
}

/// Layouts of partial results and of what they become.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MergeShapes {
    /// (out [batch, heads, rows, value_dim], lse f32 [batch, heads, rows, 1]) of each part.
    pub parts: Vec<(Layout, Layout)>,
    /// The merged output, of the same shape and any type.
    pub out: Layout,
    /// Its log-sum-exp.
    pub lse: Layout,
    /// Which of out and lse of each part, and of the merged out and lse, lie in one buffer: those with the same number.
    pub buffers: Vec<usize>,
}

impl MergeShapes {
    /// As the tensors are.
    pub fn of(parts: &[AttentionOutputs], outputs: &AttentionOutputs) -> Self {
        let layouts = |o: &AttentionOutputs| (o.out.layout().clone(), o.lse.layout().clone());
        let all = slots(parts, outputs);
        let first = |tensor: &&Tensor| all.iter().position(|other| other.buffer() == tensor.buffer());
        let (out, lse) = layouts(outputs);
        let buffers = all.iter().map(|tensor| first(tensor).unwrap_or_default()).collect();
        Self { parts: parts.iter().map(layouts).collect(), out, lse, buffers }
    }

    fn check(&self) -> Result<()> {
        require(!self.parts.is_empty(), "parts.len()", 0, "at least 1")?;
        let shape = self.parts[0].0.shape;
        let rows = [shape[0], shape[1], shape[2], 1];
        let named = (0..).zip(&self.parts).map(|(i, (out, lse))| (format!("parts[{i}]."), out, lse));
        for (name, out, lse) in named.chain([(String::new(), &self.out, &self.lse)]) {
            require(out.shape == shape, &format!("{name}out.shape"), format!("{:?}", out.shape), format!("{shape:?}"))?;
            require(lse.shape == rows, &format!("{name}lse.shape"), format!("{:?}", lse.shape), format!("{rows:?}"))?;
            require(out.dtype.is_float(), &format!("{name}out.dtype"), out.dtype, "f32, f16 or bf16")?;
            require(lse.dtype == DType::F32, &format!("{name}lse.dtype"), lse.dtype, "f32")?;
            out.byte_span()?;
            lse.byte_span()?;
        }
        let expected = 2 * self.parts.len() + 2;
        require(self.buffers.len() == expected, "buffers.len()", self.buffers.len(), expected)?;
        self.out.check_output("out")?;
        self.lse.check_output("lse")
    }

    /// Out and LSE of what has been merged so far.
    fn between(&self) -> [Layout; 2] {
        [self.out.shape, self.lse.shape].map(|shape| Layout::heads_first(DType::F32, shape))
    }

    /// A kernel for each step: the first part and the second, then what has been merged so far and the next.
    pub(crate) fn steps(&self, caps: &Caps) -> Result<Vec<(Kernel, Vec<Slice>)>> {
        self.check()?;
        let parts = self.parts.len();
        let steps = parts.saturating_sub(1).max(1);
        let own = self.buffers.iter().max().map_or(0, |&n| n + 1);
        let [wide, narrow] = &self.between();
        let part = |i: usize| [(&self.parts[i].0, self.buffers[2 * i]), (&self.parts[i].1, self.buffers[2 * i + 1])];
        let between = |i: usize| [(wide, own + 2 * (i % 2)), (narrow, own + 2 * (i % 2) + 1)];
        let ends = [(&self.out, self.buffers[2 * parts]), (&self.lse, self.buffers[2 * parts + 1])];
        let step = |step: usize| {
            let a = if step == 0 { part(0) } else { between(step - 1) };
            let b = part((step + 1).min(parts - 1));
            kernel(caps, [a, b, if step + 1 == steps { ends } else { between(step) }], parts)
        };
        (0..steps).map(step).collect()
    }
}

/// In the order of [`MergeShapes::buffers`].
fn slots<'a>(parts: &[AttentionOutputs<'a>], outputs: &AttentionOutputs<'a>) -> Vec<&'a Tensor> {
    parts.iter().chain([outputs]).flat_map(|o| [o.out, o.lse]).collect()
}

/// Merges partial attention results on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, FlashAttention, AttentionInputs, AttentionOutputs, FlashParams, Gpu, Merge, Tensor};
/// let gpu = Gpu::request().await?;
/// let attention = FlashAttention::new(&gpu, FlashParams::default())?;
/// let q = Tensor::upload(&gpu, [1, 1, 1, 4], DType::F32, &[1.0; 4]).await?;
/// let near = Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[0.5; 8]).await?;
/// let far = Tensor::upload(&gpu, [1, 1, 3, 4], DType::F32, &[-1.0; 12]).await?;
/// let (near_out, near_lse) = attention.forward_with_lse(&AttentionInputs::new(&q, &near, &near)).await?;
/// let (far_out, far_lse) = attention.forward_with_lse(&AttentionInputs::new(&q, &far, &far)).await?;
/// let parts = [AttentionOutputs { out: &near_out, lse: &near_lse }, AttentionOutputs { out: &far_out, lse: &far_lse }];
/// let (out, lse) = Merge::new(&gpu).forward(&parts).await?;
/// let sum = 2.0 * 1f32.exp() + 3.0 * (-2f32).exp(); // scores 4 · 0.5 / 2 and 4 · −1 / 2
/// assert!((lse.read().await?[0] - sum.ln()).abs() < 1e-5);
/// assert!((out.read().await?[0] - (2.0 * 1f32.exp() * 0.5 - 3.0 * (-2f32).exp()) / sum).abs() < 1e-5);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Merge {
    gpu: Gpu,
}

impl Merge {
    /// Nothing is compiled yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone() }
    }

    /// Compiles and allocates all that these shapes need.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for no part, or shapes and types that do not fit; [`crate::Error::Limit`],
    /// [`crate::Error::OutOfMemory`], [`crate::Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &MergeShapes) -> Result<MergePrepared> {
        let steps = shapes.steps(self.gpu.caps())?;
        // What has been merged so far, in turn in one of two places.
        let mut between = Vec::new();
        for _ in 1..shapes.parts.len().saturating_sub(1).min(3) {
            let [out, lse] = shapes.between();
            between.push((Tensor::empty(&self.gpu, out).await?, Tensor::empty(&self.gpu, lse).await?));
        }
        let mut launches = Vec::new();
        for (kernel, slices) in steps {
            launches.push(Launch::prepare(&self.gpu, &kernel, &slices, &Default::default()).await?);
        }
        Ok(MergePrepared { parts: shapes.parts.len(), launches, between })
    }

    /// Merges in one call: allocates the output, of the first part's type, and submits.
    ///
    /// # Errors
    /// Those of [`Merge::prepare`]; [`crate::Error::OtherDevice`].
    pub async fn forward(&self, parts: &[AttentionOutputs<'_>]) -> Result<(Tensor, Tensor)> {
        require(!parts.is_empty(), "parts.len()", 0, "at least 1")?;
        for (i, part) in parts.iter().enumerate() {
            check_device(&format!("parts[{i}].out"), part.out, &self.gpu)?;
            check_device(&format!("parts[{i}].lse"), part.lse, &self.gpu)?;
        }
        let shape = parts[0].out.shape();
        let out = Tensor::empty(&self.gpu, Layout::heads_first(parts[0].out.layout().dtype, shape)).await?;
        let lse = Tensor::empty(&self.gpu, Layout::heads_first(DType::F32, [shape[0], shape[1], shape[2], 1])).await?;
        let outputs = AttentionOutputs { out: &out, lse: &lse };
        let prepared = self.prepare(&MergeShapes::of(parts, &outputs)).await?;
        let mut encoder = self.gpu.encoder();
        prepared.encode(&mut encoder, parts, &outputs)?;
        self.gpu.submit(encoder).await?;
        Ok((out, lse))
    }
}

/// One step: `a` and `b` become `to`, each as (layout, number of its buffer) of out and of LSE.
fn kernel(caps: &Caps, ends: [[(&Layout, usize); 2]; 3], parts: usize) -> Result<(Kernel, Vec<Slice>)> {
    let names = ["a", "a_lse", "b", "b_lse", "out", "lse"];
    let arguments = names.into_iter().zip(ends.into_iter().flatten());
    let arguments = arguments.map(|(name, (layout, buffer))| argument(name, layout, 1, buffer)).collect();
    plan(caps, file::MERGE_PAIR, arguments, parts.min(2))
}

/// The kernel that merges `parts` parts of each head, which lie one after another along the heads of one tensor: out and LSE,
/// each as (layout, number of its buffer).
pub(crate) fn merge_splits(
    caps: &Caps,
    parts: usize,
    from: [(&Layout, usize); 2],
    to: [(&Layout, usize); 2],
) -> Result<(Kernel, Vec<Slice>)> {
    let names = [("a", parts), ("a_lse", parts), ("out", 1), ("lse", 1)];
    let arguments = names.into_iter().zip(from.into_iter().chain(to));
    let arguments = arguments.map(|((name, spread), (layout, buffer))| argument(name, layout, spread, buffer));
    plan(caps, file::MERGE_SPLITS, arguments.collect(), parts)
}

fn argument(name: &'static str, layout: &Layout, spread: usize, buffer: usize) -> Argument {
    let kind = match name {
        "out" => AccessKind::Store4,
        "lse" => AccessKind::StoreBits,
        "a" | "b" => AccessKind::Load4,
        _ => AccessKind::LoadBits,
    };
    Argument { name, layout: layout.clone(), kind, group: 1, spread, buffer, whole: false }
}

fn plan(caps: &Caps, of_parts: &'static str, arguments: Vec<Argument>, parts: usize) -> Result<(Kernel, Vec<Slice>)> {
    let out = &arguments.iter().find(|argument| argument.name == "out").expect("a merge has an output").layout;
    let ([batch, heads, rows, width], empty) = (out.shape, out.is_empty());
    let tiles = (rows * width.div_ceil(4)).div_ceil(THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let flops = f64::from(8 * THREADS) * parts as f64;
    let slices = if empty { vec![] } else { cut(caps, &arguments, whole, flops)? };
    let params = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
        a: address("a"),
        a_lse: address("a_lse"),
        b: address("b"),
        b_lse: address("b_lse"),
        out: address("out"),
        lse: address("lse"),
        first: slice.first(),
        parts: parts as u32,
        rows: rows as u32,
        pad: [0; 7],
    };
    let constants = vec![("WG", THREADS), ("HEAD_DIM_V", width as u32), ("DV4", width.div_ceil(4).max(1) as u32)];
    let files = vec![file::MERGE, of_parts, file::ROW, file::ELEMENT];
    let shader = Shader::of("merge", constants, files, None);
    Ok((Kernel::sliced(caps, shader, arguments, vec![], &slices, params)?, slices))
}

/// A merge compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct MergePrepared {
    parts: usize,
    launches: Vec<Launch>,
    between: Vec<(Tensor, Tensor)>,
}

impl MergePrepared {
    /// Records the merge. The caller submits.
    ///
    /// # Errors
    /// [`crate::Error::Argument`], [`crate::Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is
    /// recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        parts: &[AttentionOutputs],
        outputs: &AttentionOutputs,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("merge"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), parts, outputs)
    }

    /// Records the merge into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`MergePrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        parts: &[AttentionOutputs],
        outputs: &AttentionOutputs,
    ) -> Result<()> {
        self.check(parts, outputs)?;
        for (step, launch) in self.launches.iter().enumerate() {
            launch.encode(pass, &self.tensors(step, parts, outputs), 0..launch.slices().len())?;
        }
        Ok(())
    }

    /// Checks that the tensors are as prepared.
    pub(crate) fn check(&self, parts: &[AttentionOutputs], outputs: &AttentionOutputs) -> Result<()> {
        require(parts.len() == self.parts, "parts.len()", parts.len(), format!("{}, as prepared", self.parts))?;
        for (step, launch) in self.launches.iter().enumerate() {
            launch.gpu().alive()?;
            launch.check(&self.tensors(step, parts, outputs), &(0..launch.slices().len()))?;
        }
        Ok(())
    }

    /// The tensors of a step.
    fn tensors<'a>(
        &'a self,
        step: usize,
        parts: &[AttentionOutputs<'a>],
        outputs: &AttentionOutputs<'a>,
    ) -> Vec<&'a Tensor> {
        let between = |i: usize| {
            let (out, lse) = &self.between[i % 2];
            [out, lse]
        };
        let a = if step == 0 { [parts[0].out, parts[0].lse] } else { between(step - 1) };
        let b = &parts[(step + 1).min(parts.len() - 1)];
        let to = if step + 1 == self.launches.len() { [outputs.out, outputs.lse] } else { between(step) };
        [a, [b.out, b.lse], to].concat()
    }
}
