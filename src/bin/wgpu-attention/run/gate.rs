//! SeerAttention's gate in `run block-sparse`: the mask that it chooses, its scores, its target.

mod decode;
mod prefill;

use super::Options;
use super::attention::Problem;
use super::call::{Named, Uploaded};
use super::causal::Diagonal;
use super::file::{Floats, Inputs, Output, error};
use serde::Deserialize;
use wgpu_attention::gate::{Pool, SeerDecodeGateParams, SeerGateParams, Selector};
use wgpu_attention::plan::{AttentionParams, Caps};
use wgpu_attention::reference;
use wgpu_attention::score_reduction::{HeadGroups, KeyGroups, QueryGroups, ScoreReductionParams};
use wgpu_attention::{
    AttentionInputs, BlockMask, BlockSparseParams, DType, FlashAttention, FlashParams, Gpu, Result, Seqlens, Tensor,
};

/// The fields of `SeerGateParams` and `SeerDecodeGateParams`, and whether the target is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    pub block: Option<[usize; 2]>,
    pub causal: Option<Diagonal>,
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
    selector: Option<Choice>,
    sink: Option<bool>,
    diagonal: Option<bool>,
    last_rows_dense: Option<bool>,
    pool_q: Option<Vec<Kind>>,
    pool_k: Option<Vec<Kind>>,
    rope_theta: Option<f32>,
    target: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            block: None,
            causal: None,
            scale: None,
            softcap: None,
            selector: None,
            sink: None,
            diagonal: None,
            last_rows_dense: None,
            pool_q: None,
            pool_k: None,
            rope_theta: SeerGateParams::default().rope_theta,
            target: false,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choice {
    Threshold(f64),
    Density(f64),
    TopP(f64),
    Budget(usize),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Max,
    Min,
    Avg,
}

/// What a gate made: a mask [batch, heads, blocks of queries, blocks of keys], and what is written besides.
pub struct Gated {
    pub block: [usize; 2],
    pub mask: Floats,
    pub outputs: Vec<Output>,
}

impl Params {
    fn selector(&self, default: Selector) -> Selector {
        self.selector.map_or(default, |choice| match choice {
            Choice::Threshold(t) => Selector::Threshold(t),
            Choice::Density(r) => Selector::Density(r),
            Choice::TopP(p) => Selector::TopP(p),
            Choice::Budget(tokens) => Selector::Budget(tokens),
        })
    }

    fn pools(kinds: &Option<Vec<Kind>>, default: Vec<Pool>) -> Vec<Pool> {
        let pool = |kind: &Kind| match kind {
            Kind::Max => Pool::Max,
            Kind::Min => Pool::Min,
            Kind::Avg => Pool::Avg,
        };
        kinds.as_ref().map_or(default, |kinds| kinds.iter().map(pool).collect())
    }

    fn prefill(&self) -> SeerGateParams {
        let default = SeerGateParams::default();
        SeerGateParams {
            block: self.block.unwrap_or(default.block),
            pool_q: Self::pools(&self.pool_q, default.pool_q),
            pool_k: Self::pools(&self.pool_k, default.pool_k),
            rope_theta: self.rope_theta,
            causal: self.causal.and_then(Diagonal::causal),
            selector: self.selector(default.selector),
            sink: self.sink.unwrap_or(default.sink),
            diagonal: self.diagonal.unwrap_or(default.diagonal),
            last_rows_dense: self.last_rows_dense.unwrap_or(default.last_rows_dense),
        }
    }

    fn decode(&self) -> SeerDecodeGateParams {
        let default = SeerDecodeGateParams::default();
        SeerDecodeGateParams {
            block: self.block.map_or(default.block, |block| block[1]),
            pool_k: Self::pools(&self.pool_k, default.pool_k),
            rope_theta: self.rope_theta,
            norm_epsilon: default.norm_epsilon,
            selector: self.selector(default.selector),
            sink: self.sink.unwrap_or(default.sink),
        }
    }

    /// Parameters that only a gate has.
    pub fn check_without_gate(&self, inputs: &Inputs) -> Result<()> {
        let set = [
            ("selector", self.selector.is_some()),
            ("sink", self.sink.is_some()),
            ("diagonal", self.diagonal.is_some()),
            ("last_rows_dense", self.last_rows_dense.is_some()),
            ("pool_q", self.pool_q.is_some()),
            ("pool_k", self.pool_k.is_some()),
            ("target", self.target),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            Some((name, _)) => {
                Err(error(name, "set", format!("unset without a gate: {} is missing", inputs.what("q_pre"))))
            }
            None => Ok(()),
        }
    }
}

/// Tensors of a gate.
const GATE: [&str; 6] = ["q_pre", "k_pre", "gate_wk", "gate_wq", "gate_qnorm", "gate_knorm"];

/// Runs the gate where the file has one. `problem` is the attention without a mask.
pub fn run(
    options: &Options,
    inputs: &Inputs,
    params: &Params,
    problem: &Problem<BlockSparseParams>,
) -> Result<Option<Gated>> {
    if !GATE.into_iter().any(|name| inputs.has(name)) {
        params.check_without_gate(inputs)?;
        return Ok(None);
    }
    flash(params).plan(&Caps::unlimited(), &problem.shapes()?)?;
    let packed = problem.cu_seqlens.is_some();
    let wq = inputs.weights("gate_wq", 3)?;
    // A map of four dimensions joins the heads that share a key head.
    let decodes = wq.as_ref().is_some_and(|(_, rank)| *rank == 4);
    let mut tensors = Named::from([("q", inputs.tokens("q_pre", packed)?), ("k", inputs.tokens("k_pre", packed)?)]);
    let wk = inputs.weights("gate_wk", 2)?.ok_or_else(|| inputs.missing("gate_wk", ""))?;
    let [norm_q, norm_k] = [inputs.weights("gate_qnorm", 0)?, inputs.weights("gate_knorm", 0)?];
    let weights = [("wq", wq), ("wk", Some(wk)), ("norm_q", norm_q), ("norm_k", norm_k)];
    tensors.extend(weights.into_iter().filter_map(|(name, weights)| Some((name, weights?.0))));
    for name in ["q", "k"] {
        let (shape, wanted) = (tensors[name].shape, problem.tensors[name].shape);
        if shape != wanted {
            return Err(error(format!("{name}_pre.shape"), format!("{shape:?}"), format!("{wanted:?}, like {name}")));
        }
    }
    let (shape, [chosen, logits, scores], target) = match decodes {
        false => prefill::run(options, params, &tensors, problem)?,
        true => decode::run(options, inputs, params, &tensors, problem)?,
    };
    let output = |name: &str, dtype, values| Output { name: name.into(), dtype, shape: shape.to_vec(), values };
    let mut outputs = vec![
        output("mask", DType::U8, chosen.clone()),
        output("gate_logits", DType::F32, logits),
        output("gate_scores", DType::F32, scores),
    ];
    outputs.extend(target.map(|target| output("target", DType::F32, target)));
    let block = if decodes { [1, params.decode().block] } else { params.prefill().block };
    Ok(Some(Gated { block, mask: Floats { dtype: DType::U8, shape, values: chosen }, outputs }))
}

/// The shape of the results; the chosen blocks, logits and scores; the target.
type Found = ([usize; 4], [Vec<f32>; 3], Option<Vec<f32>>);

fn flash(params: &Params) -> FlashParams {
    let Params { scale, softcap, causal, .. } = *params;
    FlashParams { causal: causal.and_then(Diagonal::causal), scale, softcap, ..FlashParams::default() }
}

fn bits(chosen: Vec<bool>) -> Vec<f32> {
    chosen.into_iter().map(|chosen| f32::from(u8::from(chosen))).collect()
}

/// The dense attention whose blocks are chosen.
struct Dense {
    tokens: Uploaded,
    lse: Tensor,
}

impl Dense {
    async fn new(gpu: &Gpu, params: &Params, problem: &Problem<BlockSparseParams>) -> Result<Self> {
        let tokens = Uploaded::new(gpu, &problem.tensors).await?;
        let (_, lse) = FlashAttention::new(gpu, flash(params))?.forward_with_lse(&inputs(problem, &tokens)).await?;
        Ok(Self { tokens, lse })
    }
}

fn side(problem: &Problem<BlockSparseParams>, i: usize) -> Option<Seqlens<'_>> {
    problem.cu_seqlens.as_ref().map(|sides| Seqlens::Host(&sides[i]))
}

fn inputs<'a>(problem: &'a Problem<BlockSparseParams>, tokens: &'a Uploaded) -> AttentionInputs<'a> {
    let [q, k, v] = ["q", "k", "v"].map(|name| &tokens.tensors[name]);
    AttentionInputs {
        seqlens_q: problem.seqlens[0].as_deref().map(Seqlens::Host),
        seqlens_k: problem.seqlens[1].as_deref().map(Seqlens::Host),
        cu_seqlens_q: side(problem, 0),
        cu_seqlens_k: side(problem, 1),
        ..AttentionInputs::new(q, k, v)
    }
}

/// What a gate on the GPU has found.
async fn read((mask, logits, scores): (BlockMask, Tensor, Tensor), target: Option<Tensor>) -> Result<Found> {
    let target = match target {
        Some(target) => Some(target.read().await?),
        None => None,
    };
    let all = [bits(mask.read().await?), logits.read().await?, scores.read().await?];
    Ok((logits.shape(), all, target))
}

fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// The largest probabilities of dense attention.
fn probabilities(
    params: &Params,
    problem: &Problem<BlockSparseParams>,
    heads: HeadGroups,
    block: [usize; 2],
) -> Vec<f64> {
    let attention = flash(params);
    let queries = QueryGroups::Blocks(block[0]);
    let keys = KeyGroups::Blocks(block[1]);
    let reduction = ScoreReductionParams { attention, heads, queries, keys, ..ScoreReductionParams::default() };
    problem.by_reference(|dense| {
        let lse = f32s(&reference::flash(&reduction.attention, dense).lse);
        reference::score_reduction(&reduction, dense, &lse, &[])
    })
}
