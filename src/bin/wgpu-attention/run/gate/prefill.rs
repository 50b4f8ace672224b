//! The gate for prompts.

use super::{Dense, Found, Params, Tensors, bits, f32s, flash, inputs, probabilities, read, side, up_some};
use crate::run::attention::{Problem, request, up};
use crate::run::file::Floats;
use crate::run::{Backend, Options};
use wgpu_attention::reference::{self, SeerGateProblem};
use wgpu_attention::{
    BlockSparseParams, Caps, HeadGroups, Layout, Result, SeerGate, SeerGateInputs, SeerGatePlan, SeerGateShapes,
};

/// Blocks of queries choose, head by head.
pub fn run(
    options: &Options,
    params: &Params,
    tensors: &Tensors,
    problem: &Problem<BlockSparseParams>,
) -> Result<Found> {
    match options.backend {
        Backend::Gpu => pollster::block_on(on_gpu(options, params, tensors, problem)),
        Backend::Reference => on_cpu(params, tensors, problem),
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
    let gated = SeerGateInputs {
        wq: wq.as_ref(),
        seqlens_q: problem.seqlens[0].as_deref(),
        seqlens_k: problem.seqlens[1].as_deref(),
        cu_seqlens_q: side(problem, 0),
        cu_seqlens_k: side(problem, 1),
        ..SeerGateInputs::new(&q, &k, &wk)
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
