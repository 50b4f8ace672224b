//! What attention and its gradients read and write.

use crate::gpu::call::{Call, present};
use crate::program::Name;
use crate::{BlockMask, Tensor};
#[cfg(doc)]
use crate::{BlockSparseAttention, Layout};
use std::borrow::Cow;

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries [batch, heads_q, queries, head_dim].
    pub q: &'a Tensor,
    /// Keys [batch, heads_kv, keys, head_dim]. Query head h uses head h / (heads_q / heads_kv).
    pub k: &'a Tensor,
    /// Values [batch, heads_kv, keys, value_dim].
    pub v: &'a Tensor,
    /// How many queries of each batch entry count; the rest is padding, whose output is 0 and whose LSE is −∞.
    pub seqlens_q: Option<&'a [usize]>,
    /// How many keys of each batch entry count; the rest is padding that nobody sees.
    pub seqlens_k: Option<&'a [usize]>,
    /// Packed sequences: the queries of all lie one after another in q, [1, heads_q, rows, head_dim]. Goes with
    /// `cu_seqlens_k`, and not with lengths.
    pub cu_seqlens_q: Option<CuSeqlens<'a>>,
    /// The same of the keys, in k and v.
    pub cu_seqlens_k: Option<CuSeqlens<'a>>,
    /// Added to the scores after soft cap and ALiBi: [batch, heads_q, queries, keys], repeated by strides of zero where
    /// wanted ([`Layout::expand`]). A key where it is −∞ is not seen. Of packed sequences: [sequences, heads_q, longest
    /// queries, longest keys].
    pub bias: Option<&'a Tensor>,
    /// Which keys are seen, besides all else: u8 or u32 [batch, heads_q, queries, keys], zero for not; repeated likewise.
    pub mask: Option<&'a Tensor>,
    /// Keys that every query sees besides, [batch, heads_kv, any number, head_dim], in the same softmax. Scale and soft cap
    /// hold for them, nothing else. Goes with `additional_v`, and not with packed sequences.
    pub additional_k: Option<&'a Tensor>,
    /// Their values, [batch, heads_kv, the same number, value_dim].
    pub additional_v: Option<&'a Tensor>,
    /// The blocks to compute: for [`BlockSparseAttention`], which needs one.
    pub block_mask: Option<&'a BlockMask>,
    /// What hooks read, by the names that they declare; those that carry a tensor need none here.
    pub buffers: &'a [(&'static str, &'a Tensor)],
}

impl<'a> AttentionInputs<'a> {
    /// Queries, keys and values in full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            seqlens_q: None,
            seqlens_k: None,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            bias: None,
            mask: None,
            additional_k: None,
            additional_v: None,
            block_mask: None,
            buffers: &[],
        }
    }
}

impl Call for AttentionInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = present([
            ("q", Some(self.q)),
            ("k", Some(self.k)),
            ("v", Some(self.v)),
            ("bias", self.bias),
            ("mask", self.mask),
            ("additional_k", self.additional_k),
            ("additional_v", self.additional_v),
            ("cu_seqlens_q", self.cu_seqlens_q.as_ref().and_then(CuSeqlens::tensor)),
            ("cu_seqlens_k", self.cu_seqlens_k.as_ref().and_then(CuSeqlens::tensor)),
        ]);
        all.extend(self.block_mask.iter().flat_map(|mask| mask.tensors()));
        all.extend(self.buffers.iter().map(|&(name, tensor)| (crate::program::hook::tensor_name(name), tensor)));
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let mut all: Vec<(Name, Cow<'_, [usize]>)> = vec![];
        for (name, lengths) in [("seqlens_q", self.seqlens_q), ("seqlens_k", self.seqlens_k)] {
            all.extend(lengths.map(|lengths| (name.into(), lengths.into())));
        }
        let sides = [("cu_seqlens_q", "max_seqlen_q"), ("cu_seqlens_k", "max_seqlen_k")];
        for ((offsets, longest), side) in sides.into_iter().zip([self.cu_seqlens_q, self.cu_seqlens_k]) {
            all.extend(side.map(|side| side.numbers(offsets, longest)));
        }
        all.extend(self.block_mask.iter().flat_map(|mask| mask.numbers()));
        all
    }
}

/// Where packed sequences begin and end: sequence i has the rows `[offsets[i], offsets[i + 1])`. The first offset is 0,
/// they ascend (an empty sequence has two equal ones), and the last is at most the number of rows. Rows behind the last
/// belong to no sequence and are left alone.
#[derive(Clone, Copy, Debug)]
pub enum CuSeqlens<'a> {
    /// On the host: checked, and part of what a kernel is prepared for.
    Host(&'a [u32]),
    /// On the GPU: u32 values that work submitted before may have made. They are clamped to the tensor, and a kernel that
    /// found them wrong makes reading its output an error.
    Gpu {
        /// The offsets, as [`Tensor::upload_u32`] makes them: [1, 1, 1, sequences + 1].
        offsets: &'a Tensor,
        /// The longest sequence that there may be.
        max_seqlen: usize,
    },
}

impl<'a> CuSeqlens<'a> {
    pub(crate) fn tensor(&self) -> Option<&'a Tensor> {
        match *self {
            CuSeqlens::Host(_) => None,
            CuSeqlens::Gpu { offsets, .. } => Some(offsets),
        }
    }

    pub(crate) fn numbers(&self, offsets: &'static str, longest: &'static str) -> (Name, Cow<'a, [usize]>) {
        match *self {
            CuSeqlens::Host(host) => (offsets.into(), host.iter().map(|&n| n as usize).collect::<Vec<_>>().into()),
            CuSeqlens::Gpu { max_seqlen, .. } => (longest.into(), vec![max_seqlen].into()),
        }
    }
}

/// What attention writes.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOutputs<'a> {
    /// [batch, heads_q, queries, value_dim], of any type.
    pub out: &'a Tensor,
    /// Natural log-sum-exp of each row's scores, f32 [batch, heads_q, queries, 1].
    pub lse: &'a Tensor,
}

impl Call for AttentionOutputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("out", Some(self.out)), ("lse", Some(self.lse))])
    }
}

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

impl Call for OutputGradients<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("dout", Some(self.dout)), ("dlse", self.dlse), ("dq_so_far", self.dq_so_far)])
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

impl Call for AttentionGradients {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([
            ("dq", Some(&self.dq)),
            ("dk", Some(&self.dk)),
            ("dv", Some(&self.dv)),
            ("dbias", self.dbias.as_ref()),
            ("d_additional_k", self.d_additional_k.as_ref()),
            ("d_additional_v", self.d_additional_v.as_ref()),
        ])
    }
}
