//! `run block-sparse` with `tokens`: attention over lists of tokens.

use super::attention::{Lists, Problem, params};
use super::causal::Diagonal;
use super::file::{Inputs, Output, error};
use super::{Options, sequences};
use serde::Deserialize;
use wgpu_attention::reference::{ChosenBlocks, listed_tokens};
use wgpu_attention::token_lists::TokenListParams;
use wgpu_attention::{FlashParams, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// Queries to a list.
    block: usize,
    causal: Option<Diagonal>,
    scale: Option<f32>,
    softcap: Option<f32>,
}

impl Default for Params {
    fn default() -> Self {
        Self { block: 1, causal: None, scale: None, softcap: None }
    }
}

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    let Params { block, causal, scale, softcap } = params(options)?;
    let causal = causal.and_then(Diagonal::causal);
    let params = TokenListParams { causal, scale, softcap, ..TokenListParams::default() };
    let known = FlashParams { causal, scale, softcap, ..FlashParams::default() };
    let cu_seqlens = sequences::offsets(inputs)?;
    let mut problem = Problem::read(inputs, params, known, cu_seqlens.is_some())?;
    problem.tensors.extend(inputs.bias("bias")?.map(|bias| ("bias", bias)));
    problem.tensors.extend(inputs.mask("mask")?.map(|mask| ("mask", mask)));
    problem.seqlens = sequences::lengths(inputs)?;
    problem.cu_seqlens = cu_seqlens;
    let (tokens, shape) = inputs.lists("tokens")?;
    let lists = Lists { tokens, shape, block };
    let keys = problem.tensors["k"].shape[2];
    lists.check(keys)?;
    let [batch, heads, rows, capacity] = shape;
    let chosen = listed_tokens(&lists.tokens, capacity, keys);
    problem.lists = Some(lists);
    let group = problem.tensors["q"].shape[1] / heads.max(1);
    problem.sees = Box::new(move |at| {
        let shape = [batch, heads, rows, keys];
        capacity > 0 && ChosenBlocks { block: [block, 1], shape, chosen: &chosen, group, heads: &[] }.sees(at)
    });
    problem.run(options, inputs)
}

impl Lists {
    /// Every list ascends, below the number of keys.
    fn check(&self, keys: usize) -> Result<()> {
        let [_, heads, rows, capacity] = self.shape;
        for (n, list) in self.tokens.chunks(capacity.max(1)).enumerate() {
            let mut before = None;
            for (i, &token) in list.iter().enumerate().take_while(|(_, token)| **token != u32::MAX) {
                let what = || format!("tokens[{}][{}][{}][{i}]", n / rows / heads, n / rows % heads, n % rows);
                if token as usize >= keys {
                    let bound = format!("below {keys}, the number of keys, or {} behind the last", u32::MAX);
                    return Err(error(what(), token, bound));
                }
                if before.is_some_and(|before| token <= before) {
                    return Err(error(what(), token, "above the token before it: a list ascends"));
                }
                before = Some(token);
            }
        }
        Ok(())
    }
}
