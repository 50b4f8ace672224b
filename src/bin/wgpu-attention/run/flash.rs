//! `run flash`.

use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use std::time::Duration;
use wgpu_attention::reference::{self, FlashProblem};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, AttentionPlan, AttentionShapes, Causal, CuSeqlens, CuSeqlensShape, DType,
    FlashAttention, FlashParams, Gpu, GpuOptions, Layout, OutputGradients, Result, Tensor, Window, wgpu,
};

/// The fields of `FlashParams` that are numbers or names; unset where null.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    causal: Option<Diagonal>,
    window: Option<[Option<usize>; 2]>,
    scale: Option<f32>,
    softcap: Option<f32>,
    max_seqlen_q: Option<usize>,
    max_seqlen_k: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Diagonal {
    BottomRight,
    TopLeft,
}

/// All that the file holds for flash attention.
struct Problem {
    params: FlashParams,
    q: Floats,
    k: Floats,
    v: Floats,
    bias: Option<Floats>,
    mask: Option<Floats>,
    seqlens: [Option<Vec<usize>>; 2],
    cu_seqlens: Option<[Vec<u32>; 2]>,
}

/// Tensors that would change the result, and that this version cannot take.
const LATER: [&str; 3] = ["sinks", "output_scale", "block_table"];

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    let problem = Problem::read(options, inputs)?;
    if options.backward {
        return problem.gradients(options, inputs);
    }
    let packed = problem.cu_seqlens.is_some();
    let (out, lse) = match options.backend {
        Backend::Gpu => pollster::block_on(problem.on_gpu(options.adapter.as_deref()))?,
        Backend::Reference => problem.on_cpu()?,
    };
    let [b, h, n, d] = [problem.q.shape[0], problem.q.shape[1], problem.q.shape[2], problem.v.shape[3]];
    let out = inputs.output("out", Floats { dtype: problem.q.dtype, shape: [b, h, n, d], values: out }, packed);
    let shape = if packed { vec![h, n] } else { vec![b, h, n] };
    Ok(vec![out, Output { name: "lse", dtype: DType::F32, shape, values: lse }])
}

impl Problem {
    fn read(options: &Options, inputs: &Inputs) -> Result<Self> {
        if let Some(name) = LATER.into_iter().find(|name| inputs.has(name)) {
            return Err(error(inputs.what(name), "in the file", "absent: this version of flash does not read it"));
        }
        let params: Params = serde_json::from_str(&options.params).map_err(|e| {
            error("--params", format!("{} ({e})", options.params), "JSON with fields of the kernel's params")
        })?;
        let cu_seqlens = match (inputs.integers("cu_seqlens_q")?, inputs.integers("cu_seqlens_k")?) {
            (None, None) => None,
            (Some(q), Some(k)) => Some([q, k]),
            (q, _) => {
                let (has, lacks) = if q.is_some() { ("q", "k") } else { ("k", "q") };
                let bound = format!("in the file, as cu_seqlens_{has} is");
                return Err(error(inputs.what(&format!("cu_seqlens_{lacks}")), "missing", bound));
            }
        };
        let sides = [("q", params.max_seqlen_q), ("k", params.max_seqlen_k)];
        for (i, (side, most)) in sides.into_iter().enumerate() {
            let longest = cu_seqlens.as_ref().map(|sides| CuSeqlensShape::Host(sides[i].clone()).max_seqlen());
            if let (Some(most), Some(longest)) =
                (most, longest.filter(|&longest| most.is_some_and(|most| longest > most)))
            {
                let what = inputs.what(&format!("cu_seqlens_{side}: longest sequence"));
                return Err(error(what, longest, format!("at most max_seqlen_{side} = {most}")));
            }
            if let (Some(most), None) = (most, longest) {
                return Err(error(format!("max_seqlen_{side}"), most, "unset without packed sequences"));
            }
        }
        let packed = cu_seqlens.is_some();
        let lengths = |name: &str| -> Result<Option<Vec<usize>>> {
            Ok(inputs.integers(name)?.map(|lengths| lengths.into_iter().map(|n| n as usize).collect()))
        };
        let [left, right] = params.window.unwrap_or_default();
        Ok(Self {
            params: FlashParams {
                causal: params.causal.map(|diagonal| match diagonal {
                    Diagonal::BottomRight => Causal::BottomRight,
                    Diagonal::TopLeft => Causal::TopLeft,
                }),
                window: Window { left, right },
                scale: params.scale,
                softcap: params.softcap,
                alibi_slopes: inputs.vector("alibi_slopes")?,
                ..FlashParams::default()
            },
            q: inputs.tokens("q", packed)?,
            k: inputs.tokens("k", packed)?,
            v: inputs.tokens("v", packed)?,
            bias: inputs.bias("bias")?,
            mask: inputs.mask("mask")?,
            seqlens: [lengths("seqlens_q")?, lengths("seqlens_k")?],
            cu_seqlens,
        })
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
            ..AttentionShapes::new(layout(&self.q), layout(&self.k), layout(&self.v))
        })
    }

    async fn on_gpu(&self, adapter: Option<&str>) -> Result<(Vec<f32>, Vec<f32>)> {
        let gpu = request(adapter).await?;
        let shapes = self.shapes()?;
        let prepared = FlashAttention::new(&gpu, self.params.clone())?.prepare(&shapes).await?;
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
        Ok(Uploaded {
            tokens: [up(gpu, &self.q).await?, up(gpu, &self.k).await?, up(gpu, &self.v).await?],
            bias: pair(&self.bias, &shapes.bias).await?,
            mask: pair(&self.mask, &shapes.mask).await?,
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
        let [dq, dk, dv, dbias] = gradients;
        let like = |floats: &Floats, values| Floats { dtype: floats.dtype, shape: floats.shape, values };
        let tokens = [("dq", &self.q, dq), ("dk", &self.k, dk), ("dv", &self.v, dv)];
        let mut outputs: Vec<Output> = tokens
            .into_iter()
            .map(|(name, floats, values)| inputs.output(name, like(floats, values), packed))
            .collect();
        if let Some(bias) = &self.bias {
            outputs.push(Output { name: "dbias", dtype: DType::F32, shape: bias.shape.into(), values: dbias });
        }
        Ok(outputs)
    }

    async fn gradients_on_gpu(
        &self,
        adapter: Option<&str>,
        dout: &Floats,
        dlse: Option<Vec<f32>>,
    ) -> Result<[Vec<f32>; 4]> {
        let gpu = request(adapter).await?;
        println!("{}", gpu.caps());
        let shapes = self.shapes()?;
        let attention = FlashAttention::new(&gpu, self.params.clone())?;
        let uploaded = self.upload(&gpu, &shapes).await?;
        let (_, saved) = attention.forward_for_training(&self.inputs(&uploaded)).await?;
        let dout = up(&gpu, dout).await?;
        let dlse = match dlse {
            Some(values) => Some(Tensor::upload(&gpu, shapes.lse.shape, DType::F32, &values).await?),
            None => None,
        };
        let from = OutputGradients { dlse: dlse.as_ref(), ..OutputGradients::new(&dout) };
        let g = attention.backward_with_lse(&saved, &from).await?;
        let dbias = match &g.dbias {
            Some(dbias) => dbias.read().await?,
            None => vec![],
        };
        Ok([g.dq.read().await?, g.dk.read().await?, g.dv.read().await?, dbias])
    }

    fn gradients_on_cpu(&self, dout: &Floats, dlse: Option<Vec<f32>>) -> Result<[Vec<f32>; 4]> {
        let (out, _) = self.on_cpu()?;
        let whole = |floats: &Option<Floats>| floats.as_ref().map(|floats| repeat(floats, self.pairs()));
        let (bias, mask) = (whole(&self.bias), whole(&self.mask));
        let problem = self.problem(bias.as_deref(), mask.as_deref());
        let spinner = spinner();
        let g = reference::flash_backward(&self.params, &problem, &out, &dout.values, dlse.as_deref(), None);
        spinner.finish_and_clear();
        let round = |values: &[f64], dtype: DType| values.iter().map(|&x| dtype.round(x as f32)).collect();
        let dbias = self.bias.as_ref().map(|bias| reduce(&g.dbias, self.pairs(), bias.shape)).unwrap_or_default();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|floats| floats.dtype);
        Ok([round(&g.dq, q), round(&g.dk, k), round(&g.dv, v), dbias])
    }

    fn on_cpu(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        // The reference takes what fits together; what does not is told by planning.
        AttentionPlan::new(&wgpu_attention::Caps::unlimited(), &self.params, &self.shapes()?)?;
        let whole = |floats: &Option<Floats>| floats.as_ref().map(|floats| repeat(floats, self.pairs()));
        let (bias, mask) = (whole(&self.bias), whole(&self.mask));
        let problem = self.problem(bias.as_deref(), mask.as_deref());
        let spinner = spinner();
        let result = reference::flash(&self.params, &problem);
        spinner.finish_and_clear();
        let round = |x: &f64| self.q.dtype.round(*x as f32);
        Ok((result.out.iter().map(round).collect(), result.lse.iter().map(|&x| x as f32).collect()))
    }

    fn problem<'a>(&'a self, bias: Option<&'a [f32]>, mask: Option<&'a [f32]>) -> FlashProblem<'a> {
        let tokens = [&self.q, &self.k, &self.v];
        FlashProblem {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens: self.cu_seqlens.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice)),
            bias,
            mask,
            ..FlashProblem::new(tokens.map(|floats| &floats.values[..]), tokens.map(|floats| floats.shape))
        }
    }
}

/// The tensors on the GPU.
struct Uploaded {
    tokens: [Tensor; 3],
    bias: Option<Tensor>,
    mask: Option<Tensor>,
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
