//! `run` of a kernel that is softmax attention.

use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use std::time::Duration;
use wgpu_attention::reference::{self, At, FlashProblem, Neighborhoods};
use wgpu_attention::{
    Attention, AttentionInputs, AttentionOutputs, AttentionParams, AttentionPlan, AttentionShapes, CuSeqlens,
    CuSeqlensShape, DType, FlashParams, Gpu, GpuOptions, Layout, NeighborhoodAxis, OutputGradients, Result, Tensor,
    wgpu,
};

/// All that the file holds for an attention kernel.
pub struct Problem<P> {
    pub params: P,
    /// The same for the reference: with who sees whom, besides.
    pub known: FlashParams,
    pub sees: Neighborhoods,
    pub q: Floats,
    pub k: Floats,
    pub v: Floats,
    pub bias: Option<Floats>,
    pub mask: Option<Floats>,
    pub additional: [Option<Floats>; 2],
    pub seqlens: [Option<Vec<usize>>; 2],
    pub cu_seqlens: Option<[Vec<u32>; 2]>,
}

/// The params of `--params`.
pub fn params<T: DeserializeOwned>(options: &Options) -> Result<T> {
    serde_json::from_str(&options.params)
        .map_err(|e| error("--params", format!("{} ({e})", options.params), "JSON with fields of the kernel's params"))
}

impl<P: AttentionParams> Problem<P> {
    /// Keys and values of all tokens, and the additional ones.
    pub fn read(
        inputs: &Inputs,
        params: P,
        known: FlashParams,
        axes: &[NeighborhoodAxis],
        packed: bool,
    ) -> Result<Self> {
        let tokens = |name: &str| inputs.tokens(name, packed);
        let some = |name: &str| if inputs.has(name) { inputs.tokens(name, false).map(Some) } else { Ok(None) };
        Ok(Self {
            params,
            known,
            sees: Neighborhoods::new(axes),
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
    fn pairs(&self) -> [usize; 4] {
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
    fn shapes(&self) -> Result<AttentionShapes> {
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

    async fn upload(&self, gpu: &Gpu, shapes: &AttentionShapes) -> Result<Uploaded> {
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
        })
    }

    fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> AttentionInputs<'a> {
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
            ..AttentionInputs::new(q, k, v)
        }
    }

    /// dq dk dv, and dbias where there is a bias.
    fn gradients(&self, options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
        let packed = self.cu_seqlens.is_some();
        let dout = inputs.tokens("dout", packed)?;
        let rows = [self.q.shape[0], self.q.shape[1], self.q.shape[2], self.v.shape[3]];
        if dout.shape != rows {
            return Err(error("dout.shape", format!("{:?}", dout.shape), format!("{rows:?}, by q and v")));
        }
        let dlse = inputs.rows("dlse", if packed { &rows[1..3] } else { &rows[..3] })?;
        let gradients = match options.backend {
            Backend::Gpu => pollster::block_on(self.gradients_on_gpu(options.adapter.as_deref(), &dout, dlse))?,
            Backend::Reference => self.gradients_on_cpu(&dout, dlse)?,
        };
        let like = |floats: &Floats, values| Floats { dtype: floats.dtype, shape: floats.shape, values };
        let mut outputs = Vec::new();
        for (name, floats, values) in [
            ("dq", Some(&self.q), gradients.dq),
            ("dk", Some(&self.k), gradients.dk),
            ("dv", Some(&self.v), gradients.dv),
            ("d_additional_k", self.additional[0].as_ref(), gradients.d_additional_k),
            ("d_additional_v", self.additional[1].as_ref(), gradients.d_additional_v),
        ] {
            outputs.extend(floats.map(|floats| inputs.output(name, like(floats, values), packed)));
        }
        if let Some(bias) = &self.bias {
            let shape = bias.shape.into();
            outputs.push(Output { name: "dbias", dtype: DType::F32, shape, values: gradients.dbias });
        }
        Ok(outputs)
    }

    async fn gradients_on_gpu(
        &self,
        adapter: Option<&str>,
        dout: &Floats,
        dlse: Option<Vec<f32>>,
    ) -> Result<Gradients> {
        let gpu = request(adapter).await?;
        println!("{}", gpu.caps());
        let shapes = self.shapes()?;
        let attention = Attention::new(&gpu, self.params.clone())?;
        let uploaded = self.upload(&gpu, &shapes).await?;
        let (_, saved) = attention.forward_for_training(&self.inputs(&uploaded)).await?;
        let dout = up(&gpu, dout).await?;
        let dlse = match dlse {
            Some(values) => Some(Tensor::upload(&gpu, shapes.lse.shape, DType::F32, &values).await?),
            None => None,
        };
        let from = OutputGradients { dlse: dlse.as_ref(), ..OutputGradients::new(&dout) };
        let g = attention.backward_with_lse(&saved, &from).await?;
        let some = async |tensor: &Option<Tensor>| match tensor {
            Some(tensor) => tensor.read().await,
            None => Ok(vec![]),
        };
        Ok(Gradients {
            dq: g.dq.read().await?,
            dk: g.dk.read().await?,
            dv: g.dv.read().await?,
            dbias: some(&g.dbias).await?,
            d_additional_k: some(&g.d_additional_k).await?,
            d_additional_v: some(&g.d_additional_v).await?,
        })
    }

    fn gradients_on_cpu(&self, dout: &Floats, dlse: Option<Vec<f32>>) -> Result<Gradients> {
        let (out, _) = self.on_cpu()?;
        let g = self.by_reference(|problem| {
            reference::flash_backward(&self.known, problem, &out, &dout.values, dlse.as_deref(), None)
        });
        let round = |values: &[f64], dtype: DType| values.iter().map(|&x| dtype.round(x as f32)).collect();
        let dbias = self.bias.as_ref().map(|bias| reduce(&g.dbias, self.pairs(), bias.shape)).unwrap_or_default();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|floats| floats.dtype);
        let (d_additional_k, d_additional_v) = (round(&g.d_additional_k, k), round(&g.d_additional_v, v));
        Ok(Gradients {
            dq: round(&g.dq, q),
            dk: round(&g.dk, k),
            dv: round(&g.dv, v),
            dbias,
            d_additional_k,
            d_additional_v,
        })
    }

    fn on_cpu(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        // The reference takes what fits together; what does not is told by planning.
        AttentionPlan::new(&wgpu_attention::Caps::unlimited(), &self.params, &self.shapes()?)?;
        let result = self.by_reference(|problem| reference::flash(&self.known, problem));
        let round = |x: &f64| self.q.dtype.round(*x as f32);
        Ok((result.out.iter().map(round).collect(), result.lse.iter().map(|&x| x as f32).collect()))
    }

    /// Calls `run` with the problem for the reference, and shows that time passes.
    fn by_reference<R>(&self, run: impl FnOnce(&FlashProblem) -> R) -> R {
        let whole = |floats: &Option<Floats>| floats.as_ref().map(|floats| repeat(floats, self.pairs()));
        let (bias, mask) = (whole(&self.bias), whole(&self.mask));
        let [additional_k, additional_v] =
            self.additional.each_ref().map(|floats| floats.as_ref().map_or(&[][..], |floats| &floats.values));
        let mask_mod = |at: At| self.sees.sees(at.query, at.key);
        let tokens = [&self.q, &self.k, &self.v];
        let problem = FlashProblem {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens: self.cu_seqlens.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice)),
            bias: bias.as_deref(),
            mask: mask.as_deref(),
            mask_mod: Some(&mask_mod),
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

/// Values to write; those of tensors that are not there are empty.
struct Gradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dbias: Vec<f32>,
    d_additional_k: Vec<f32>,
    d_additional_v: Vec<f32>,
}

/// The tensors on the GPU.
struct Uploaded {
    tokens: [Tensor; 3],
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    additional: [Option<Tensor>; 2],
}

async fn request(adapter: Option<&str>) -> Result<Gpu> {
    let options = GpuOptions { adapter: adapter.map(Into::into), ..GpuOptions::default() };
    Gpu::request_with(&options).await.map_err(|e| crate::no_gpu(&options, e))
}

async fn up(gpu: &Gpu, floats: &Floats) -> Result<Tensor> {
    Tensor::upload(gpu, floats.shape, floats.dtype, &floats.values).await
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message("float64 reference");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// The gradient of a bias that is repeated nowhere, summed along what `shape` repeats.
fn reduce(whole: &[f64], pairs: [usize; 4], shape: [usize; 4]) -> Vec<f32> {
    let mut sums = vec![0.0; shape.iter().product()];
    for (index, values) in whole.chunks(pairs[3].max(1)).enumerate() {
        let row = row_of(index, pairs, shape) * pairs[3];
        sums[row..row + pairs[3]].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.into_iter().map(|x| x as f32).collect()
}

/// Where row `index` of the pairs is found in a tensor that some dimensions repeat.
fn row_of(index: usize, pairs: [usize; 4], shape: [usize; 4]) -> usize {
    let at = [index / pairs[2] / pairs[1], index / pairs[2] % pairs[1], index % pairs[2]];
    (at[0] % shape[0] * shape[1] + at[1] % shape[1]) * shape[2] + at[2] % shape[2]
}

/// The values of a bias or mask repeated to `shape`.
fn repeat(floats: &Floats, pairs: [usize; 4]) -> Vec<f32> {
    let width = pairs[3];
    let row = |index| row_of(index, pairs, floats.shape) * width;
    (0..pairs[0] * pairs[1] * pairs[2]).flat_map(|index| floats.values[row(index)..][..width].to_vec()).collect()
}
