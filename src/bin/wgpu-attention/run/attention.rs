//! `run` of a kernel that is softmax attention.

use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use std::time::Duration;
use wgpu_attention::reference::{self, At, FlashProblem};
use wgpu_attention::{
    Attention, AttentionInputs, AttentionOutputs, AttentionParams, AttentionPlan, AttentionShapes, BlockGrid,
    BlockMask, BlockMaskShape, CuSeqlens, CuSeqlensShape, DType, FlashParams, Gpu, GpuOptions, Layout, Result, Tensor,
    wgpu,
};

/// All that the file holds for an attention kernel.
pub struct Problem<P> {
    pub params: P,
    /// The same for the reference: with who sees whom, besides.
    pub known: FlashParams,
    pub sees: Box<dyn Fn(At) -> bool>,
    pub blocks: Option<Blocks>,
    pub q: Floats,
    pub k: Floats,
    pub v: Floats,
    pub bias: Option<Floats>,
    pub mask: Option<Floats>,
    pub additional: [Option<Floats>; 2],
    pub seqlens: [Option<Vec<usize>>; 2],
    pub cu_seqlens: Option<[Vec<u32>; 2]>,
}

/// A block mask.
pub struct Blocks {
    pub grid: BlockGrid,
    /// [batch or 1, heads or 1, blocks of queries, blocks of keys].
    pub chosen: Vec<bool>,
}

impl Blocks {
    fn shape(&self) -> BlockMaskShape {
        let Self { grid, .. } = self;
        let chosen = Some(Layout::heads_first(DType::U32, grid.shape()));
        BlockMaskShape { block: grid.block, blocks: grid.blocks(), chosen, full: None, heads: vec![] }
    }

    async fn upload(&self, gpu: &Gpu) -> Result<BlockMask> {
        let (heads, [rows, cols]) = (self.grid.heads, self.grid.blocks());
        BlockMask::from_fn(gpu, self.grid, |b, h, i, j| self.chosen[((b * heads + h) * rows + i) * cols + j]).await
    }
}

/// The params of `--params`.
pub fn params<T: DeserializeOwned>(options: &Options) -> Result<T> {
    serde_json::from_str(&options.params)
        .map_err(|e| error("--params", format!("{} ({e})", options.params), "JSON with fields of the kernel's params"))
}

impl<P: AttentionParams> Problem<P> {
    /// Keys and values of all tokens, and the additional ones.
    pub fn read(inputs: &Inputs, params: P, known: FlashParams, packed: bool) -> Result<Self> {
        let tokens = |name: &str| inputs.tokens(name, packed);
        let some = |name: &str| if inputs.has(name) { inputs.tokens(name, false).map(Some) } else { Ok(None) };
        Ok(Self {
            params,
            known,
            sees: Box::new(|_| true),
            blocks: None,
            q: tokens("q")?,
            k: tokens("k")?,
            v: tokens("v")?,
            bias: None,
            mask: None,
            additional: [some("additional_k")?, some("additional_v")?],
            seqlens: [None, None],
            cu_seqlens: None,
        })
    }

    pub fn run(&self, options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
        if options.backward {
            return self.gradients(options, inputs);
        }
        let packed = self.cu_seqlens.is_some();
        let (out, lse) = match options.backend {
            Backend::Gpu => pollster::block_on(self.on_gpu(options.adapter.as_deref()))?,
            Backend::Reference => self.on_cpu()?,
        };
        let [b, h, n, d] = [self.q.shape[0], self.q.shape[1], self.q.shape[2], self.v.shape[3]];
        let out = inputs.output("out", Floats { dtype: self.q.dtype, shape: [b, h, n, d], values: out }, packed);
        let shape = if packed { vec![h, n] } else { vec![b, h, n] };
        Ok(vec![out, Output { name: "lse", dtype: DType::F32, shape, values: lse }])
    }

    /// [batch or sequences, heads, longest queries, longest keys] of bias and mask.
    pub fn pairs(&self) -> [usize; 4] {
        let heads = self.q.shape[1];
        match &self.cu_seqlens {
            None => [self.q.shape[0], heads, self.q.shape[2], self.k.shape[2]],
            Some(sides) => {
                let [q, k] = sides.each_ref().map(|side| CuSeqlensShape::Host(side.clone()));
                [q.sequences(), heads, q.max_seqlen(), k.max_seqlen()]
            }
        }
    }

    /// Layouts, for the checks that need no GPU.
    pub(super) fn shapes(&self) -> Result<AttentionShapes> {
        let layout = |floats: &Floats| Layout::heads_first(floats.dtype, floats.shape);
        let pair = |name: &str, floats: &Option<Floats>| -> Result<Option<Layout>> {
            let Some(floats) = floats else { return Ok(None) };
            let expanded = layout(floats).expand(self.pairs());
            let bound = format!("{:?}, or 1 in place of the first three", self.pairs());
            expanded.map(Some).map_err(|_| error(format!("{name}.shape"), format!("{:?}", floats.shape), bound))
        };
        let side = |i: usize| self.cu_seqlens.as_ref().map(|sides| CuSeqlensShape::Host(sides[i].clone()));
        let [seqlens_q, seqlens_k] = self.seqlens.clone();
        Ok(AttentionShapes {
            seqlens_q,
            seqlens_k,
            cu_seqlens_q: side(0),
            cu_seqlens_k: side(1),
            bias: pair("bias", &self.bias)?,
            mask: pair("mask", &self.mask)?,
            additional_k: self.additional[0].as_ref().map(layout),
            additional_v: self.additional[1].as_ref().map(layout),
            block_mask: self.blocks.as_ref().map(Blocks::shape),
            ..AttentionShapes::new(layout(&self.q), layout(&self.k), layout(&self.v))
        })
    }

    async fn on_gpu(&self, adapter: Option<&str>) -> Result<(Vec<f32>, Vec<f32>)> {
        let gpu = request(adapter).await?;
        let shapes = self.shapes()?;
        let prepared = Attention::new(&gpu, self.params.clone())?.prepare(&shapes).await?;
        let uploaded = self.upload(&gpu, &shapes).await?;
        let inputs = self.inputs(&uploaded);
        let (out, lse) =
            (Tensor::empty(&gpu, shapes.out.clone()).await?, Tensor::empty(&gpu, shapes.lse.clone()).await?);
        let outputs = AttentionOutputs { out: &out, lse: &lse };
        println!("{}", gpu.caps());
        println!("{}", prepared.plan());
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed}").expect("a valid template");
        let bar = ProgressBar::new(prepared.plan().slices().len() as u64).with_style(style);
        for slice in 0..prepared.plan().slices().len() {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            prepared.encode_slice(&mut encoder, slice, &inputs, &outputs)?;
            gpu.queue().submit([encoder.finish()]);
            // A lost device shows when the result is read.
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((out.read().await?, lse.read().await?))
    }

    pub(super) async fn upload(&self, gpu: &Gpu, shapes: &AttentionShapes) -> Result<Uploaded> {
        let pair = async |floats: &Option<Floats>, layout: &Option<Layout>| match (floats, layout) {
            (Some(floats), Some(layout)) => up(gpu, floats).await?.view(layout.clone()).map(Some),
            _ => Ok(None),
        };
        let some = async |floats: &Option<Floats>| match floats {
            Some(floats) => up(gpu, floats).await.map(Some),
            None => Ok(None),
        };
        Ok(Uploaded {
            tokens: [up(gpu, &self.q).await?, up(gpu, &self.k).await?, up(gpu, &self.v).await?],
            bias: pair(&self.bias, &shapes.bias).await?,
            mask: pair(&self.mask, &shapes.mask).await?,
            additional: [some(&self.additional[0]).await?, some(&self.additional[1]).await?],
            block_mask: match &self.blocks {
                Some(blocks) => Some(blocks.upload(gpu).await?),
                None => None,
            },
        })
    }

    pub(super) fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> AttentionInputs<'a> {
        let side = |i: usize| self.cu_seqlens.as_ref().map(|sides| CuSeqlens::Host(&sides[i]));
        let [q, k, v] = &uploaded.tokens;
        AttentionInputs {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens_q: side(0),
            cu_seqlens_k: side(1),
            bias: uploaded.bias.as_ref(),
            mask: uploaded.mask.as_ref(),
            additional_k: uploaded.additional[0].as_ref(),
            additional_v: uploaded.additional[1].as_ref(),
            block_mask: uploaded.block_mask.as_ref(),
            ..AttentionInputs::new(q, k, v)
        }
    }

    pub(super) fn on_cpu(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        // The reference takes what fits together; what does not is told by planning.
        AttentionPlan::new(&wgpu_attention::Caps::unlimited(), &self.params, &self.shapes()?)?;
        let result = self.by_reference(|problem| reference::flash(&self.known, problem));
        let round = |x: &f64| self.q.dtype.round(*x as f32);
        Ok((result.out.iter().map(round).collect(), result.lse.iter().map(|&x| x as f32).collect()))
    }

    /// Calls `run` with the problem for the reference, and shows that time passes.
    pub(super) fn by_reference<R>(&self, run: impl FnOnce(&FlashProblem) -> R) -> R {
        let whole = |floats: &Option<Floats>| floats.as_ref().map(|floats| repeat(floats, self.pairs()));
        let (bias, mask) = (whole(&self.bias), whole(&self.mask));
        let [additional_k, additional_v] =
            self.additional.each_ref().map(|floats| floats.as_ref().map_or(&[][..], |floats| &floats.values));
        let tokens = [&self.q, &self.k, &self.v];
        let problem = FlashProblem {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens: self.cu_seqlens.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice)),
            bias: bias.as_deref(),
            mask: mask.as_deref(),
            mask_mod: Some(&*self.sees),
            additional_k,
            additional_v,
            ..FlashProblem::new(tokens.map(|floats| &floats.values[..]), tokens.map(|floats| floats.shape))
        };
        let spinner = spinner();
        let result = run(&problem);
        spinner.finish_and_clear();
        result
    }
}

/// The tensors on the GPU.
pub(super) struct Uploaded {
    tokens: [Tensor; 3],
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    additional: [Option<Tensor>; 2],
    block_mask: Option<BlockMask>,
}

pub(super) async fn request(adapter: Option<&str>) -> Result<Gpu> {
    let options = GpuOptions { adapter: adapter.map(Into::into), ..GpuOptions::default() };
    Gpu::request_with(&options).await.map_err(|e| crate::no_gpu(&options, e))
}

pub(super) async fn up(gpu: &Gpu, floats: &Floats) -> Result<Tensor> {
    Tensor::upload(gpu, floats.shape, floats.dtype, &floats.values).await
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message("float64 reference");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Where row `index` of the pairs is found in a tensor that some dimensions repeat.
pub(super) fn row_of(index: usize, pairs: [usize; 4], shape: [usize; 4]) -> usize {
    let at = [index / pairs[2] / pairs[1], index / pairs[2] % pairs[1], index % pairs[2]];
    (at[0] % shape[0] * shape[1] + at[1] % shape[1]) * shape[2] + at[2] % shape[2]
}

/// The values of a bias or mask repeated to `shape`.
fn repeat(floats: &Floats, pairs: [usize; 4]) -> Vec<f32> {
    let width = pairs[3];
    let row = |index| row_of(index, pairs, floats.shape) * width;
    (0..pairs[0] * pairs[1] * pairs[2]).flat_map(|index| floats.values[row(index)..][..width].to_vec()).collect()
}
