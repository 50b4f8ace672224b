//! `run` of a kernel that is softmax attention.

use super::call::{Named, Uploaded};
use super::file::{Floats, Inputs, Output, error};
use super::sequences::longest;
use super::{Backend, Options};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use std::time::Duration;
use wgpu_attention::plan::{AttentionParams, Caps, Shapes};
use wgpu_attention::reference::{self, At, FlashProblem};
use wgpu_attention::{
    Attention, BlockGrid, BlockMask, Call, DType, FlashParams, Gpu, GpuOptions, Layout, Result, Tensor, wgpu,
};

/// All that the file holds for an attention kernel.
pub struct Problem<P> {
    pub params: P,
    /// The same for the reference: with who sees whom, besides.
    pub known: FlashParams,
    pub sees: Box<dyn Fn(At) -> bool>,
    pub blocks: Option<Blocks>,
    pub lists: Option<Lists>,
    /// By the names of a call.
    pub tensors: Named,
    pub seqlens: [Option<Vec<usize>>; 2],
    pub cu_seqlens: Option<[Vec<usize>; 2]>,
}

/// A block mask.
pub struct Blocks {
    pub grid: BlockGrid,
    /// [batch or 1, heads or 1, blocks of queries, blocks of keys].
    pub chosen: Vec<bool>,
}

/// Lists of tokens.
pub struct Lists {
    pub tokens: Vec<u32>,
    /// [batch or 1, heads, key heads or 1, lists, capacity].
    pub shape: [usize; 4],
    /// Queries to a list.
    pub block: usize,
}

impl Lists {
    const NAME: &str = "token_lists.tokens";

    fn layout(&self) -> Layout {
        Layout::heads_first(DType::U32, self.shape)
    }
}

impl Blocks {
    async fn upload(&self, gpu: &Gpu) -> Result<BlockMask> {
        let (heads, [rows, cols]) = (self.grid.heads, self.grid.blocks());
        BlockMask::from_fn(gpu, self.grid, |b, h, i, j| self.chosen[((b * heads + h) * rows + i) * cols + j]).await
    }
}

/// The params of `--params`.
pub fn params<T: DeserializeOwned>(options: &Options) -> Result<T> {
    serde_json::from_str(&options.params)
        .map_err(|e| error("--params", format!("{} ({e})", options.params), "JSON with the kernel's params"))
}

impl<P: AttentionParams> Problem<P> {
    /// Keys and values of all tokens, and the additional ones.
    pub fn read(inputs: &Inputs, params: P, known: FlashParams, packed: bool) -> Result<Self> {
        let mut tensors = Named::new();
        for name in ["q", "k", "v"] {
            tensors.insert(name, inputs.tokens(name, packed)?);
        }
        for name in ["additional_k", "additional_v"].into_iter().filter(|name| inputs.has(name)) {
            tensors.insert(name, inputs.tokens(name, false)?);
        }
        Ok(Self {
            params,
            known,
            sees: Box::new(|_| true),
            blocks: None,
            lists: None,
            tensors,
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
        let rows @ [b, h, n, _] = self.rows();
        let out = Floats { dtype: self.tensors["q"].dtype, shape: rows, values: out };
        let out = inputs.output("out", out, packed);
        let shape = if packed { vec![h, n] } else { vec![b, h, n] };
        Ok(vec![out, Output { name: "lse".into(), dtype: DType::F32, shape, values: lse }])
    }

    /// The shape of the output.
    pub(super) fn rows(&self) -> [usize; 4] {
        let [batch, heads, queries, _] = self.tensors["q"].shape;
        [batch, heads, queries, self.tensors["v"].shape[3]]
    }

    /// [batch or sequences, heads, longest queries, longest keys] of bias and mask.
    pub fn pairs(&self) -> [usize; 4] {
        let [batch, heads, queries, _] = self.tensors["q"].shape;
        match &self.cu_seqlens {
            None => [batch, heads, queries, self.tensors["k"].shape[2]],
            Some([q, k]) => [q.len().saturating_sub(1), heads, longest(q), longest(k)],
        }
    }

    /// Layouts and lengths, for the checks that need no GPU.
    pub(super) fn shapes(&self) -> Result<Shapes> {
        let mut shapes = self.with_lengths(Shapes::default());
        for (&name, floats) in &self.tensors {
            let layout = match name {
                "bias" | "mask" => floats.layout().expand(self.pairs()).map_err(|_| {
                    let bound = format!("{:?}, or 1 in any dimension", self.pairs());
                    error(format!("{name}.shape"), format!("{:?}", floats.shape), bound)
                })?,
                _ => floats.layout(),
            };
            shapes = shapes.tensor(name, layout);
        }
        if let Some(lists) = &self.lists {
            shapes = shapes.tensor(Lists::NAME, lists.layout()).numbers("token_lists.block", [lists.block]);
        }
        Ok(match &self.blocks {
            Some(blocks) => shapes.block_mask(&blocks.grid, false, &[]),
            None => shapes,
        })
    }

    /// The same shapes with the lengths and offsets of sequences.
    pub fn with_lengths(&self, mut shapes: Shapes) -> Shapes {
        let names = [("seqlens_q", "cu_seqlens_q"), ("seqlens_k", "cu_seqlens_k")];
        for (i, (lengths, offsets)) in names.into_iter().enumerate() {
            let side = self.cu_seqlens.as_ref().map(|sides| sides[i].clone());
            shapes = shapes.numbers_if(lengths, self.seqlens[i].clone()).numbers_if(offsets, side);
        }
        shapes
    }

    async fn on_gpu(&self, adapter: Option<&str>) -> Result<(Vec<f32>, Vec<f32>)> {
        let gpu = request(adapter).await?;
        let shapes = self.shapes()?;
        let prepared = Attention::new(&gpu, self.params.clone())?.prepare(&shapes).await?;
        let mut call = self.upload(&gpu, &shapes).await?;
        call.complete(&prepared).await?;
        println!("{}", gpu.caps());
        println!("{}", prepared.plan());
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed}").expect("a valid template");
        let bar = ProgressBar::new(prepared.slices() as u64).with_style(style);
        for slice in 0..prepared.slices() {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            prepared.encode_slice(&mut encoder, slice, &call)?;
            gpu.queue().submit([encoder.finish()]);
            // A lost device shows when the result is read.
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((call.tensors["out"].read().await?, call.tensors["lse"].read().await?))
    }

    /// All tensors, laid out as the shapes say.
    pub(super) async fn upload(&self, gpu: &Gpu, shapes: &Shapes) -> Result<Uploaded> {
        let mut call = Uploaded::new(gpu, &self.tensors).await?;
        // Repeats a bias or a mask.
        for (name, tensor) in &mut call.tensors {
            if let Some(layout) = shapes.layout(name) {
                *tensor = tensor.view(layout.clone())?;
            }
        }
        if let Some(blocks) = &self.blocks {
            let mask = blocks.upload(gpu).await?;
            call.tensors.extend(mask.tensors().into_iter().map(|(name, tensor)| (name, tensor.clone())));
        }
        if let Some(lists) = &self.lists {
            let tokens = Tensor::upload_u32(gpu, &lists.tokens).await?.view(lists.layout())?;
            call.tensors.insert(Lists::NAME.into(), tokens);
        }
        Ok(call)
    }

    pub(super) fn on_cpu(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        // The reference takes what fits together; what does not is told by planning.
        self.params.plan(&Caps::unlimited(), &self.shapes()?)?;
        let result = self.by_reference(|problem| reference::flash(&self.known, problem));
        let dtype = self.tensors["q"].dtype;
        let round = |&x: &f64| dtype.round(x as f32);
        Ok((result.out.iter().map(round).collect(), result.lse.iter().map(|&x| x as f32).collect()))
    }

    /// Calls `run` with the problem for the reference, and shows that time passes.
    pub(super) fn by_reference<R>(&self, run: impl FnOnce(&FlashProblem) -> R) -> R {
        let whole = |name: &str| self.tensors.get(name).map(|floats| repeat(floats, self.pairs()));
        let (bias, mask) = (whole("bias"), whole("mask"));
        let values = |name: &str| self.tensors.get(name).map_or(&[][..], |floats| &floats.values);
        let tokens = ["q", "k", "v"];
        let problem = FlashProblem {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens: self.cu_seqlens.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice)),
            bias: bias.as_deref(),
            mask: mask.as_deref(),
            mask_mod: Some(&*self.sees),
            additional_k: values("additional_k"),
            additional_v: values("additional_v"),
            ..FlashProblem::new(tokens.map(values), tokens.map(|name| self.tensors[name].shape))
        };
        let spinner = spinner();
        let result = run(&problem);
        spinner.finish_and_clear();
        result
    }
}

pub(super) async fn request(adapter: Option<&str>) -> Result<Gpu> {
    let options = GpuOptions { adapter: adapter.map(Into::into), ..GpuOptions::default() };
    Gpu::request_with(&options).await.map_err(|e| crate::no_gpu(&options, e))
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message("float64 reference");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// The values of a bias or mask repeated to `shape`.
fn repeat(floats: &Floats, pairs: [usize; 4]) -> Vec<f32> {
    (0..pairs.iter().product()).map(|index| floats.values[reference::place_of(index, pairs, floats.shape)]).collect()
}
