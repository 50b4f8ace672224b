//! What attention and its gradients read and write.

use crate::gpu::call::{Call, present};
use crate::gpu::calls::seqlens::{Seqlens, Sequences};
use crate::program::Name;
use crate::token_lists::TokenLists;
use crate::{BlockMask, Tensor};
#[cfg(doc)]
use crate::{BlockSparseAttention, Layout};
use std::borrow::Cow;

/// What attention reads.
///
/// ```
/// use wgpu_attention::{AttentionInputs, Tensor};
/// /// Padded sequences of 5 and 2 tokens in one batch, with a bias.
/// fn padded<'a>(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, bias: &'a Tensor) -> AttentionInputs<'a> {
///     AttentionInputs::new(q, k, v).with_lengths(&[5, 2]).with_bias(bias)
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries [batch, heads_q, queries, head_dim].
    pub q: &'a Tensor,
    /// Keys [batch, heads_kv, keys, head_dim]. Query head h uses head h / (heads_q / heads_kv).
    pub k: &'a Tensor,
    /// Values [batch, heads_kv, keys, value_dim].
    pub v: &'a Tensor,
    /// The number of queries in each batch entry; the rest are padding, with output 0 and LSE −∞.
    pub seqlens_q: Option<Seqlens<'a>>,
    /// The number of keys in each batch entry; the rest are padding, which no query sees.
    pub seqlens_k: Option<Seqlens<'a>>,
    /// Packed sequences: the queries of all sequences follow one another in q, [1, heads_q, rows, head_dim]. Goes with
    /// `cu_seqlens_k`, and not with lengths.
    pub cu_seqlens_q: Option<Seqlens<'a>>,
    /// The same for the keys, in k and v.
    pub cu_seqlens_k: Option<Seqlens<'a>>,
    /// The longest sequence, in queries, that offsets on the GPU may describe. The shorter it is, the less work is dispatched for nothing.
    /// Default: all rows.
    pub max_seqlen_q: Option<usize>,
    /// The same, in keys.
    pub max_seqlen_k: Option<usize>,
    /// A bias that is added to the scores after soft cap and ALiBi: [batch, heads_q, queries, keys]. Strides of zero repeat it
    /// ([`Layout::expand`]), and a last dimension of 1 repeats it along the keys. A key is not seen where its bias is −∞. For packed
    /// sequences: [sequences, heads_q, longest queries, longest keys].
    pub bias: Option<&'a Tensor>,
    /// Further mask of the keys: u8 or u32 [batch, heads_q, queries, keys], zero where a key is hidden; repeated likewise.
    pub mask: Option<&'a Tensor>,
    /// Additional keys that every query sees in the same softmax, [batch, heads_kv, any number, head_dim]. Only scale and soft cap apply to
    /// them. They go with `additional_v`, and not with packed sequences.
    pub additional_k: Option<&'a Tensor>,
    /// Their values, [batch, heads_kv, the same number, value_dim].
    pub additional_v: Option<&'a Tensor>,
    /// The blocks to compute, which [`BlockSparseAttention`] needs.
    pub block_mask: Option<&'a BlockMask>,
    /// The keys that queries see, token by token, which [`crate::token_lists::TokenListAttention`] needs.
    pub token_lists: Option<TokenLists<'a>>,
    /// The tensors that hooks read, by the names that the hooks declare. A hook that carries a tensor needs none here.
    pub buffers: &'a [(&'static str, &'a Tensor)],
}

impl<'a> AttentionInputs<'a> {
    /// Queries, keys and values at full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            seqlens_q: None,
            seqlens_k: None,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            max_seqlen_q: None,
            max_seqlen_k: None,
            bias: None,
            mask: None,
            additional_k: None,
            additional_v: None,
            block_mask: None,
            token_lists: None,
            buffers: &[],
        }
    }

    /// The same with lengths of padded sequences, one per batch entry, for queries and keys alike.
    pub fn with_lengths(self, lengths: impl Into<Seqlens<'a>>) -> Self {
        let lengths = Some(lengths.into());
        Self { seqlens_q: lengths, seqlens_k: lengths, ..self }
    }

    /// The same with lengths for the keys alone: how far a cache is filled.
    pub fn with_key_lengths(self, lengths: impl Into<Seqlens<'a>>) -> Self {
        Self { seqlens_k: Some(lengths.into()), ..self }
    }

    /// The same with packed sequences, given by their offsets in q and in k and v (`cu_seqlens`).
    pub fn with_offsets(self, queries: impl Into<Seqlens<'a>>, keys: impl Into<Seqlens<'a>>) -> Self {
        Self { cu_seqlens_q: Some(queries.into()), cu_seqlens_k: Some(keys.into()), ..self }
    }

    /// The same with a bias.
    pub fn with_bias(self, bias: &'a Tensor) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// The same with a boolean mask.
    pub fn with_mask(self, mask: &'a Tensor) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// The same with additional keys and values that every query sees.
    pub fn with_additional(self, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self { additional_k: Some(k), additional_v: Some(v), ..self }
    }

    /// The same with the blocks to compute.
    pub fn with_block_mask(self, mask: &'a BlockMask) -> Self {
        Self { block_mask: Some(mask), ..self }
    }

    /// The same with the keys that queries see, token by token.
    pub fn with_token_lists(self, lists: TokenLists<'a>) -> Self {
        Self { token_lists: Some(lists), ..self }
    }

    pub(crate) fn sequences(&self) -> Sequences<'a, 4, 2> {
        let seqlens = [self.seqlens_q, self.seqlens_k, self.cu_seqlens_q, self.cu_seqlens_k];
        Sequences::of_sides(seqlens, [self.max_seqlen_q, self.max_seqlen_k])
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
        ]);
        all.extend(self.sequences().tensors());
        all.extend(self.block_mask.iter().flat_map(|mask| mask.tensors()));
        all.extend(self.token_lists.iter().flat_map(|lists| lists.tensors()));
        all.extend(self.buffers.iter().map(|&(name, tensor)| (crate::program::hook::tensor_name(name), tensor)));
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let mut all: Vec<(Name, Cow<'_, [usize]>)> = self.sequences().numbers().collect();
        all.extend(self.block_mask.iter().flat_map(|mask| mask.numbers()));
        all.extend(self.token_lists.iter().flat_map(|lists| lists.numbers()));
        all
    }
}

/// What attention writes: [`crate::Attention::outputs_for`] allocates it.
#[derive(Clone, Debug)]
pub struct AttentionOutputs {
    /// [batch, heads_q, queries, value_dim], of any type.
    pub out: Tensor,
    /// Natural log-sum-exp of each row's scores, f32 [batch, heads_q, queries, 1].
    pub lse: Tensor,
}

impl AttentionOutputs {
    /// The tensors that the results are written to.
    pub fn new(out: &Tensor, lse: &Tensor) -> Self {
        Self { out: out.clone(), lse: lse.clone() }
    }
}

impl Call for AttentionOutputs {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("out", Some(&self.out)), ("lse", Some(&self.lse))])
    }
}

/// What the backward pass reads besides the forward pass's inputs and outputs.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a> {
    /// Gradient of the output [batch, heads_q, queries, value_dim], of any type.
    pub dout: &'a Tensor,
    /// Gradient of the log-sum-exp, f32 [batch, heads_q, queries, 1], where there is one.
    pub dlse: Option<&'a Tensor>,
    /// Gradient of q so far, of q's shape: the share of another part of a merged result. The new share is added to it to give dq.
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
    /// Gradient of q, with q's shape.
    pub dq: Tensor,
    /// Gradient of k: the sum over the query heads that use it.
    pub dk: Tensor,
    /// Gradient of v, likewise.
    pub dv: Tensor,
    /// Gradient of the bias where there is one, f32. It has the bias's shape, but 1 in every dimension along which the
    /// bias is repeated, and is the sum along it.
    pub dbias: Option<Tensor>,
    /// Gradient of the additional keys, where there are any.
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
