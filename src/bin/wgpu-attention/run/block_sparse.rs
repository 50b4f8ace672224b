//! `run block-sparse`: its params, and the mask.

use super::Options;
use super::attention::{Blocks, Problem, params};
use super::file::{Inputs, error};
use super::sequences;
use serde::Deserialize;
use wgpu_attention::reference::ChosenBlocks;
use wgpu_attention::{BlockGrid, BlockSparseParams, Causal, FlashParams, Result};

/// Unset where null; blocks of 64 × 64.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    block: Option<[usize; 2]>,
    causal: bool,
    scale: Option<f32>,
    softcap: Option<f32>,
}

/// Tensors of a gate, which would choose other blocks.
const LATER: [&str; 4] = ["q_pre", "k_pre", "gate_wk", "gate_wq"];

pub fn problem(options: &Options, inputs: &Inputs) -> Result<Problem<BlockSparseParams>> {
    if let Some(name) = LATER.into_iter().find(|name| inputs.has(name)) {
        return Err(error(inputs.what(name), "in the file", "absent: this version of block-sparse has no gate"));
    }
    let Params { block, causal, scale, softcap } = params(options)?;
    let block = block.unwrap_or([64, 64]);
    let Some(mask) = inputs.mask("mask")? else {
        let bound = "in the file: [B or 1, H or 1, blocks of queries, blocks of keys]";
        return Err(error(inputs.what("mask"), "missing", bound));
    };
    let causal = causal.then_some(Causal::BottomRight);
    let params = BlockSparseParams { causal, scale, softcap, ..BlockSparseParams::default() };
    let known = FlashParams { causal, scale, softcap, ..FlashParams::default() };
    let cu_seqlens = sequences::offsets(inputs)?;
    let mut problem =
        Problem { seqlens: sequences::lengths(inputs)?, ..Problem::read(inputs, params, known, cu_seqlens.is_some())? };
    problem.cu_seqlens = cu_seqlens;
    let [_, _, queries, keys] = problem.pairs();
    let [batch, heads, rows, cols] = mask.shape;
    let grid = BlockGrid { batch, heads, queries, keys, block };
    grid.check()?;
    let [m, n] = grid.blocks();
    let bound = format!("[B or 1, H or 1, {m}, {n}], by q and k in blocks of {block:?}");
    if [rows, cols] != [m, n] {
        return Err(error("mask.shape", format!("{:?}", mask.shape), bound));
    }
    let chosen: Vec<bool> = mask.values.iter().map(|&x| x != 0.0).collect();
    let (of_reference, shape, group) = (chosen.clone(), mask.shape, problem.q.shape[1] / mask.shape[1].max(1));
    problem.sees = Box::new(move |at| ChosenBlocks { block, shape, chosen: &of_reference, group, heads: &[] }.sees(at));
    problem.blocks = Some(Blocks { grid, chosen });
    Ok(problem)
}
