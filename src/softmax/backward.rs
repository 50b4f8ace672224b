//! Gradients: what they are of, and what they need.

mod calls;
mod plan;
mod run;

pub use calls::AttentionSaved;
pub use plan::BackwardPlan;
pub use run::BackwardPrepared;

use super::plan::BY_SEQUENCE;
use super::{AttentionInputs, AttentionOutputs, AttentionShapes, check_shapes};
use crate::arguments::{Argument, number_buffers};
use crate::error::{require, require_set};
use crate::packed::Side;
use crate::shader::AccessKind;
use crate::{BlockGrid, DType, Layout, Result, Tensor};
use plan::{Names, OF_BIAS, Over};

/// What the backward pass reads besides the forward pass's inputs and outputs.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a> {
    /// Gradient of the output [batch, heads_q, queries, value_dim], of any type.
    pub dout: &'a Tensor,
    /// Gradient of the log-sum-exp, f32 [batch, heads_q, queries, 1], where there is one.
    pub dlse: Option<&'a Tensor>,
    /// Gradient of q so far, of q's shape, which dq is added to: the share of another part of a merged result.
    pub dq_so_far: Option<&'a Tensor>,
}

impl<'a> OutputGradients<'a> {
    /// A gradient of the output, and of nothing else.
    pub fn new(dout: &'a Tensor) -> Self {
        Self { dout, dlse: None, dq_so_far: None }
    }
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
    /// Gradient of the additional keys where there are such.
    pub d_additional_k: Option<Tensor>,
    /// Gradient of the additional values, likewise.
    pub d_additional_v: Option<Tensor>,
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
    /// Gradient of the additional keys.
    pub d_additional_k: Option<Layout>,
    /// Gradient of the additional values.
    pub d_additional_v: Option<Layout>,
    /// Gradient of q so far.
    pub dq_so_far: Option<Layout>,
    /// Which of q, k, v, out, lse, bias, mask, additional_k, additional_v, the chosen and the full blocks, dout, dlse, dq, dk, dv,
    /// dbias, d_additional_k, d_additional_v, dq_so_far lie in one buffer: those with the same number.
    pub buffers: [usize; 20],
}

/// In the order of [`BackwardShapes::buffers`].
fn slots<'a>(
    inputs: &AttentionInputs<'a>,
    outputs: &AttentionOutputs<'a>,
    from: &OutputGradients<'a>,
    to: &'a AttentionGradients,
) -> [Option<&'a Tensor>; 20] {
    let mut all = [None; 20];
    all[..11].copy_from_slice(&super::slots(inputs, outputs));
    let AttentionGradients { dq, dk, dv, dbias, d_additional_k, d_additional_v } = to;
    all[11..16].copy_from_slice(&[Some(from.dout), from.dlse, Some(dq), Some(dk), Some(dv)]);
    all[16..].copy_from_slice(&[dbias.as_ref(), d_additional_k.as_ref(), d_additional_v.as_ref(), from.dq_so_far]);
    all
}

const NAMES: [&str; 20] = [
    "q",
    "k",
    "v",
    "out",
    "lse",
    "bias",
    "mask",
    "additional_k",
    "additional_v",
    "blocks",
    "full_blocks",
    "dout",
    "dlse",
    "dq",
    "dk",
    "dv",
    "dbias",
    "d_additional_k",
    "d_additional_v",
    "dq_so_far",
];
/// The blocks as they are seen from the keys: tensors of our own.
const BLOCKS_BY_KEYS: [&str; 2] = ["blocks by keys", "full blocks by keys"];
/// The share of dq that the keys of the tokens have, where there are additional ones: a tensor of our own.
const SHARE_OF_DQ: &str = "share of dq";

impl BackwardShapes {
    /// As the tensors are.
    pub fn of(
        inputs: &AttentionInputs,
        outputs: &AttentionOutputs,
        from: &OutputGradients,
        to: &AttentionGradients,
    ) -> Self {
        let layout = |tensor: Option<&Tensor>| tensor.map(|tensor| tensor.layout().clone());
        Self {
            forward: AttentionShapes::of(inputs, outputs),
            dout: from.dout.layout().clone(),
            dlse: layout(from.dlse),
            dq: to.dq.layout().clone(),
            dk: to.dk.layout().clone(),
            dv: to.dv.layout().clone(),
            dbias: layout(to.dbias.as_ref()),
            d_additional_k: layout(to.d_additional_k.as_ref()),
            d_additional_v: layout(to.d_additional_v.as_ref()),
            dq_so_far: layout(from.dq_so_far),
            buffers: number_buffers(slots(inputs, outputs, from, to)),
        }
    }

    fn layout(&self, name: &str) -> Option<Layout> {
        let AttentionShapes { q, k, v, out, lse, bias, mask, additional_k, additional_v, .. } = &self.forward;
        match name {
            "q" => Some(q.clone()),
            "k" => Some(k.clone()),
            "v" => Some(v.clone()),
            "out" => Some(out.clone()),
            "lse" => Some(lse.clone()),
            "bias" => bias.clone(),
            "mask" => mask.clone(),
            "additional_k" => additional_k.clone(),
            "additional_v" => additional_v.clone(),
            "dout" => Some(self.dout.clone()),
            "dlse" => self.dlse.clone(),
            "dq" => Some(self.dq.clone()),
            "dk" => Some(self.dk.clone()),
            "dv" => Some(self.dv.clone()),
            "dbias" => self.dbias.clone(),
            "d_additional_k" => self.d_additional_k.clone(),
            "d_additional_v" => self.d_additional_v.clone(),
            "dq_so_far" => self.dq_so_far.clone(),
            "blocks" => self.forward.block_layouts()[0].cloned(),
            "full_blocks" => self.forward.block_layouts()[1].cloned(),
            "blocks by keys" => self.blocks_by_keys()?.1[0].clone(),
            "full blocks by keys" => self.blocks_by_keys()?.1[1].clone(),
            _ => self.share_of_dq(),
        }
    }

    /// The grid of the block mask's lists, and its chosen and full blocks seen from the keys.
    fn blocks_by_keys(&self) -> Option<(BlockGrid, [Option<Layout>; 2])> {
        let mask = self.forward.block_mask.as_ref()?;
        let [batch, heads, ..] = mask.chosen.as_ref()?.shape;
        let [_, _, queries, keys] = self.forward.pairs();
        let grid = BlockGrid { batch, heads, queries, keys, block: mask.block };
        let layout =
            |of: &Option<Layout>| of.as_ref().map(|_| Layout::heads_first(DType::U32, grid.transposed().shape()));
        Some((grid, [layout(&mask.chosen), layout(&mask.full)]))
    }

    /// Where there are additional keys.
    fn share_of_dq(&self) -> Option<Layout> {
        self.forward.additional_k.as_ref().map(|_| Layout::heads_first(DType::F32, self.dq.shape))
    }

    fn check(&self) -> Result<()> {
        check_shapes(&self.forward)?;
        let AttentionShapes { q, k, v, out, lse, .. } = &self.forward;
        let mut alike = vec![("dout", out), ("dlse", lse), ("dq", q), ("dk", k), ("dv", v), ("dq_so_far", q)];
        for (name, like, of) in [
            ("d_additional_k", &self.forward.additional_k, &self.d_additional_k),
            ("d_additional_v", &self.forward.additional_v, &self.d_additional_v),
        ] {
            require_set(name, of.is_some(), like.is_some(), "as the additional keys are")?;
            alike.extend(like.as_ref().map(|like| (name, like)));
        }
        for (name, like) in alike {
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
        for name in ["dq", "dk", "dv", "d_additional_k", "d_additional_v"] {
            self.layout(name).map_or(Ok(()), |layout| layout.check_output(name))?;
        }
        Ok(())
    }

    /// The tensors of the gradient of the bias. Work goes by the bias's own batch entries and heads, each of which may stand
    /// for all.
    fn bias_arguments(&self) -> Vec<Argument> {
        let (pairs, bias) = (self.forward.pairs(), self.forward.bias_shape());
        let mut arguments = self.arguments(Side::Queries, OF_BIAS, Over::Own);
        for argument in arguments.iter_mut().filter(|argument| argument.name != "dbias") {
            argument.spread = if bias[1] == pairs[1] { 1 } else { pairs[1] };
            // Tokens of packed sequences lie in one batch entry; bias and mask have one for each sequence.
            let tokens = !BY_SEQUENCE.contains(&argument.name);
            argument.whole = bias[0] != pairs[0] || (tokens && self.forward.packed().is_some());
        }
        arguments
    }

    /// What we call the tensor that a shader calls so, where it has one.
    fn tensor_of(&self, name: &'static str, side: Side, over: Over) -> Option<&'static str> {
        Some(match (over, name) {
            (Over::Additional, "bias" | "mask" | "blocks" | "full_blocks") => return None,
            (Over::Own, "blocks") if side == Side::Keys => BLOCKS_BY_KEYS[0],
            (Over::Own, "full_blocks") if side == Side::Keys => BLOCKS_BY_KEYS[1],
            // Where there are additional keys, dq comes in two passes.
            (Over::Own, "dq") if self.forward.additional_k.is_some() => SHARE_OF_DQ,
            (Over::Own, name) => name,
            (Over::Additional, "k") => "additional_k",
            (Over::Additional, "v") => "additional_v",
            (Over::Additional, "dk") => "d_additional_k",
            (Over::Additional, "dv") => "d_additional_v",
            (Over::Additional, "dq_so_far") => SHARE_OF_DQ,
            (Over::Additional, name) => name,
        })
    }

    /// The tensors of a kernel over the rows of one side.
    fn arguments(&self, side: Side, names: Names, over: Over) -> Vec<Argument> {
        let group = self.forward.q.shape[1] / self.forward.k.shape[1];
        let argument = |&name: &&'static str| {
            let tensor = self.tensor_of(name, side, over)?;
            let of_blocks = ["blocks", "full_blocks"].contains(&name) && self.forward.block_group() == group;
            let of_keys = ["k", "v", "dk", "dv"].contains(&name) || of_blocks;
            let (group, spread) = match side {
                Side::Queries => (if of_keys { group } else { 1 }, 1),
                Side::Keys => (1, if of_keys { 1 } else { group }),
            };
            let kind = match name {
                "dq" | "dk" | "dv" => AccessKind::Store4,
                "bias" | "mask" | "dlse" => AccessKind::Load1,
                "lse" | "blocks" | "full_blocks" => AccessKind::LoadBits,
                "dbias" => AccessKind::StoreBits,
                _ => AccessKind::Load4,
            };
            // No tensor of the caller's lies in a buffer of our own, and no two of ours in one.
            let own = NAMES.len() + BLOCKS_BY_KEYS.iter().position(|other| *other == tensor).map_or(0, |i| i + 1);
            let buffer = NAMES.iter().position(|other| *other == tensor).map_or(own, |i| self.buffers[i]);
            let whole = self.forward.packed().is_some() && BY_SEQUENCE.contains(&name);
            Some(Argument { name, layout: self.layout(tensor)?, kind, group, spread, buffer, whole })
        };
        names.iter().filter_map(argument).collect()
    }
}
