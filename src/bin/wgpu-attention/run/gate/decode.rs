//! The gate for decoding.

use super::{Dense, Found, Params, bits, f32s, flash, inputs, probabilities, read};
use crate::run::attention::{Problem, request};
use crate::run::call::{Named, Uploaded};
use crate::run::file::{Floats, Inputs, error};
use crate::run::{Backend, Options};
use wgpu_attention::gate::{SeerDecodeGate, SeerDecodeInputs, SeerDecodeWeights};
use wgpu_attention::reference::{self, SeerDecodeProblem};
use wgpu_attention::score_reduction::HeadGroups;
use wgpu_attention::{BlockSparseParams, DType, Layout, Result, Seqlens, Tensor};

/// Every query chooses, for the heads that share a key head.
pub fn run(
    options: &Options,
    file: &Inputs,
    params: &Params,
    tensors: &Named,
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
        return Err(error("block[0]", rows, format!("1 with {what}: every query chooses its blocks")));
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
fn check_weights(params: &Params, tensors: &Named) -> Result<()> {
    let gate = params.decode();
    gate.check()?;
    let ([_, heads_q, _, head_dim], heads_kv) = (tensors["q"].shape, tensors["k"].shape[1]);
    let gate_dim = tensors["wk"].shape[3];
    let norm = [1, 1, 1, gate_dim];
    for (name, in_file, shape) in [
        ("wq", "gate_wq", [1, heads_kv, heads_q / heads_kv * head_dim, gate_dim]),
        ("wk", "gate_wk", [1, heads_kv, gate.pool_k.len() * head_dim, gate_dim]),
        ("norm_q", "gate_qnorm", norm),
        ("norm_k", "gate_knorm", norm),
    ] {
        let found = tensors.get(name).map_or(shape, |floats| floats.shape);
        if found != shape {
            let bound = format!("{shape:?}, to match q_pre and k_pre");
            return Err(error(format!("{in_file}.shape"), format!("{found:?}"), bound));
        }
    }
    Ok(())
}

fn lengths(problem: &Problem<BlockSparseParams>) -> Vec<usize> {
    let [batch, _, keys, _] = problem.tensors["k"].shape;
    problem.seqlens[1].clone().unwrap_or_else(|| vec![keys; batch])
}

async fn on_gpu(
    options: &Options,
    params: &Params,
    tensors: &Named,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    let gpu = request(options.adapter.as_deref()).await?;
    let gate = SeerDecodeGate::new(&gpu, params.decode())?;
    let block = gate.params().block;
    let Floats { dtype, shape: [batch, heads, keys, width], ref values } = tensors["k"];
    // Keys in whole blocks.
    let rows = keys.next_multiple_of(block).max(block);
    let padded = |head: &[f32]| [head, &vec![0.0; (rows - keys) * width]].concat();
    let values = values.chunks((keys * width).max(1)).flat_map(padded).collect();
    let mut tensors = tensors.clone();
    tensors.insert("k", Floats { dtype, shape: [batch, heads, rows, width], values });
    let uploaded = Uploaded::new(&gpu, &tensors).await?.tensors;
    let [q, k, wq, wk] = ["q", "k", "wq", "wk"].map(|name| &uploaded[name]);
    let weights = SeerDecodeWeights { wq, wk, norm_q: uploaded.get("norm_q"), norm_k: uploaded.get("norm_k") };
    let seqlens_k = lengths(problem);
    let cache = Layout::heads_first(DType::F32, [batch, heads, rows / block, wk.shape()[3]]);
    let compressed = Tensor::empty(&gpu, cache).await?;
    gate.compress(&weights, k, &compressed, &vec![0; batch], &seqlens_k).await?;
    let step = SeerDecodeInputs { q, compressed: &compressed, seqlens_k: Seqlens::Host(&seqlens_k), keys };
    let found = gate.forward_with_scores(&weights, &step).await?;
    let target = if params.target {
        let Dense { tokens, lse } = &Dense::new(&gpu, params, problem).await?;
        Some(gate.target(&weights, &flash(params), &inputs(problem, tokens), lse).await?)
    } else {
        None
    };
    read(found, target).await
}

fn on_cpu(params: &Params, tensors: &Named, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    let gate = params.decode();
    let seqlens_k = lengths(problem);
    let norm = |name: &str| tensors.get(name).map(|norm| &norm.values[..]);
    let gated = SeerDecodeProblem {
        q: &tensors["q"].values,
        q_shape: tensors["q"].shape,
        k: &tensors["k"].values,
        k_shape: tensors["k"].shape,
        wq: &tensors["wq"].values,
        wk: &tensors["wk"].values,
        norms: [norm("norm_q"), norm("norm_k")],
        gate_dim: tensors["wk"].shape[3],
        seqlens_k: &seqlens_k,
        past: false,
    };
    let found = reference::seer_decode_gate(&gate, &gated);
    let choice = reference::seer_decode_choice(&gate, &gated, &found.logits);
    let scores = reference::seer_gate_scores(&found.logits, found.shape[3]);
    let target = params.target.then(|| {
        let wanted = probabilities(params, problem, HeadGroups::PerKvHead, [1, gate.block]);
        f32s(&reference::seer_decode_target(&gate, &SeerDecodeProblem { past: true, ..gated }, &wanted))
    });
    let chosen = choice.into_iter().map(|(chosen, _)| chosen).collect();
    Ok((found.shape, [bits(chosen), f32s(&found.logits), f32s(&scores)], target))
}
