//! What runs: decided without a GPU.

use super::checks::check_output;
use super::chunking::{CHUNK, Chunking, How, segment_tokens, stretch_tokens};
use super::ends::StateSource;
use super::names::SUMS;
use super::normalizer::Normalizer;
use super::recurrent::{FEW, STRETCH};
use super::shapes::{INPUTS, LinearShapes, NUMBERS};
use super::walk::Walk;
use super::{LinearAlgorithm, LinearParams, LinearRule};
use crate::error::require;
use crate::program::{Builder, Program};
use crate::{AdapterKind, Caps, Layout, Result, Shapes};

impl LinearParams {
    /// The program that runs. Its tensors are named like the fields of [`crate::LinearInputs`] and [`crate::LinearMomentum`]: q, k, v and, where
    /// present, g, beta, alpha, eta, theta, h0, z0 and s0; `o` [batch, heads, tokens, value_dim], of any type; where present or wanted, `ht`, the last state, [batch or sequences,
    /// heads, head_dim, value_dim], and `snapshots`, the state after every token, [batch or sequences, heads, tokens · head_dim,
    /// value_dim]: rows [n · head_dim, (n + 1) · head_dim) after token n in the order of processing. `state` replaces `h0` and `ht`: a state
    /// that is updated in place. States are f32 if they are allocated here; those of the caller's may be f16 or bf16, and are rounded once a
    /// call. With a normaliser `zt` or `z` is the same of its sums of keys, f32 [batch or sequences, heads, head_dim, 1]; with momentum `st` or
    /// `s` is the same of that, as large as the state.
    /// With a [`FeatureMap`](super::FeatureMap), head_dim of a state is the number of features. Its numbers: seqlens or cu_seqlens.
    /// Either may be a tensor instead, u32 [1, 1, 1, batch] or [1, 1, 1, sequences + 1], beside which cu_seqlens may have the number
    /// max_seqlen, the longest sequence that there may be.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for params or shapes that do not fit together; [`Error::Limit`](crate::Error::Limit) if the work needs more than the device offers.
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes
            .check_names(&[&INPUTS[..], &["o", "ht", "zt", "st", "state", "z", "s", "snapshots"]].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let inputs = LinearShapes::new(&mut builder, self, shapes, false)?;
        let o = builder.output("o", Layout::heads_first(inputs.v.layout.dtype, inputs.output_shape()))?;
        let (ht, state) = (builder.output_if("ht", || inputs.state())?, builder.tensor("state"));
        let (zt, z) = (builder.output_if("zt", || inputs.key_sums())?, builder.tensor("z"));
        let snapshots = builder.output_if("snapshots", || inputs.snapshots())?;
        check_output("o", Some(&o), inputs.output_shape(), false)?;
        check_output("ht", ht.as_ref(), inputs.state().shape, false)?;
        check_output("state", state.as_ref(), inputs.state().shape, false)?;
        check_output("snapshots", snapshots.as_ref(), inputs.snapshots().shape, false)?;
        check_output("zt", zt.as_ref(), inputs.key_sums().shape, true)?;
        check_output("z", z.as_ref(), inputs.key_sums().shape, true)?;
        let normalized = self.normalize.is_some();
        for (name, is_there) in [("zt", zt.is_some()), ("z", z.is_some())] {
            require(normalized || !is_there, name, "set", "unset without a normaliser")?;
        }
        if normalized {
            require(snapshots.is_none(), "snapshots", "set", "unset with a normaliser")?;
            let bound = "set with a normaliser where ht is: the state has both parts";
            require(ht.is_none() || zt.is_some(), "zt", "unset", bound)?;
            let both = state.is_some() == z.is_some();
            require(
                both,
                "z",
                z.map_or("unset", |_| "set"),
                "set where the state is updated in place, and only there",
            )?;
        }
        if state.is_some() {
            require(inputs.z0.is_none(), "z0", "set", "unset where the state is updated in place")?;
            require(zt.is_none(), "zt", "set", "unset where the state is updated in place")?;
            require(inputs.h0.is_none(), "h0", "set", "unset where the state is updated in place")?;
            require(ht.is_none(), "ht", "set", "unset where the state is updated in place")?;
        }
        let momentum = inputs.momentum.is_some();
        for name in ["st", "s"] {
            require(momentum || !shapes.wants(name), name, "set", "unset, except for the rule momentum")?;
        }
        if momentum {
            require(snapshots.is_none(), "snapshots", "set", "unset with the rule momentum")?;
            return self.plan_momentum(builder, &inputs);
        }
        let delta = self.rule == LinearRule::Delta;
        let walk = Walk {
            adds: (!delta).then_some([inputs.names.k, inputs.names.v]),
            reads: Some([inputs.names.q, inputs.names.o]),
            after: delta.then(|| inputs.delta(None)),
            from: match &state {
                Some(_) if !normalized => StateSource::InPlace,
                Some(_) => StateSource::H0(inputs.names.h0),
                None => inputs.from(),
            },
            to: match (&state, &ht, &zt) {
                (None, None, None) => None,
                (Some(_), ..) if !normalized => Some("state"),
                _ => Some(inputs.names.ht),
            },
            snapshots: snapshots.map(|_| "snapshots"),
            causal: self.causal,
            segment: segment_tokens(self.chunk.unwrap_or(CHUNK)),
            reports: inputs.g.is_some() || inputs.beta.is_some(),
            ..Walk::over(inputs.frame(self), "states")
        };
        let chunking = Chunking::new(caps, self.chunk.unwrap_or(CHUNK), walk.frame.dims)?;
        let packed = inputs.are_packed();
        let (algorithm, why) = self.choose(caps, &walk, &chunking, packed)?;
        let how = How { algorithm, chunking, packed };
        self.add_features(&mut builder, &inputs, &walk.frame)?;
        let around = Normalizer { params: self, inputs: &inputs, frame: &walk.frame };
        let in_place = state.is_some();
        if normalized {
            let comes = if in_place { Some(["state", "z"]) } else { inputs.has_state().then_some(["h0", "z0"]) };
            around.before(&mut builder, comes)?;
            builder.scratch(SUMS, around.output())?;
            walk.to.map(|to| builder.scratch(to, around.joint().states())).transpose()?;
        }
        walk.add_whole(&mut builder, how)?;
        if normalized {
            around.divide(&mut builder)?;
            let to = if in_place { ["state", "z"] } else { ["ht", "zt"] };
            walk.to.map(|from| around.joint().split(&mut builder, from, to)).transpose()?;
        }
        let one_by_one = walk.one_by_one(caps, packed).name();
        builder.finish(words(&walk, how, one_by_one, &why))
    }

    /// By what one batch entry is, never by what stands beside it: the number of entries does not count, so that bits do not depend on
    /// it.
    pub(super) fn choose(
        &self,
        caps: &Caps,
        walk: &Walk,
        chunking: &Chunking,
        packed: bool,
    ) -> Result<(LinearAlgorithm, String)> {
        let tokens = walk.frame.tokens;
        if walk.snapshots.is_some() {
            let fits = matches!(self.algorithm, None | Some(LinearAlgorithm::Recurrent)) && self.chunk.is_none();
            let bound = "unset or recurrent, without a chunk: snapshots are taken token by token";
            require(fits, "algorithm", format!("{:?}, chunk {:?}", self.algorithm, self.chunk), bound)?;
            require(self.causal, "snapshots", "set", "unset where attention is not causal: all tokens read one state")?;
            return Ok((LinearAlgorithm::Recurrent, "snapshots are wanted".into()));
        }
        let stretch = stretch_tokens(chunking.chunk);
        if let Some(algorithm) = self.algorithm {
            let most = match algorithm {
                LinearAlgorithm::Recurrent => STRETCH,
                LinearAlgorithm::OnePass => stretch,
                LinearAlgorithm::ThreePass => usize::MAX,
            };
            let bound = format!("unset or three passes for more than {most} tokens where attention is not causal");
            require(self.causal || tokens <= most, "algorithm", format!("{algorithm:?}"), bound)?;
            return Ok((algorithm, "as asked for".into()));
        }
        if !self.causal && tokens > stretch {
            return Ok((LinearAlgorithm::ThreePass, "all tokens read one state".into()));
        }
        let one_by_one = self.chunk.is_none() && (self.causal || tokens <= STRETCH);
        if one_by_one && caps.kind == AdapterKind::Software {
            return Ok((LinearAlgorithm::Recurrent, "on a processor the least arithmetic wins".into()));
        }
        if one_by_one && tokens <= FEW && !packed {
            return Ok((LinearAlgorithm::Recurrent, format!("{tokens} tokens of {FEW} or fewer")));
        }
        if let Some(what) = walk.too_much_ahead(caps, chunking.chunk, packed).filter(|_| self.chunk.is_none()) {
            return Ok((LinearAlgorithm::Recurrent, what));
        }
        let workgroups = walk.frame.heads * walk.frame.dims.1.div_ceil(chunking.cols);
        let wanted = caps.concurrency();
        let found = format!("{workgroups} workgroups an entry, of {wanted} that keep this device busy");
        if workgroups >= wanted {
            return Ok((LinearAlgorithm::OnePass, found));
        }
        if tokens <= walk.segment && !packed {
            return Ok((LinearAlgorithm::OnePass, format!("{tokens} tokens are one segment")));
        }
        Ok((LinearAlgorithm::ThreePass, format!("one pass has {found}")))
    }
}

pub(super) fn words(walk: &Walk, How { algorithm, chunking, .. }: How, one_by_one: &str, why: &str) -> String {
    let Chunking { chunk, cols, threads, .. } = chunking;
    let state = format!("{threads} threads keep {} × {cols} of a head's state in registers", walk.frame.dims.0);
    let tokens = walk.segment;
    let segments = format!("{} segments of {tokens} tokens", walk.frame.segments(tokens));
    let reads = walk.reads.is_some();
    let how = match (algorithm, walk.after.is_some()) {
        (LinearAlgorithm::Recurrent, _) => one_by_one.into(),
        (_, true) if !reads => format!("inverses of chunks of {chunk} tokens, then corrections in one pass, {state}"),
        (LinearAlgorithm::ThreePass, _) if !reads => {
            format!("two passes (states, scan) over {segments} in chunks of {chunk}, {state}")
        }
        (LinearAlgorithm::OnePass, false) => format!("one pass over chunks of {chunk} tokens, {state}"),
        (LinearAlgorithm::OnePass, true) => {
            format!("inverses of chunks of {chunk} tokens, then corrections and outputs in one pass each, {state}")
        }
        (LinearAlgorithm::ThreePass, false) => {
            format!("three passes (states, scan, outputs) over {segments} in chunks of {chunk}, {state}")
        }
        (LinearAlgorithm::ThreePass, true) => {
            format!(
                "three passes (inverses, corrections, outputs of {segments}) over chunks of {chunk} tokens, {state}"
            )
        }
    };
    format!("linear attention, {how}; {why}")
}
