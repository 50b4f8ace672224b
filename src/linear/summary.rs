//! What a span of tokens does to the state: S_out = M · S_in + ΔS.
//!
//! Both come of one walk without queries, whose state has more columns: ΔS from an empty state, M from the identity, which values leave
//! alone. Where no row of a state changes another, M is diagonal, and one column of ones has it.

use super::checks::{check_output, check_tensor};
use super::chunking::{CHUNK, Chunking, How, segment_tokens};
use super::joint::Joint;
use super::plan::words;
use super::shapes::{INPUTS, LinearShapes, NUMBERS};
use super::walk::Walk;
use super::{LinearParams, LinearRule};
use crate::error::require;
use crate::program::{Builder, Program};
use crate::{Caps, DType, Layout, Result, Shapes};

impl LinearParams {
    /// The program that computes what tokens do to a state, S_out = M · S_in + ΔS. It reads the inputs of [`LinearParams::plan`] but for h0 and
    /// z0; of q only the shape counts. It writes `added`, ΔS, f32 [batch or sequences, heads, head_dim, value_dim], and `transition`, M, f32
    /// [.., head_dim, head_dim] with the delta rule, else the diagonal of it, [.., head_dim, 1].
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`]; [`Error::Argument`](crate::Error::Argument) for h0, attention that is not causal, or a normaliser:
    /// give values another column, of ones, for its sum of keys.
    pub fn plan_summary(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&[&INPUTS[..], &["added", "transition"]].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let inputs = self.summarized(&mut builder, shapes)?;
        for (name, layout) in ["added", "transition"].into_iter().zip(self.summary(&inputs)) {
            let shape = layout.shape;
            check_output(name, Some(&builder.output(name, layout)?), shape, true)?;
        }
        let delta = self.rule == LinearRule::Delta;
        let (names, frame) = (inputs.names, inputs.frame(self));
        let walk = Walk {
            adds: (!delta).then_some([names.k, names.v]),
            after: delta.then(|| inputs.delta(None)),
            from: inputs.from(),
            to: Some(names.ht),
            segment: segment_tokens(self.chunk.unwrap_or(CHUNK)),
            reports: inputs.g.is_some() || inputs.beta.is_some(),
            ..Walk::over(frame.clone(), "states")
        };
        let chunking = Chunking::new(caps, self.chunk.unwrap_or(CHUNK), frame.dims)?;
        let packed = inputs.are_packed();
        let (algorithm, why) = self.choose(caps, &walk, &chunking, packed)?;
        let how = How { algorithm, chunking, packed };
        self.add_features(&mut builder, &inputs, &frame)?;
        let joint = Joint { widths: inputs.widths(), frame: &frame };
        joint.values(&mut builder, names.v, false)?;
        builder.scratch(names.ht, joint.states())?;
        walk.add(&mut builder, how)?;
        joint.split(&mut builder, names.ht, ["added", "transition"])?;
        let one_by_one = walk.one_by_one(caps, packed).name();
        builder.finish(format!("summary of {}", words(&walk, how, one_by_one, &why)))
    }

    /// The program that computes the gradients of a summary. It reads the same inputs, `dadded` and `dtransition`, and writes dk, dv and,
    /// as [`LinearParams::plan_backward`] does, dg, dbeta and dslopes. It goes token by token.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_summary`].
    pub fn plan_summary_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let more = ["dadded", "dtransition", "dk", "dv", "dg", "dbeta", "dslopes"];
        shapes.check_names(&[&INPUTS[..], &more].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let inputs = self.summarized(&mut builder, shapes)?;
        for (name, layout) in ["dadded", "dtransition"].into_iter().zip(self.summary(&inputs)) {
            check_tensor(name, Some(&builder.input(name)?), Some(layout.shape), true)?;
        }
        for (name, layout, is_exact) in self.gradients_of_tokens(&inputs) {
            self.declare_gradient(&mut builder, name, layout, is_exact)?;
        }
        self.gradients(builder, &inputs)
    }

    /// ΔS and M.
    fn summary(&self, inputs: &LinearShapes) -> [Layout; 2] {
        let added = inputs.state();
        let [entries, heads, rows, _] = added.shape;
        let [_, columns] = inputs.widths();
        [added, Layout::heads_first(DType::F32, [entries, heads, rows, columns])]
    }

    /// The inputs, checked.
    fn summarized(&self, builder: &mut Builder, shapes: &Shapes) -> Result<LinearShapes> {
        let bound = "linear or delta for a summary: with momentum, a span changes two states";
        require(self.rule != LinearRule::Momentum, "rule", "momentum", bound)?;
        let inputs = LinearShapes::new(builder, self, shapes, true)?;
        require(self.causal, "causal", false, "true for a summary")?;
        let bound = "unset for a summary: give values a column of ones for the sum of keys";
        require(self.normalize.is_none(), "normalize", self.normalize.unwrap_or_default(), bound)?;
        require(inputs.h0.is_none(), "h0", "set", "unset for a summary, which holds for every state")?;
        Ok(inputs)
    }
}
