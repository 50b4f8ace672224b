//! What runs: decided without a GPU.

use super::chunking::{CHUNK, Chunking, RECURRENT_STRETCH, segment_tokens, stretch_tokens};
use super::parts::Part;
use super::task::{Frame, Gate};
use super::walk::{From, Walk};
use super::{LinearParams, LinearShapes, LinearWay};
use crate::error::require;
use crate::steps::Steps;
use crate::{AdapterKind, Caps, Error, Result};
use std::fmt;

/// Up to so many tokens are absorbed one by one: a chunk would be mostly empty.
const FEW: usize = 32;

/// What runs. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearPlan {
    pub(super) steps: Steps<Part>,
    way: LinearWay,
    words: String,
}

impl LinearPlan {
    /// Chooses the way and the slices.
    ///
    /// # Errors
    /// [`Error::Argument`] for params or shapes that do not fit together; [`Error::Limit`] for a device that has too little.
    pub fn new(caps: &Caps, params: &LinearParams, shapes: &LinearShapes) -> Result<Self> {
        shapes.check(params)?;
        let walk = shapes.walk(params);
        let chunking = Chunking::new(caps, params.chunk.unwrap_or(CHUNK), walk.frame.dims)?;
        let (way, why) = choose(caps, params, &walk, &chunking, (shapes.q.shape[2], shapes.cu_seqlens.is_some()))?;
        let mut places = shapes.places();
        let between = walk.between(caps, way, &chunking)?;
        for (part, layout) in &between {
            places.own(*part, layout.clone());
        }
        let steps = walk.steps(caps, &places, way, &chunking)?;
        let words = words(&walk, way, &chunking, &why);
        Ok(Self { steps: Steps { steps, between }, way, words })
    }

    /// How the tokens are gone through.
    pub fn way(&self) -> LinearWay {
        self.way
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        self.steps.wgsl()
    }
}

/// By what one batch entry is, never by what stands beside it: the number of entries does not count, so that bits do not depend on it.
fn choose(
    caps: &Caps,
    params: &LinearParams,
    walk: &Walk,
    chunking: &Chunking,
    (tokens, packed): (usize, bool),
) -> Result<(LinearWay, String)> {
    if walk.snapshots.is_some() {
        let fits = matches!(params.way, None | Some(LinearWay::Recurrent)) && params.chunk.is_none();
        let bound = "unset or recurrent, without a chunk: snapshots are taken token by token";
        require(fits, "way", format!("{:?}, chunk {:?}", params.way, params.chunk), bound)?;
        require(params.causal, "snapshots", "set", "unset where attention is not causal: all tokens read one state")?;
        return Ok((LinearWay::Recurrent, "snapshots are wanted".into()));
    }
    let stretch = stretch_tokens(chunking.chunk);
    if let Some(way) = params.way {
        let most = match way {
            LinearWay::Recurrent => RECURRENT_STRETCH,
            LinearWay::OnePass => stretch,
            LinearWay::ThreePass => usize::MAX,
        };
        let bound = format!("unset or three passes for more than {most} tokens where not causal");
        require(params.causal || tokens <= most, "way", format!("{way:?}"), bound)?;
        return match (way, params.chunk) {
            (LinearWay::Recurrent, Some(chunk)) => {
                Err(Error::argument("chunk", chunk, "unset where the way is recurrent"))
            }
            _ => Ok((way, "as asked for".into())),
        };
    }
    if !params.causal && tokens > stretch {
        return Ok((LinearWay::ThreePass, "all tokens read one state".into()));
    }
    let one_by_one = params.chunk.is_none() && (params.causal || tokens <= RECURRENT_STRETCH);
    if one_by_one && caps.kind == AdapterKind::Software {
        return Ok((LinearWay::Recurrent, "on a processor the least arithmetic wins".into()));
    }
    if one_by_one && tokens <= FEW && !packed {
        return Ok((LinearWay::Recurrent, format!("{tokens} tokens of {FEW} or fewer")));
    }
    let workgroups = walk.frame.heads * walk.frame.dims.1.div_ceil(chunking.cols);
    let wanted = caps.concurrency();
    let found = format!("{workgroups} workgroups an entry, of {wanted} that keep this device busy");
    if workgroups >= wanted {
        return Ok((LinearWay::OnePass, found));
    }
    if tokens <= walk.segment && !packed {
        return Ok((LinearWay::OnePass, format!("{tokens} tokens are one segment")));
    }
    Ok((LinearWay::ThreePass, format!("one pass has {found}")))
}

fn words(walk: &Walk, way: LinearWay, chunking: &Chunking, why: &str) -> String {
    let Chunking { chunk, cols, threads, .. } = *chunking;
    let state = format!("{threads} threads keep {} × {cols} of a head's state in registers", walk.frame.dims.0);
    let how = match way {
        LinearWay::Recurrent => "token by token".into(),
        LinearWay::OnePass => format!("one pass over chunks of {chunk} tokens, {state}"),
        LinearWay::ThreePass => {
            let tokens = walk.segment;
            let segments = walk.frame.segments(tokens);
            format!(
                "three passes (states, scan, outputs) over {segments} segments of {tokens} tokens in chunks of {chunk}, {state}"
            )
        }
    };
    format!("linear attention, {how}; {why}")
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words)
    }
}

impl LinearParams {
    /// The gate of a walk; `by_token` if the inputs have one for each token.
    pub(super) fn gate(&self, by_token: bool) -> Gate {
        match (&self.slopes, by_token) {
            (_, true) => Gate::ByToken,
            (Some(slopes), false) => Gate::ByHead(slopes.clone()),
            (None, false) => Gate::None,
        }
    }
}

impl LinearShapes {
    fn walk(&self, params: &LinearParams) -> Walk {
        let from = match (self.in_place, &self.h0) {
            (true, _) => From::InPlace,
            (false, Some(_)) => From::H0(Part::H0),
            (false, None) => From::Nothing,
        };
        Walk {
            q: Part::Q,
            k: Part::K,
            v: Part::V,
            o: Part::O,
            from,
            to: self.ht.is_some().then_some(Part::Ht),
            snapshots: self.snapshots.is_some().then_some(Part::Snapshots),
            states: Part::States,
            kept: false,
            causal: params.causal,
            segment: segment_tokens(params.chunk.unwrap_or(CHUNK)),
            frame: self.frame(params),
        }
    }

    /// Of the forward walk.
    pub(super) fn frame(&self, params: &LinearParams) -> Frame {
        let head_dim = self.q.shape[3];
        Frame {
            gate: params.gate(self.g.is_some()),
            heads: self.heads(),
            dims: (head_dim, self.v.shape[3]),
            sequences: self.sequences(),
            reverse: params.reverse,
            late: false,
            scale: params.scale_for(head_dim),
            gain: 1.0,
        }
    }
}
