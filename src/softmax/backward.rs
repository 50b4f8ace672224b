//! Gradients: what they are of, and what they need.

mod calls;
mod plan;
mod run;

pub use calls::AttentionSaved;
pub use plan::BackwardPlan;
pub use run::BackwardPrepared;

use super::{AttentionInputs, AttentionOutputs, AttentionShapes, check_shapes};
use crate::arguments::{Argument, number_buffers};
use crate::error::require;
use crate::packed::Side;
use crate::shader::AccessKind;
use crate::{DType, Layout, Result, Tensor};
use plan::OF_BIAS;

/// What the backward pass reads besides the forward pass's inputs and outputs.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a> {
    /// Gradient of the output [batch, heads_q, queries, value_dim], of any type.
    pub dout: &'a Tensor,
    /// Gradient of the log-sum-exp, f32 [batch, heads_q, queries, 1], where there is one.
    pub dlse: Option<&'a Tensor>,
}

/// What the backward pass writes.
#[derive(Clone, Debug)]
pub struct AttentionGradients {
    /// Gradient of q, of its shape.
    pub dq: Tensor,
    /// Gradient of k: the sum over the query heads that use it.
    pub dk: Tensor,
    /// Gradient of v, likewise.
    pub dv: Tensor,
    /// Gradient of the bias where there is one, f32: of its shape, with 1 in place of a dimension that a stride of zero
    /// repeats, along which it is the sum.
    pub dbias: Option<Tensor>,
}

/// Types, shapes and strides of a backward pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackwardShapes {
    /// Those of the forward pass.
    pub forward: AttentionShapes,
    /// Gradient of the output.
    pub dout: Layout,
    /// Gradient of the log-sum-exp.
    pub dlse: Option<Layout>,
    /// Gradient of q.
    pub dq: Layout,
    /// Gradient of k.
    pub dk: Layout,
    /// Gradient of v.
    pub dv: Layout,
    /// Gradient of the bias.
    pub dbias: Option<Layout>,
    /// Which of q, k, v, out, lse, bias, mask, dout, dlse, dq, dk, dv, dbias lie in one buffer: those with the same number.
    pub buffers: [usize; 13],
}

/// In the order of [`BackwardShapes::buffers`].
fn slots<'a>(
    inputs: &AttentionInputs<'a>,
    outputs: &AttentionOutputs<'a>,
    from: &OutputGradients<'a>,
    to: &'a AttentionGradients,
) -> [Option<&'a Tensor>; 13] {
    let [q, k, v, out, lse, bias, mask] = super::slots(inputs, outputs);
    let AttentionGradients { dq, dk, dv, dbias } = to;
    [q, k, v, out, lse, bias, mask, Some(from.dout), from.dlse, Some(dq), Some(dk), Some(dv), dbias.as_ref()]
}

const NAMES: [&str; 13] = ["q", "k", "v", "out", "lse", "bias", "mask", "dout", "dlse", "dq", "dk", "dv", "dbias"];

impl BackwardShapes {
    /// As the tensors are.
    pub fn of(
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        from: &OutputGradients,
        to: &AttentionGradients,
    ) -> Self {
        Self {
            forward: AttentionShapes::of(inputs, outputs),
            dout: from.dout.layout().clone(),
            dlse: from.dlse.map(|dlse| dlse.layout().clone()),
            dq: to.dq.layout().clone(),
            dk: to.dk.layout().clone(),
            dv: to.dv.layout().clone(),
            dbias: to.dbias.as_ref().map(|dbias| dbias.layout().clone()),
            buffers: number_buffers(slots(inputs, outputs, from, to)),
        }
    }

    fn layout(&self, name: &str) -> Option<&Layout> {
        let AttentionShapes { q, k, v, out, lse, bias, mask, .. } = &self.forward;
        match name {
            "q" => Some(q),
            "k" => Some(k),
            "v" => Some(v),
            "out" => Some(out),
            "lse" => Some(lse),
            "bias" => bias.as_ref(),
            "mask" => mask.as_ref(),
            "dout" => Some(&self.dout),
            "dlse" => self.dlse.as_ref(),
            "dq" => Some(&self.dq),
            "dk" => Some(&self.dk),
            "dv" => Some(&self.dv),
            _ => self.dbias.as_ref(),
        }
    }

    fn check(&self) -> Result<()> {
        check_shapes(&self.forward)?;
        let AttentionShapes { q, k, v, out, lse, .. } = &self.forward;
        for (name, like) in [("dout", out), ("dlse", lse), ("dq", q), ("dk", k), ("dv", v)] {
            let Some(layout) = self.layout(name) else { continue };
            let bound = format!("{:?}", like.shape);
            require(layout.shape == like.shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        if let Some(dbias) = &self.dbias {
            let shape = self.forward.bias_shape();
            let bound = format!("{shape:?}: the bias, with 1 where a stride of zero repeats it");
            require(self.forward.bias.is_some(), "dbias", "set", "unset without a bias")?;
            require(dbias.shape == shape, "dbias.shape", format!("{:?}", dbias.shape), bound)?;
            require(dbias.dtype == DType::F32, "dbias.dtype", dbias.dtype, "f32")?;
            dbias.byte_span()?;
            dbias.check_output("dbias")?;
        }
        let dlse = self.dlse.as_ref().map_or(DType::F32, |dlse| dlse.dtype);
        require(dlse == DType::F32, "dlse.dtype", dlse, "f32")?;
        [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)].into_iter().try_for_each(|(n, l)| l.check_output(n))
    }

    /// The tensors of the gradient of the bias. Work goes by the bias's own batch entries and heads, each of which may stand
    /// for all.
    fn bias_arguments(&self) -> Vec<Argument> {
        let (pairs, bias) = (self.forward.pairs(), self.forward.bias_shape());
        let mut arguments = self.arguments(Side::Queries, &OF_BIAS);
        for argument in arguments.iter_mut().filter(|argument| argument.name != "dbias") {
            argument.spread = if bias[1] == pairs[1] { 1 } else { pairs[1] };
            // Tokens of packed sequences lie in one batch entry; bias and mask have one for each sequence.
            let tokens = !["bias", "mask"].contains(&argument.name);
            argument.whole = bias[0] != pairs[0] || (tokens && self.forward.packed().is_some());
        }
        arguments
    }

    /// The tensors of these names, as a kernel over the rows of one side sees them.
    fn arguments(&self, side: Side, names: &[&'static str]) -> Vec<Argument> {
        let group = self.forward.q.shape[1] / self.forward.k.shape[1];
        let argument = |&name: &&'static str| {
            let of_keys = ["k", "v", "dk", "dv"].contains(&name);
            let (group, spread) = match side {
                Side::Queries => (if of_keys { group } else { 1 }, 1),
                Side::Keys => (1, if of_keys { 1 } else { group }),
            };
            let kind = match name {
                "dq" | "dk" | "dv" => AccessKind::Store4,
                "bias" | "mask" | "dlse" => AccessKind::Load1,
                "lse" => AccessKind::LoadBits,
                "dbias" => AccessKind::StoreBits,
                _ => AccessKind::Load4,
            };
            let buffer = self.buffers[NAMES.iter().position(|other| *other == name).expect("one of them")];
            let whole = self.forward.packed().is_some() && ["bias", "mask"].contains(&name);
            Some(Argument { name, layout: self.layout(name)?.clone(), kind, group, spread, buffer, whole })
        };
        names.iter().filter_map(argument).collect()
    }
}
