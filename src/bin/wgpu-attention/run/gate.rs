//! SeerAttention's gate in `run block-sparse`: the mask that it chooses, its scores, its target.

use super::attention::{Problem, request, up};
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use serde::Deserialize;
use wgpu_attention::reference::{self, SeerDecodeProblem, SeerGateProblem};
use wgpu_attention::{
    AttentionInputs, AttentionPlan, BlockSparseParams, Caps, Causal, CuSeqlens, DType, FlashAttention, FlashParams,
    Gpu, HeadGroups, KeyGroups, Layout, Pool, QueryGroups, Result, ScoreReductionParams, SeerDecodeGate,
    SeerDecodeGateParams, SeerDecodeInputs, SeerDecodeWeights, SeerGate, SeerGateInputs, SeerGateParams, SeerGatePlan,
    SeerGateShapes, Selector, Tensor,
};

/// The fields of `SeerGateParams` and `SeerDecodeGateParams`, and whether the target is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    pub block: Option<[usize; 2]>,
    pub causal: bool,
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
            causal: false,
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

/// The gate's tensors.
struct Tensors {
    q: Floats,
    k: Floats,
    wq: Option<Floats>,
    wk: Floats,
    norms: [Option<Floats>; 2],
    /// Whether the map of queries joins the heads that share a key head.
    decodes: bool,
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
            causal: self.causal.then_some(Causal::BottomRight),
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
    AttentionPlan::new(&Caps::unlimited(), &flash(params), &problem.shapes()?)?;
    let packed = problem.cu_seqlens.is_some();
    let wq = inputs.weights("gate_wq", 3)?;
    let tensors = Tensors {
        q: inputs.tokens("q_pre", packed)?,
        k: inputs.tokens("k_pre", packed)?,
        wk: inputs.weights("gate_wk", 2)?.ok_or_else(|| error(inputs.what("gate_wk"), "missing", "in the file"))?.0,
        norms: [inputs.weights("gate_qnorm", 0)?, inputs.weights("gate_knorm", 0)?].map(|norm| Some(norm?.0)),
        decodes: wq.as_ref().is_some_and(|(_, rank)| *rank == 4),
        wq: wq.map(|(weights, _)| weights),
    };
    for (name, pre, token) in [("q_pre", &tensors.q, &problem.q), ("k_pre", &tensors.k, &problem.k)] {
        let bound = format!("{:?}, as {}", token.shape, &name[..1]);
        if pre.shape != token.shape {
            return Err(error(format!("{name}.shape"), format!("{:?}", pre.shape), bound));
        }
    }
    let (shape, [chosen, logits, scores], target) = match (tensors.decodes, options.backend) {
        (false, Backend::Gpu) => pollster::block_on(on_gpu(options, params, &tensors, problem))?,
        (false, Backend::Reference) => on_cpu(params, &tensors, problem)?,
        (true, backend) => {
            check_decode(inputs, params, problem)?;
            check_weights(params, &tensors)?;
            match backend {
                Backend::Gpu => pollster::block_on(decode_on_gpu(options, params, &tensors, problem))?,
                Backend::Reference => decode_on_cpu(params, &tensors, problem)?,
            }
        }
    };
    let output = |name, dtype, values| Output { name, dtype, shape: shape.to_vec(), values };
    let mut outputs = vec![
        output("mask", DType::U8, chosen.clone()),
        output("gate_logits", DType::F32, logits),
        output("gate_scores", DType::F32, scores),
    ];
    outputs.extend(target.map(|target| output("target", DType::F32, target)));
    let block = if tensors.decodes { [1, params.decode().block] } else { params.prefill().block };
    Ok(Some(Gated { block, mask: Floats { dtype: DType::U8, shape, values: chosen }, outputs }))
}

/// What a gate for decoding does not go with.
fn check_decode(inputs: &Inputs, params: &Params, problem: &Problem<BlockSparseParams>) -> Result<()> {
    let what = "a gate for decoding (gate_wq of four dimensions)";
    if let Some([rows, _]) = params.block
        && rows != 1
    {
        return Err(error("block[0]", rows, format!("1 with {what}: every query chooses")));
    }
    let set = [
        ("cu_seqlens_q", problem.cu_seqlens.is_some()),
        ("seqlens_q", problem.seqlens[0].is_some()),
        ("diagonal", params.diagonal.is_some()),
        ("last_rows_dense", params.last_rows_dense.is_some()),
        ("pool_q", params.pool_q.is_some()),
        ("target", params.target && problem.seqlens[1].is_some()),
    ];
    match set.into_iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(error(inputs.what(name), "set", format!("unset with {what}"))),
        None => Ok(()),
    }
}

/// Weights of a gate for decoding, which its reference takes as they are.
fn check_weights(params: &Params, tensors: &Tensors) -> Result<()> {
    let gate = params.decode();
    gate.check()?;
    let ([_, heads_q, _, head_dim], heads_kv) = (tensors.q.shape, tensors.k.shape[1]);
    let gate_dim = tensors.wk.shape[3];
    let norm = [1, 1, 1, gate_dim];
    let [norm_q, norm_k] = &tensors.norms;
    for (name, floats, shape) in [
        ("gate_wq", &tensors.wq, [1, heads_kv, heads_q / heads_kv * head_dim, gate_dim]),
        ("gate_wk", &Some(tensors.wk.clone()), [1, heads_kv, gate.pool_k.len() * head_dim, gate_dim]),
        ("gate_qnorm", norm_q, norm),
        ("gate_knorm", norm_k, norm),
    ] {
        let found = floats.as_ref().map_or(shape, |floats| floats.shape);
        if found != shape {
            return Err(error(format!("{name}.shape"), format!("{found:?}"), format!("{shape:?}, by q_pre and k_pre")));
        }
    }
    Ok(())
}

/// The shape of the results; the chosen blocks, logits and scores; the target.
type Found = ([usize; 4], [Vec<f32>; 3], Option<Vec<f32>>);

fn flash(params: &Params) -> FlashParams {
    let Params { scale, softcap, causal, .. } = *params;
    FlashParams { causal: causal.then_some(Causal::BottomRight), scale, softcap, ..FlashParams::default() }
}

fn bits(chosen: Vec<bool>) -> Vec<f32> {
    chosen.into_iter().map(|chosen| f32::from(u8::from(chosen))).collect()
}

/// The attention whose blocks are chosen, with the log-sum-exp of its dense form.
async fn dense<'a>(
    gpu: &Gpu,
    params: &Params,
    problem: &'a Problem<BlockSparseParams>,
    [q, k, v]: &'a [Tensor; 3],
) -> Result<(AttentionInputs<'a>, Tensor)> {
    let side = |i: usize| problem.cu_seqlens.as_ref().map(|sides| CuSeqlens::Host(&sides[i]));
    let inputs = AttentionInputs {
        seqlens_q: problem.seqlens[0].as_deref(),
        seqlens_k: problem.seqlens[1].as_deref(),
        cu_seqlens_q: side(0),
        cu_seqlens_k: side(1),
        ..AttentionInputs::new(q, k, v)
    };
    let (_, lse) = FlashAttention::new(gpu, flash(params))?.forward_with_lse(&inputs).await?;
    Ok((inputs, lse))
}

async fn up_some(gpu: &Gpu, floats: &Option<Floats>) -> Result<Option<Tensor>> {
    match floats {
        Some(floats) => up(gpu, floats).await.map(Some),
        None => Ok(None),
    }
}

async fn on_gpu(
    options: &Options,
    params: &Params,
    tensors: &Tensors,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    let gpu = request(options.adapter.as_deref()).await?;
    let gate = SeerGate::new(&gpu, params.prefill())?;
    let (q, k, wk) = (up(&gpu, &tensors.q).await?, up(&gpu, &tensors.k).await?, up(&gpu, &tensors.wk).await?);
    let wq = up_some(&gpu, &tensors.wq).await?;
    let side = |i: usize| problem.cu_seqlens.as_ref().map(|sides| CuSeqlens::Host(&sides[i]));
    let inputs = SeerGateInputs {
        wq: wq.as_ref(),
        seqlens_q: problem.seqlens[0].as_deref(),
        seqlens_k: problem.seqlens[1].as_deref(),
        cu_seqlens_q: side(0),
        cu_seqlens_k: side(1),
        ..SeerGateInputs::new(&q, &k, &wk)
    };
    let found = gate.forward_with_scores(&inputs).await?;
    let target = match params.target {
        true => {
            let tokens = [up(&gpu, &problem.q).await?, up(&gpu, &problem.k).await?, up(&gpu, &problem.v).await?];
            let (attention, lse) = dense(&gpu, params, problem, &tokens).await?;
            Some(gate.target(&inputs, &flash(params), &attention, &lse).await?.read().await?)
        }
        false => None,
    };
    let all = [bits(found.mask.read().await?), found.logits.read().await?, found.scores.read().await?];
    Ok((found.logits.shape(), all, target))
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

fn on_cpu(params: &Params, tensors: &Tensors, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    let gate = params.prefill();
    // The reference takes what fits together; what does not is told by planning.
    let layout = |floats: &Floats| Layout::heads_first(floats.dtype, floats.shape);
    let (q, k, wk, wq) = (layout(&tensors.q), layout(&tensors.k), layout(&tensors.wk), tensors.wq.as_ref().map(layout));
    let attention = problem.shapes()?;
    let shapes = SeerGateShapes {
        seqlens_q: attention.seqlens_q,
        seqlens_k: attention.seqlens_k,
        cu_seqlens_q: attention.cu_seqlens_q,
        cu_seqlens_k: attention.cu_seqlens_k,
        ..SeerGateShapes::new(&gate, q, k, wq, wk, false)
    };
    SeerGatePlan::new(&Caps::unlimited(), &gate, &shapes.with_outputs(&gate, false))?;
    let length = |i: usize, b: usize, all: usize| problem.seqlens[i].as_ref().map_or(all, |lengths| lengths[b]);
    let [batch, _, queries, keys] = problem.pairs();
    let sequences: Vec<[usize; 5]> = match &problem.cu_seqlens {
        None => (0..batch).map(|b| [b, 0, length(0, b, queries), 0, length(1, b, keys)]).collect(),
        Some([q, k]) => {
            let pairs = q.windows(2).zip(k.windows(2));
            pairs.map(|(q, k)| [0, q[0], q[1] - q[0], k[0], k[1] - k[0]].map(|n| n as usize)).collect()
        }
    };
    let gated = SeerGateProblem {
        q: &tensors.q.values,
        q_shape: tensors.q.shape,
        k: &tensors.k.values,
        k_shape: tensors.k.shape,
        wq: tensors.wq.as_ref().map(|wq| &wq.values[..]),
        wk: &tensors.wk.values,
        wk_heads: tensors.wk.shape[1],
        gate_dim: tensors.wk.shape[3],
        sequences: &sequences,
    };
    let found = reference::seer_gate(&gate, &gated);
    let choice = reference::seer_gate_choice(&gate, &gated, &found.logits);
    let scores = reference::seer_gate_scores(&found.logits, found.shape[3]);
    let target = params.target.then(|| {
        let wanted = probabilities(params, problem, HeadGroups::Each, gate.block);
        f32s(&reference::seer_gate_target(&gate, &gated, &wanted))
    });
    let chosen = choice.into_iter().map(|(chosen, _)| chosen).collect();
    Ok((found.shape, [bits(chosen), f32s(&found.logits), f32s(&scores)], target))
}

fn decode_lengths(problem: &Problem<BlockSparseParams>) -> Vec<usize> {
    problem.seqlens[1].clone().unwrap_or_else(|| vec![problem.k.shape[2]; problem.k.shape[0]])
}

async fn decode_on_gpu(
    options: &Options,
    params: &Params,
    tensors: &Tensors,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    let gpu = request(options.adapter.as_deref()).await?;
    let gate = SeerDecodeGate::new(&gpu, params.decode())?;
    let block = gate.params().block;
    let Floats { dtype, shape: [batch, heads, keys, width], ref values } = tensors.k;
    // Keys in whole blocks.
    let rows = keys.next_multiple_of(block).max(block);
    let padded = |head: &[f32]| [head, &vec![0.0; (rows - keys) * width]].concat();
    let values = values.chunks((keys * width).max(1)).flat_map(padded).collect();
    let k = up(&gpu, &Floats { dtype, shape: [batch, heads, rows, width], values }).await?;
    let (q, wk) = (up(&gpu, &tensors.q).await?, up(&gpu, &tensors.wk).await?);
    let wq = up_some(&gpu, &tensors.wq).await?.expect("a gate for decoding has one");
    let [norm_q, norm_k] = [up_some(&gpu, &tensors.norms[0]).await?, up_some(&gpu, &tensors.norms[1]).await?];
    let weights = SeerDecodeWeights { wq: &wq, wk: &wk, norm_q: norm_q.as_ref(), norm_k: norm_k.as_ref() };
    let seqlens_k = decode_lengths(problem);
    let cache = Layout::heads_first(DType::F32, [batch, heads, rows / block, wk.shape()[3]]);
    let compressed = Tensor::empty(&gpu, cache).await?;
    gate.compress(&weights, &k, &compressed, &vec![0; batch], &seqlens_k).await?;
    let inputs = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: &seqlens_k, keys };
    let found = gate.forward_with_scores(&weights, &inputs).await?;
    let target = match params.target {
        true => {
            let tokens = [up(&gpu, &problem.q).await?, up(&gpu, &problem.k).await?, up(&gpu, &problem.v).await?];
            let (attention, lse) = dense(&gpu, params, problem, &tokens).await?;
            Some(gate.target(&weights, &flash(params), &attention, &lse).await?.read().await?)
        }
        false => None,
    };
    let all = [bits(found.mask.read().await?), found.logits.read().await?, found.scores.read().await?];
    Ok((found.logits.shape(), all, target))
}

fn decode_on_cpu(params: &Params, tensors: &Tensors, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    let gate = params.decode();
    let seqlens_k = decode_lengths(problem);
    let norm = |i: usize| tensors.norms[i].as_ref().map(|norm| &norm.values[..]);
    let gated = SeerDecodeProblem {
        q: &tensors.q.values,
        q_shape: tensors.q.shape,
        k: &tensors.k.values,
        k_shape: tensors.k.shape,
        wq: &tensors.wq.as_ref().expect("a gate for decoding has one").values,
        wk: &tensors.wk.values,
        norms: [norm(0), norm(1)],
        gate_dim: tensors.wk.shape[3],
        seqlens_k: &seqlens_k,
        past: false,
    };
    let found = reference::seer_decode_gate(&gate, &gated);
    let choice = reference::seer_decode_choice(&gate, &gated, &found.logits);
    let scores = reference::seer_gate_scores(&found.logits, found.shape[3]);
    let target = params.target.then(|| {
        let wanted = probabilities(params, problem, HeadGroups::OfKeyHead, [1, gate.block]);
        f32s(&reference::seer_decode_target(&gate, &SeerDecodeProblem { past: true, ..gated }, &wanted))
    });
    let chosen = choice.into_iter().map(|(chosen, _)| chosen).collect();
    Ok((found.shape, [bits(chosen), f32s(&found.logits), f32s(&scores)], target))
}
