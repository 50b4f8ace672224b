//! The gate for decoding.

use super::{Dense, Found, Params, Tensors, bits, f32s, flash, inputs, probabilities, read, up_some};
use crate::run::attention::{Problem, request, up};
use crate::run::file::{Floats, Inputs, error};
use crate::run::{Backend, Options};
use wgpu_attention::reference::{self, SeerDecodeProblem};
use wgpu_attention::{
    BlockSparseParams, DType, HeadGroups, Layout, Result, SeerDecodeGate, SeerDecodeInputs, SeerDecodeWeights, Tensor,
};

/// Every query chooses, for the heads that share a key head.
pub fn run(
    options: &Options,
    file: &Inputs,
    params: &Params,
    tensors: &Tensors,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    check_problem(file, params, problem)?;
    check_weights(params, tensors)?;
    match options.backend {
        Backend::Gpu => pollster::block_on(on_gpu(options, params, tensors, problem)),
        Backend::Reference => on_cpu(params, tensors, problem),
    }
}

/// What a gate for decoding does not go with.
fn check_problem(file: &Inputs, params: &Params, problem: &Problem<BlockSparseParams>) -> Result<()> {
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
        Some((name, _)) => Err(error(file.what(name), "set", format!("unset with {what}"))),
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

fn lengths(problem: &Problem<BlockSparseParams>) -> Vec<usize> {
    problem.seqlens[1].clone().unwrap_or_else(|| vec![problem.k.shape[2]; problem.k.shape[0]])
}

async fn on_gpu(
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
    let seqlens_k = lengths(problem);
    let cache = Layout::heads_first(DType::F32, [batch, heads, rows / block, wk.shape()[3]]);
    let compressed = Tensor::empty(&gpu, cache).await?;
    gate.compress(&weights, &k, &compressed, &vec![0; batch], &seqlens_k).await?;
    let step = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: &seqlens_k, keys };
    let found = gate.forward_with_scores(&weights, &step).await?;
    let target = if params.target {
        let Dense { tokens, lse } = &Dense::new(&gpu, params, problem).await?;
        Some(gate.target(&weights, &flash(params), &inputs(problem, tokens), lse).await?)
    } else {
        None
    };
    read(found, target).await
}

fn on_cpu(params: &Params, tensors: &Tensors, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    let gate = params.decode();
    let seqlens_k = lengths(problem);
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
