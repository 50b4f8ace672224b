//! `run neighborhood`: its params.

use super::Options;
use super::attention::{Problem, params};
use super::causal::Axes;
use super::file::{Inputs, error};
use serde::Deserialize;
use wgpu_attention::reference::{At, Neighborhoods};
use wgpu_attention::{FlashParams, NeighborhoodAxis, NeighborhoodParams, Result};

/// One entry an axis; stride and dilation 1 and not causal where they are not given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    space: Vec<usize>,
    window: Vec<usize>,
    stride: Option<Vec<usize>>,
    dilation: Option<Vec<usize>>,
    causal: Option<Axes>,
    scale: Option<f32>,
}

pub fn problem(options: &Options, inputs: &Inputs) -> Result<Problem<NeighborhoodParams>> {
    let Params { space, window, stride, dilation, causal, scale } = params(options)?;
    let count = space.len();
    let lengths = [
        Some(window.len()),
        stride.as_ref().map(Vec::len),
        dilation.as_ref().map(Vec::len),
        causal.as_ref().and_then(Axes::len),
    ];
    for (name, length) in ["window", "stride", "dilation", "causal"].into_iter().zip(lengths) {
        if length.is_some_and(|length| length != count) {
            let length = length.unwrap_or_default();
            return Err(error(format!("{name}.len()"), length, format!("{count}, one per axis of space")));
        }
    }
    let axis = |i: usize| NeighborhoodAxis {
        stride: stride.as_ref().map_or(1, |stride| stride[i]),
        dilation: dilation.as_ref().map_or(1, |dilation| dilation[i]),
        causal: causal.as_ref().is_some_and(|causal| causal.is_causal(i)),
        ..NeighborhoodAxis::new(space[i], window[i])
    };
    let axes: Vec<_> = (0..count).map(axis).collect();
    let params = NeighborhoodParams { axes, scale, ..NeighborhoodParams::default() };
    params.check()?;
    let known = FlashParams { scale, ..FlashParams::default() };
    let spaces = Neighborhoods::new(&params.axes);
    let sees = Box::new(move |at: At| spaces.sees(at.query, at.key));
    Ok(Problem { sees, ..Problem::read(inputs, params, known, false)? })
}
