//! The gate for prompts.

use super::{Dense, Found, Params, bits, f32s, flash, inputs, probabilities, read, side};
use crate::run::attention::{Problem, request};
use crate::run::call::{Named, Uploaded};
use crate::run::{Backend, Options};
use wgpu_attention::gate::{SeerGate, SeerGateInputs};
use wgpu_attention::plan::{Caps, Shapes};
use wgpu_attention::reference::{self, SeerGateProblem};
use wgpu_attention::score_reduction::HeadGroups;
use wgpu_attention::{BlockSparseParams, Result, Seqlens};

/// Blocks of queries choose, head by head.
pub fn run(options: &Options, params: &Params, tensors: &Named, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    match options.backend {
        Backend::Gpu => pollster::block_on(on_gpu(options, params, tensors, problem)),
        Backend::Reference => on_cpu(params, tensors, problem),
    }
}

async fn on_gpu(
    options: &Options,
    params: &Params,
    tensors: &Named,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    let gpu = request(options.adapter.as_deref()).await?;
    let gate = SeerGate::new(&gpu, params.prefill())?;
    let uploaded = Uploaded::new(&gpu, tensors).await?.tensors;
    let gated = SeerGateInputs {
        wq: uploaded.get("wq"),
        seqlens_q: problem.seqlens[0].as_deref().map(Seqlens::Host),
        seqlens_k: problem.seqlens[1].as_deref().map(Seqlens::Host),
        cu_seqlens_q: side(problem, 0),
        cu_seqlens_k: side(problem, 1),
        ..SeerGateInputs::new(&uploaded["q"], &uploaded["k"], &uploaded["wk"])
    };
    let found = gate.forward_with_scores(&gated).await?;
    let target = if params.target {
        let Dense { tokens, lse } = &Dense::new(&gpu, params, problem).await?;
        Some(gate.target(&gated, &flash(params), &inputs(problem, tokens), lse).await?)
    } else {
        None
    };
    read(found, target).await
}

fn on_cpu(params: &Params, tensors: &Named, problem: &Problem<BlockSparseParams>) -> Result<Found> {
    let gate = params.prefill();
    // The reference takes what fits together; what does not is told by planning.
    let layouts = ["q", "k", "wq", "wk"].into_iter().filter_map(|name| Some((name, tensors.get(name)?.layout())));
    gate.plan(&Caps::unlimited(), &problem.with_lengths(Shapes::new(layouts)))?;
    let length = |i: usize, b: usize, all: usize| problem.seqlens[i].as_ref().map_or(all, |lengths| lengths[b]);
    let [batch, _, queries, keys] = problem.pairs();
    let sequences: Vec<[usize; 5]> = match &problem.cu_seqlens {
        None => (0..batch).map(|b| [b, 0, length(0, b, queries), 0, length(1, b, keys)]).collect(),
        Some([q, k]) => {
            let pairs = q.windows(2).zip(k.windows(2));
            pairs.map(|(q, k)| [0, q[0], q[1] - q[0], k[0], k[1] - k[0]]).collect()
        }
    };
    let gated = SeerGateProblem {
        q: &tensors["q"].values,
        q_shape: tensors["q"].shape,
        k: &tensors["k"].values,
        k_shape: tensors["k"].shape,
        wq: tensors.get("wq").map(|wq| &wq.values[..]),
        wk: &tensors["wk"].values,
        wk_heads: tensors["wk"].shape[1],
        gate_dim: tensors["wk"].shape[3],
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
