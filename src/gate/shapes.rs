//! What a gate for prompts reads and writes.

use super::SeerGateParams;
use super::frame::Frame;
use super::step::{Part, Places, Tensors, as_prepared};
use crate::arguments::number_buffers;
use crate::dispatch::check_device;
use crate::error::require;
use crate::packed::host_sequences;
use crate::softmax::check_shapes;
use crate::{AttentionShapes, BlockGrid, CuSeqlens, CuSeqlensShape, DType, Gpu, Layout, Result, Tensor};

/// What a prefill gate reads.
#[derive(Clone, Copy, Debug)]
pub struct SeerGateInputs<'a> {
    /// Queries before their rotary embedding, [batch, heads_q, queries, head_dim].
    pub q: &'a Tensor,
    /// Keys before theirs, [batch, heads_kv, keys, head_dim].
    pub k: &'a Tensor,
    /// Linear map of pooled queries, [1, heads_q, kinds of `pool_q` · head_dim, gate_dim]. Unset: pooled queries as they are; then
    /// one kind is pooled, and gate_dim is head_dim.
    pub wq: Option<&'a Tensor>,
    /// Linear map of pooled keys, [1, heads_q or heads_kv, kinds of `pool_k` · head_dim, gate_dim].
    pub wk: &'a Tensor,
    /// Queries of each batch entry; the rest is padding.
    pub seqlens_q: Option<&'a [usize]>,
    /// Keys of each batch entry.
    pub seqlens_k: Option<&'a [usize]>,
    /// Packed queries: q is [1, heads_q, all queries, head_dim]. On the host.
    pub cu_seqlens_q: Option<CuSeqlens<'a>>,
    /// Packed keys.
    pub cu_seqlens_k: Option<CuSeqlens<'a>>,
}

impl<'a> SeerGateInputs<'a> {
    /// Without a map of queries, in full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, wk: &'a Tensor) -> Self {
        let (wq, seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k) = (None, None, None, None, None);
        Self { q, k, wq, wk, seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k }
    }

    fn named(&self) -> [(&'static str, Part, Option<&'a Tensor>); 4] {
        [
            ("q", Part::Q, Some(self.q)),
            ("k", Part::K, Some(self.k)),
            ("wq", Part::Wq, self.wq),
            ("wk", Part::Wk, Some(self.wk)),
        ]
    }

    pub(super) fn tensors(&self) -> Tensors<'a> {
        self.named().into_iter().filter_map(|(_, part, tensor)| Some((part, tensor?))).collect()
    }

    pub(super) fn check_device(&self, gpu: &Gpu) -> Result<()> {
        let check = |(name, _, tensor): (&str, Part, Option<&Tensor>)| match tensor {
            Some(tensor) => check_device(name, tensor, gpu),
            None => Ok(()),
        };
        self.named().into_iter().try_for_each(check)
    }
}

/// What a prefill gate writes. Rows are blocks of queries: [batch (of packed sequences: sequences), heads_q, rows, …].
#[derive(Clone, Copy, Debug)]
pub struct SeerGateOutputs<'a> {
    /// The chosen blocks, u32 of the shape [`BlockGrid::shape`]: for [`crate::BlockMask::from_bits`].
    pub chosen: &'a Tensor,
    /// The scores before the softmax, f32 [batch, heads_q, rows, blocks of keys]; −∞ where a row does not see a block.
    pub logits: Option<&'a Tensor>,
    /// Their softmax, likewise; 0 where a row does not see a block.
    pub scores: Option<&'a Tensor>,
}

impl<'a> SeerGateOutputs<'a> {
    pub(super) fn tensors(&self) -> Tensors<'a> {
        let all = [(Part::Chosen, Some(self.chosen)), (Part::Logits, self.logits), (Part::Scores, self.scores)];
        all.into_iter().filter_map(|(part, tensor)| Some((part, tensor?))).collect()
    }
}

/// Types, shapes and strides of a prefill gate's tensors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeerGateShapes {
    /// Queries.
    pub q: Layout,
    /// Keys.
    pub k: Layout,
    /// Linear map of pooled queries.
    pub wq: Option<Layout>,
    /// Linear map of pooled keys.
    pub wk: Layout,
    /// Queries of each batch entry.
    pub seqlens_q: Option<Vec<usize>>,
    /// Keys of each batch entry.
    pub seqlens_k: Option<Vec<usize>>,
    /// Packed queries.
    pub cu_seqlens_q: Option<CuSeqlensShape>,
    /// Packed keys.
    pub cu_seqlens_k: Option<CuSeqlensShape>,
    /// The chosen blocks.
    pub chosen: Layout,
    /// Scores before the softmax.
    pub logits: Option<Layout>,
    /// Their softmax.
    pub scores: Option<Layout>,
    /// Which of q, k, wq, wk, chosen, logits, scores lie in one buffer: those with the same number.
    pub buffers: [usize; 7],
}

impl SeerGateShapes {
    /// A buffer for each, in full length, with or without logits and scores.
    pub fn new(params: &SeerGateParams, q: Layout, k: Layout, wq: Option<Layout>, wk: Layout, scores: bool) -> Self {
        let (seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k) = (None, None, None, None);
        let (chosen, buffers) = (q.clone(), std::array::from_fn(|i| i));
        let (logits, of_scores) = (None, None);
        let all = Self {
            q,
            k,
            wq,
            wk,
            seqlens_q,
            seqlens_k,
            cu_seqlens_q,
            cu_seqlens_k,
            chosen,
            logits,
            scores: of_scores,
            buffers,
        };
        all.with_outputs(params, scores)
    }

    /// With outputs of their own, by these lengths.
    pub fn with_outputs(mut self, params: &SeerGateParams, scores: bool) -> Self {
        let grid = self.grid(params);
        let [rows, cols] = grid.blocks();
        self.chosen = Layout::heads_first(DType::U32, grid.shape());
        let all = Layout::heads_first(DType::F32, [grid.batch, grid.heads, rows, cols]);
        (self.logits, self.scores) = if scores { (Some(all.clone()), Some(all)) } else { (None, None) };
        self
    }

    /// As the inputs are, with outputs of their own.
    pub fn of_inputs(params: &SeerGateParams, inputs: &SeerGateInputs, scores: bool) -> Self {
        let layout = |tensor: &Tensor| tensor.layout().clone();
        let seqlens = |s: Option<&[usize]>| s.map(<[usize]>::to_vec);
        let (wq, wk) = (inputs.wq.map(layout), layout(inputs.wk));
        let all = Self {
            seqlens_q: seqlens(inputs.seqlens_q),
            seqlens_k: seqlens(inputs.seqlens_k),
            cu_seqlens_q: inputs.cu_seqlens_q.as_ref().map(CuSeqlens::shape),
            cu_seqlens_k: inputs.cu_seqlens_k.as_ref().map(CuSeqlens::shape),
            ..Self::new(params, layout(inputs.q), layout(inputs.k), wq, wk, scores)
        };
        all.with_outputs(params, scores)
    }

    /// As the tensors are.
    pub fn of(params: &SeerGateParams, inputs: &SeerGateInputs, to: &SeerGateOutputs) -> Self {
        let layout = |tensor: &Tensor| tensor.layout().clone();
        let SeerGateInputs { q, k, wq, wk, .. } = *inputs;
        let buffers = number_buffers([Some(q), Some(k), wq, Some(wk), Some(to.chosen), to.logits, to.scores]);
        let (logits, scores) = (to.logits.map(layout), to.scores.map(layout));
        Self { chosen: layout(to.chosen), logits, scores, buffers, ..Self::of_inputs(params, inputs, false) }
    }

    /// As attention sees q and k.
    fn attention(&self) -> AttentionShapes {
        AttentionShapes {
            seqlens_q: self.seqlens_q.clone(),
            seqlens_k: self.seqlens_k.clone(),
            cu_seqlens_q: self.cu_seqlens_q.clone(),
            cu_seqlens_k: self.cu_seqlens_k.clone(),
            ..AttentionShapes::new(self.q.clone(), self.k.clone(), self.k.clone())
        }
    }

    /// The grid of the mask.
    pub fn grid(&self, params: &SeerGateParams) -> BlockGrid {
        let [batch, heads, queries, keys] = self.attention().pairs();
        BlockGrid { batch, heads, queries, keys, block: params.block.map(|n| n.max(1)) }
    }

    /// (first query, queries, first key, keys) of each batch entry.
    pub(super) fn sequences(&self) -> Result<Vec<[u32; 4]>> {
        let attention = self.attention();
        check_shapes(&attention)?;
        match (&self.cu_seqlens_q, &self.cu_seqlens_k) {
            (Some(CuSeqlensShape::Host(q)), Some(CuSeqlensShape::Host(k))) => Ok(host_sequences(q, k)),
            (None, None) => Ok(attention.padded()),
            _ => Err(crate::Error::argument("cu_seqlens_q", "on the GPU", "on the host: the gate plans by lengths")),
        }
    }

    pub(super) fn check_outputs(&self, frame: &Frame, grid: &BlockGrid) -> Result<()> {
        grid.check()?;
        let (wanted, of_logits) = (grid.shape(), frame.logits().shape);
        for (name, layout, shape, dtype) in [
            ("chosen", Some(&self.chosen), wanted, DType::U32),
            ("logits", self.logits.as_ref(), of_logits, DType::F32),
            ("scores", self.scores.as_ref(), of_logits, DType::F32),
        ] {
            let Some(layout) = layout else { continue };
            let bound = format!("{shape:?}, by q, k and blocks of {:?}", frame.block);
            require(layout.shape == shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == dtype, &format!("{name}.dtype"), layout.dtype, dtype)?;
            layout.byte_span()?;
            layout.check_output(name)?;
        }
        Ok(())
    }

    /// Where the caller's tensors lie.
    pub(super) fn places(&self) -> Places {
        let Self { q, k, wq, wk, chosen, logits, scores, buffers, .. } = self;
        let all = [
            (Part::Q, Some(q)),
            (Part::K, Some(k)),
            (Part::Wq, wq.as_ref()),
            (Part::Wk, Some(wk)),
            (Part::Chosen, Some(chosen)),
            (Part::Logits, logits.as_ref()),
            (Part::Scores, scores.as_ref()),
        ];
        let mut places = Places::default();
        for ((part, layout), buffer) in all.into_iter().zip(*buffers) {
            if let Some(layout) = layout {
                places = places.with(part, layout, buffer);
            }
        }
        places
    }

    pub(super) fn check_as_prepared(&self, inputs: &SeerGateInputs, to: Option<&SeerGateOutputs>) -> Result<()> {
        for (name, given, prepared) in [
            ("q", Some(inputs.q), Some(&self.q)),
            ("k", Some(inputs.k), Some(&self.k)),
            ("wq", inputs.wq, self.wq.as_ref()),
            ("wk", Some(inputs.wk), Some(&self.wk)),
        ] {
            as_prepared(name, given, prepared)?;
        }
        if let Some(to) = to {
            as_prepared("chosen", Some(to.chosen), Some(&self.chosen))?;
            as_prepared("logits", to.logits, self.logits.as_ref())?;
            as_prepared("scores", to.scores, self.scores.as_ref())?;
        }
        let dummy = crate::AttentionInputs {
            seqlens_q: inputs.seqlens_q,
            seqlens_k: inputs.seqlens_k,
            cu_seqlens_q: inputs.cu_seqlens_q,
            cu_seqlens_k: inputs.cu_seqlens_k,
            ..crate::AttentionInputs::new(inputs.q, inputs.k, inputs.k)
        };
        self.attention().check_as_prepared(&dummy)
    }
}
