//! `run block-sparse`: its params, and the mask, the gate that chooses one, or lists of tokens.

use super::attention::{Blocks, Problem, params};
use super::causal::Diagonal;
use super::file::{Floats, Inputs, Output, error};
use super::gate::{self, Gated, Params};
use super::{Options, sequences, token_lists};
use wgpu_attention::reference::ChosenBlocks;
use wgpu_attention::{BlockGrid, BlockSparseParams, FlashParams, Result};

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    if inputs.has("tokens") {
        return token_lists::run(options, inputs);
    }
    let params: Params = params(options)?;
    let mut problem = without_mask(inputs, &params)?;
    let gated = gate::run(options, inputs, &params, &problem)?;
    let Gated { block, mask, outputs } = match gated {
        Some(gated) => gated,
        None => {
            let what = ": [B or 1, H or 1, blocks of queries, blocks of keys]; or a gate's q_pre, k_pre, gate_wk";
            let mask = inputs.mask("mask")?.ok_or_else(|| inputs.missing("mask", what))?;
            Gated { block: params.block.unwrap_or([64, 64]), mask, outputs: vec![] }
        }
    };
    choose(&mut problem, block, mask)?;
    Ok(problem.run(options, inputs)?.into_iter().chain(outputs).collect())
}

fn without_mask(inputs: &Inputs, params: &Params) -> Result<Problem<BlockSparseParams>> {
    let &Params { causal, scale, softcap, .. } = params;
    let causal = causal.and_then(Diagonal::causal);
    let params = BlockSparseParams { causal, scale, softcap, ..BlockSparseParams::default() };
    let known = FlashParams { causal, scale, softcap, ..FlashParams::default() };
    let cu_seqlens = sequences::offsets(inputs)?;
    let read = Problem::read(inputs, params, known, cu_seqlens.is_some())?;
    Ok(Problem { seqlens: sequences::lengths(inputs)?, cu_seqlens, ..read })
}

/// Gives the problem a mask of this size of blocks.
fn choose(problem: &mut Problem<BlockSparseParams>, block: [usize; 2], mask: Floats) -> Result<()> {
    let [_, _, queries, keys] = problem.pairs();
    let [batch, heads, rows, cols] = mask.shape;
    let grid = BlockGrid { batch, heads, queries, keys, block };
    grid.check()?;
    let [m, n] = grid.blocks();
    let bound = format!("[B or 1, H, key heads or 1, {m}, {n}], to match q and k in blocks of {block:?}");
    if [rows, cols] != [m, n] {
        return Err(error("mask.shape", format!("{:?}", mask.shape), bound));
    }
    let chosen: Vec<bool> = mask.values.iter().map(|&x| x != 0.0).collect();
    let (of_reference, shape, group) = (chosen.clone(), mask.shape, problem.tensors["q"].shape[1] / heads.max(1));
    problem.sees = Box::new(move |at| ChosenBlocks { block, shape, chosen: &of_reference, group, heads: &[] }.sees(at));
    problem.blocks = Some(Blocks { grid, chosen });
    Ok(())
}
