//! `run linear`: linear attention on the tensors of a file.

use super::attention::{params, request, up};
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use serde::Deserialize;
use wgpu_attention::reference::{self, LinearProblem};
use wgpu_attention::{
    Caps, DType, Gpu, Layout, LinearAttention, LinearBackwardPlan, LinearBackwardShapes, LinearInputs,
    LinearOutputGradients, LinearParams, LinearPlan, LinearShapes, LinearWay, Result, Tensor,
};

/// The fields of `LinearParams` that are numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    rule: Rule,
    way: Way,
    scale: Option<f32>,
    causal: bool,
    reverse: bool,
    chunk: Option<usize>,
}

impl Default for Params {
    fn default() -> Self {
        Self { rule: Rule::Linear, way: Way::Auto, scale: None, causal: true, reverse: false, chunk: None }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    Linear,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Auto,
    Recurrent,
    OnePass,
    ThreePass,
}

/// Tensors that would change the result, and that this version cannot take.
const LATER: [&str; 3] = ["beta", "z0", "dzt"];

/// All that the file holds for linear attention.
struct Problem {
    params: LinearParams,
    tokens: [Floats; 3],
    g: Option<Floats>,
    h0: Option<Floats>,
    cu_seqlens: Option<Vec<u32>>,
}

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    if let Some(name) = LATER.into_iter().find(|name| inputs.has(name)) {
        return Err(error(inputs.what(name), "in the file", "absent: this version of linear does not read it"));
    }
    let Params { rule: Rule::Linear, way, scale, causal, reverse, chunk } = params(options)?;
    let way = match way {
        Way::Auto => None,
        Way::Recurrent => Some(LinearWay::Recurrent),
        Way::OnePass => Some(LinearWay::OnePass),
        Way::ThreePass => Some(LinearWay::ThreePass),
    };
    let cu_seqlens = inputs.integers("cu_seqlens")?;
    let packed = cu_seqlens.is_some();
    let problem = Problem {
        params: LinearParams { causal, reverse, scale, slopes: inputs.vector("slopes")?, way, chunk },
        tokens: [inputs.tokens("q", packed)?, inputs.tokens("k", packed)?, inputs.tokens("v", packed)?],
        g: inputs.gates("g", packed)?,
        h0: inputs.state("h0")?,
        cu_seqlens,
    };
    problem.check_gates()?;
    let shapes = problem.shapes();
    LinearPlan::new(&Caps::unlimited(), &problem.params, &shapes)?;
    if options.backward {
        return problem.gradients(options, inputs);
    }
    let (o, ht) = match options.backend {
        Backend::Gpu => pollster::block_on(problem.on_gpu(options.adapter.as_deref()))?,
        Backend::Reference => problem.on_cpu(&shapes),
    };
    let of_o = Floats { dtype: shapes.o.dtype, shape: shapes.o.shape, values: o };
    let state = shapes.ht.expect("asked for").shape.to_vec();
    Ok(vec![inputs.output("o", of_o, packed), Output { name: "ht", dtype: DType::F32, shape: state, values: ht }])
}

/// What gradients come in, and what is found.
struct From {
    dout: Floats,
    dht: Option<Floats>,
}

struct Found {
    tokens: [Vec<f32>; 3],
    dg: Option<Vec<f32>>,
    dslopes: Option<Vec<f32>>,
    dh0: Option<Vec<f32>>,
}

impl Problem {
    fn shapes(&self) -> LinearShapes {
        let layout = |floats: &Floats| Layout::heads_first(floats.dtype, floats.shape);
        let [q, k, v] = self.tokens.each_ref().map(layout);
        let (g, h0) = (self.g.as_ref().map(layout), self.h0.as_ref().map(layout));
        let cu_seqlens = self.cu_seqlens.clone();
        LinearShapes { g, h0, cu_seqlens, ..LinearShapes::new(q, k, v, true) }.with_outputs(true)
    }

    /// Log-space gates are at most 0.
    fn check_gates(&self) -> Result<()> {
        let Some(Floats { shape: [_, heads, rows, _], values, .. }) = &self.g else { return Ok(()) };
        let Some(n) = values.iter().position(|&x| x.is_nan() || x > 0.0) else { return Ok(()) };
        let what = format!("g[{}][{}][{}]", n / rows / heads, n / rows % heads, n % rows);
        Err(error(what, values[n], "at most 0: the natural logarithm of what stays"))
    }

    /// dq dk dv, and those of gates, slopes and the initial state, where there are some.
    fn gradients(&self, options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
        let packed = self.cu_seqlens.is_some();
        let from = From { dout: inputs.tokens("do", packed)?, dht: inputs.state("dht")? };
        let layout = |floats: &Floats| Layout::heads_first(floats.dtype, floats.shape);
        let shapes =
            LinearBackwardShapes::new(&self.params, self.shapes(), layout(&from.dout), from.dht.as_ref().map(layout));
        LinearBackwardPlan::new(&Caps::unlimited(), &self.params, &shapes)?;
        let Found { tokens: [dq, dk, dv], dg, dslopes, dh0 } = match options.backend {
            Backend::Gpu => pollster::block_on(self.gradients_on_gpu(options.adapter.as_deref(), &from))?,
            Backend::Reference => self.gradients_on_cpu(&from),
        };
        let mut outputs = vec![];
        for (name, layout, values) in [("dq", &shapes.dq, dq), ("dk", &shapes.dk, dk), ("dv", &shapes.dv, dv)] {
            let floats = Floats { dtype: layout.dtype, shape: layout.shape, values };
            outputs.push(inputs.output(name, floats, packed));
        }
        if let (Some(values), Some(layout)) = (dg, &shapes.dg) {
            let floats = Floats { dtype: DType::F32, shape: layout.shape, values };
            let Output { mut shape, values, .. } = inputs.output("dg", floats, packed);
            shape.pop();
            outputs.push(Output { name: "dg", dtype: DType::F32, shape, values });
        }
        outputs.extend(dslopes.map(|values| {
            let shape = vec![values.len()];
            Output { name: "dslopes", dtype: DType::F32, shape, values }
        }));
        if let (Some(values), Some(layout)) = (dh0, &shapes.dh0) {
            outputs.push(Output { name: "dh0", dtype: DType::F32, shape: layout.shape.to_vec(), values });
        }
        Ok(outputs)
    }

    async fn gradients_on_gpu(&self, adapter: Option<&str>, from: &From) -> Result<Found> {
        let gpu = request(adapter).await?;
        println!("{}", gpu.caps());
        let uploaded = self.upload(&gpu).await?;
        let (dout, dht) = (up(&gpu, &from.dout).await?, some(&gpu, &from.dht).await?);
        let attention = LinearAttention::new(&gpu, self.params.clone())?;
        let from = LinearOutputGradients { dout: &dout, dht: dht.as_ref() };
        let found = attention.backward(&self.inputs(&uploaded), &from).await?;
        let read = async |tensor: Option<Tensor>| match tensor {
            Some(tensor) => tensor.read().await.map(Some),
            None => Ok(None),
        };
        Ok(Found {
            tokens: [found.dq.read().await?, found.dk.read().await?, found.dv.read().await?],
            dg: read(found.dg).await?,
            dslopes: read(found.dslopes).await?,
            dh0: read(found.dh0).await?,
        })
    }

    fn gradients_on_cpu(&self, from: &From) -> Found {
        let dht = from.dht.as_ref().map(|dht| &dht.values[..]);
        let found = self.by_reference(|p| reference::linear_backward(&self.params, p, &from.dout.values, dht));
        let single = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let mut tokens = found.tokens.map(single);
        for (values, of) in tokens.iter_mut().zip(&self.tokens) {
            values.iter_mut().for_each(|x| *x = of.dtype.round(*x));
        }
        Found {
            tokens,
            dg: self.g.as_ref().map(|_| single(found.dg)),
            dslopes: self.params.slopes.as_ref().map(|_| single(found.dslopes)),
            dh0: self.h0.as_ref().map(|_| single(found.dh0)),
        }
    }

    async fn upload(&self, gpu: &Gpu) -> Result<Uploaded> {
        let [q, k, v] = &self.tokens;
        Ok(Uploaded {
            tokens: [up(gpu, q).await?, up(gpu, k).await?, up(gpu, v).await?],
            g: some(gpu, &self.g).await?,
            h0: some(gpu, &self.h0).await?,
        })
    }

    fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> LinearInputs<'a> {
        let Uploaded { tokens: [q, k, v], g, h0 } = uploaded;
        let cu_seqlens = self.cu_seqlens.as_deref();
        LinearInputs { g: g.as_ref(), h0: h0.as_ref(), cu_seqlens, ..LinearInputs::new(q, k, v) }
    }

    async fn on_gpu(&self, adapter: Option<&str>) -> Result<(Vec<f32>, Vec<f32>)> {
        let gpu = request(adapter).await?;
        let uploaded = self.upload(&gpu).await?;
        let attention = LinearAttention::new(&gpu, self.params.clone())?;
        println!("{}", gpu.caps());
        println!("{}", attention.plan(&self.shapes())?);
        let (o, ht) = attention.forward_with_state(&self.inputs(&uploaded)).await?;
        Ok((o.read().await?, ht.read().await?))
    }

    fn by_reference<T>(&self, solve: impl FnOnce(&LinearProblem) -> T) -> T {
        let [batch, _, rows, _] = self.tokens[0].shape;
        let sequences: Vec<[usize; 3]> = match &self.cu_seqlens {
            None => (0..batch).map(|b| [b, 0, rows]).collect(),
            Some(offsets) => offsets.windows(2).map(|w| [0, w[0] as usize, (w[1] - w[0]) as usize]).collect(),
        };
        solve(&LinearProblem {
            tokens: self.tokens.each_ref().map(|floats| &floats.values[..]),
            shapes: self.tokens.each_ref().map(|floats| floats.shape),
            g: self.g.as_ref().map(|floats| &floats.values[..]),
            h0: self.h0.as_ref().map(|floats| &floats.values[..]),
            sequences: &sequences,
        })
    }

    fn on_cpu(&self, shapes: &LinearShapes) -> (Vec<f32>, Vec<f32>) {
        let found = self.by_reference(|problem| reference::linear(&self.params, problem));
        let o = found.o.iter().map(|&x| shapes.o.dtype.round(x as f32)).collect();
        (o, found.ht.iter().map(|&x| x as f32).collect())
    }
}

struct Uploaded {
    tokens: [Tensor; 3],
    g: Option<Tensor>,
    h0: Option<Tensor>,
}

async fn some(gpu: &Gpu, floats: &Option<Floats>) -> Result<Option<Tensor>> {
    match floats {
        Some(floats) => up(gpu, floats).await.map(Some),
        None => Ok(None),
    }
}
