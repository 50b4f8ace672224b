//! `run linear`: linear attention on the tensors of a file.

use super::attention::{params, request, up};
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use serde::Deserialize;
use wgpu_attention::reference::{self, LinearProblem};
use wgpu_attention::{
    Caps, DType, Layout, LinearAttention, LinearInputs, LinearParams, LinearPlan, LinearShapes, LinearWay, Result,
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
const LATER: [&str; 2] = ["beta", "z0"];

/// All that the file holds for linear attention.
struct Problem {
    params: LinearParams,
    tokens: [Floats; 3],
    g: Option<Floats>,
    h0: Option<Floats>,
    cu_seqlens: Option<Vec<u32>>,
}

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    if options.backward {
        return Err(error("--backward", "set", "unset: this version of linear has no gradients"));
    }
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
    let shapes = problem.shapes();
    LinearPlan::new(&Caps::unlimited(), &problem.params, &shapes)?;
    let (o, ht) = match options.backend {
        Backend::Gpu => pollster::block_on(problem.on_gpu(options.adapter.as_deref()))?,
        Backend::Reference => problem.on_cpu(&shapes),
    };
    let of_o = Floats { dtype: shapes.o.dtype, shape: shapes.o.shape, values: o };
    let state = shapes.ht.expect("asked for").shape.to_vec();
    Ok(vec![inputs.output("o", of_o, packed), Output { name: "ht", dtype: DType::F32, shape: state, values: ht }])
}

impl Problem {
    fn shapes(&self) -> LinearShapes {
        let layout = |floats: &Floats| Layout::heads_first(floats.dtype, floats.shape);
        let [q, k, v] = self.tokens.each_ref().map(layout);
        let (g, h0) = (self.g.as_ref().map(layout), self.h0.as_ref().map(layout));
        let cu_seqlens = self.cu_seqlens.clone();
        LinearShapes { g, h0, cu_seqlens, ..LinearShapes::new(q, k, v, true) }.with_outputs(true)
    }

    async fn on_gpu(&self, adapter: Option<&str>) -> Result<(Vec<f32>, Vec<f32>)> {
        let gpu = request(adapter).await?;
        let [q, k, v] = &self.tokens;
        let (q, k, v) = (up(&gpu, q).await?, up(&gpu, k).await?, up(&gpu, v).await?);
        let some = async |floats: &Option<Floats>| match floats {
            Some(floats) => up(&gpu, floats).await.map(Some),
            None => Ok(None),
        };
        let (g, h0) = (some(&self.g).await?, some(&self.h0).await?);
        let attention = LinearAttention::new(&gpu, self.params.clone())?;
        println!("{}", gpu.caps());
        println!("{}", attention.plan(&self.shapes())?);
        let cu_seqlens = self.cu_seqlens.as_deref();
        let inputs = LinearInputs { g: g.as_ref(), h0: h0.as_ref(), cu_seqlens, ..LinearInputs::new(&q, &k, &v) };
        let (o, ht) = attention.forward_with_state(&inputs).await?;
        Ok((o.read().await?, ht.read().await?))
    }

    fn on_cpu(&self, shapes: &LinearShapes) -> (Vec<f32>, Vec<f32>) {
        let [batch, _, rows, _] = shapes.q.shape;
        let sequences: Vec<[usize; 3]> = match &self.cu_seqlens {
            None => (0..batch).map(|b| [b, 0, rows]).collect(),
            Some(offsets) => offsets.windows(2).map(|w| [0, w[0] as usize, (w[1] - w[0]) as usize]).collect(),
        };
        let values = |floats: &'_ Option<Floats>| floats.as_ref().map(|floats| floats.values.clone());
        let (g, h0) = (values(&self.g), values(&self.h0));
        let found = reference::linear(
            &self.params,
            &LinearProblem {
                tokens: self.tokens.each_ref().map(|floats| &floats.values[..]),
                shapes: self.tokens.each_ref().map(|floats| floats.shape),
                g: g.as_deref(),
                h0: h0.as_deref(),
                sequences: &sequences,
            },
        );
        let o = found.o.iter().map(|&x| shapes.o.dtype.round(x as f32)).collect();
        (o, found.ht.iter().map(|&x| x as f32).collect())
    }
}
