//! `run flash`: its params, and the tensors that only it reads.

use super::attention::{Problem, params};
use super::causal::Diagonal;
use super::file::{Inputs, error};
use super::{Options, sequences};
use serde::Deserialize;
use wgpu_attention::{FlashParams, Result, Window};

/// The fields of `FlashParams` that are numbers or names; unset where null.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    causal: Option<Diagonal>,
    window: Option<[Option<usize>; 2]>,
    scale: Option<f32>,
    softcap: Option<f32>,
    max_seqlen_q: Option<usize>,
    max_seqlen_k: Option<usize>,
}

/// Tensors that would change the result, and that this version cannot take.
const LATER: [&str; 3] = ["sinks", "output_scale", "block_table"];

pub fn problem(options: &Options, inputs: &Inputs) -> Result<Problem<FlashParams>> {
    if let Some(name) = LATER.into_iter().find(|name| inputs.has(name)) {
        return Err(error(inputs.what(name), "in the file", "absent: this version of flash does not read it"));
    }
    let params: Params = params(options)?;
    let cu_seqlens = sequences::offsets(inputs)?;
    let sides = [("q", params.max_seqlen_q), ("k", params.max_seqlen_k)];
    for (i, (side, most)) in sides.into_iter().enumerate() {
        let longest = cu_seqlens.as_ref().map(|sides| sequences::longest(&sides[i]));
        if let (Some(most), Some(longest)) = (most, longest.filter(|&longest| most.is_some_and(|most| longest > most)))
        {
            let what = inputs.what(&format!("cu_seqlens_{side}: longest sequence"));
            return Err(error(what, longest, format!("at most max_seqlen_{side} = {most}")));
        }
        if let (Some(most), None) = (most, longest) {
            return Err(error(format!("max_seqlen_{side}"), most, "unset without packed sequences"));
        }
    }
    let packed = cu_seqlens.is_some();
    let [left, right] = params.window.unwrap_or_default();
    let params = FlashParams {
        causal: params.causal.and_then(Diagonal::causal),
        window: Window { left, right },
        scale: params.scale,
        softcap: params.softcap,
        alibi_slopes: inputs.vector("alibi_slopes")?,
        ..FlashParams::default()
    };
    let mut problem = Problem::read(inputs, params.clone(), params, packed)?;
    problem.tensors.extend(inputs.bias("bias")?.map(|bias| ("bias", bias)));
    problem.tensors.extend(inputs.mask("mask")?.map(|mask| ("mask", mask)));
    Ok(Problem { seqlens: sequences::lengths(inputs)?, cu_seqlens, ..problem })
}
