//! The softmax engine that the families share, from a call to the GPU: plan, prepare, encode, forward and backward. A family
//! brings its params and who sees whom ([`tiles::Tiles`]).

mod additional;
pub(crate) mod attention;
mod backward;
mod decode;
mod params;
mod plan;
mod portable;
mod run;
pub(crate) mod stage;
pub(crate) mod tiles;
mod uniforms;

pub use attention::Attention;
pub use backward::{
    AttentionGradients, AttentionSaved, BackwardPlan, BackwardPrepared, BackwardShapes, OutputGradients,
};
pub use params::{AttentionParams, Order, ScoreParams, Sees};
pub use plan::AttentionPlan;
pub(crate) use portable::Portable;
pub use run::AttentionPrepared;
pub(crate) use run::offsets;

use crate::error::require;
use crate::{BlockMask, BlockMaskShape, CuSeqlens, CuSeqlensShape, DType, Layout, Result, Tensor, packed};

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
    /// Which keys are seen, besides all else: u8 [batch, heads_q, queries, keys], zero for not; repeated likewise.
    pub mask: Option<&'a Tensor>,
    /// Keys that every query sees besides, [batch, heads_kv, any number, head_dim], in the same softmax. Scale and soft cap
    /// hold for them, nothing else. Goes with `additional_v`, and not with packed sequences.
    pub additional_k: Option<&'a Tensor>,
    /// Their values, [batch, heads_kv, the same number, value_dim].
    pub additional_v: Option<&'a Tensor>,
    /// Which blocks of queries and keys are computed at all: for [`crate::BlockSparseAttention`], which needs one.
    pub block_mask: Option<&'a BlockMask>,
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

/// Types, shapes and strides: all that planning looks at besides the params.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShapes {
    /// Queries [batch, heads_q, queries, head_dim].
    pub q: Layout,
    /// Keys [batch, heads_kv, keys, head_dim].
    pub k: Layout,
    /// Values [batch, heads_kv, keys, value_dim].
    pub v: Layout,
    /// Output [batch, heads_q, queries, value_dim].
    pub out: Layout,
    /// Log-sum-exp, f32 [batch, heads_q, queries, 1].
    pub lse: Layout,
    /// Queries of each batch entry, at most `queries`.
    pub seqlens_q: Option<Vec<usize>>,
    /// Keys of each batch entry, at most `keys`.
    pub seqlens_k: Option<Vec<usize>>,
    /// Packed queries.
    pub cu_seqlens_q: Option<CuSeqlensShape>,
    /// Packed keys and values.
    pub cu_seqlens_k: Option<CuSeqlensShape>,
    /// Additive bias [batch, heads_q, queries, keys].
    pub bias: Option<Layout>,
    /// Boolean mask, u8 [batch, heads_q, queries, keys].
    pub mask: Option<Layout>,
    /// Additional keys [batch, heads_kv, any number, head_dim].
    pub additional_k: Option<Layout>,
    /// Their values [batch, heads_kv, the same number, value_dim].
    pub additional_v: Option<Layout>,
    /// Which blocks are computed.
    pub block_mask: Option<BlockMaskShape>,
    /// Which of q, k, v, out, lse, bias, mask, additional_k, additional_v, the block mask's chosen and full blocks lie in one
    /// buffer: those with the same number. Matters for an output's buffer only.
    pub buffers: [usize; 11],
}

impl AttentionShapes {
    /// A buffer for each, outputs contiguous ([`Layout::heads_first`]), the output of q's type.
    pub fn new(q: Layout, k: Layout, v: Layout) -> Self {
        let [batch, heads, queries, _] = q.shape;
        let out = Layout::heads_first(q.dtype, [batch, heads, queries, v.shape[3]]);
        let lse = Layout::heads_first(DType::F32, [batch, heads, queries, 1]);
        let buffers = std::array::from_fn(|i| i);
        Self {
            q,
            k,
            v,
            out,
            lse,
            seqlens_q: None,
            seqlens_k: None,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            bias: None,
            mask: None,
            additional_k: None,
            additional_v: None,
            block_mask: None,
            buffers,
        }
    }

    /// As the inputs are, with outputs as in [`AttentionShapes::new`].
    pub fn of_inputs(inputs: &AttentionInputs) -> Self {
        let layout = |t: Option<&Tensor>| t.map(|t| t.layout().clone());
        let seqlens = |s: Option<&[usize]>| s.map(<[usize]>::to_vec);
        Self {
            seqlens_q: seqlens(inputs.seqlens_q),
            seqlens_k: seqlens(inputs.seqlens_k),
            cu_seqlens_q: inputs.cu_seqlens_q.as_ref().map(CuSeqlens::shape),
            cu_seqlens_k: inputs.cu_seqlens_k.as_ref().map(CuSeqlens::shape),
            bias: layout(inputs.bias),
            mask: layout(inputs.mask),
            additional_k: layout(inputs.additional_k),
            additional_v: layout(inputs.additional_v),
            block_mask: inputs.block_mask.map(BlockMask::shape),
            ..Self::new(inputs.q.layout().clone(), inputs.k.layout().clone(), inputs.v.layout().clone())
        }
    }

    /// As the tensors are.
    pub fn of(inputs: &AttentionInputs, outputs: &AttentionOutputs) -> Self {
        Self {
            out: outputs.out.layout().clone(),
            lse: outputs.lse.layout().clone(),
            buffers: crate::arguments::number_buffers(slots(inputs, outputs)),
            ..Self::of_inputs(inputs)
        }
    }

    /// (0, queries, 0, keys) of each batch entry, where they are not packed.
    pub(crate) fn padded(&self) -> Vec<[u32; 4]> {
        let length = |lengths: &Option<Vec<usize>>, b: usize, all: usize| lengths.as_ref().map_or(all, |l| l[b]) as u32;
        let [batch, _, queries, _] = self.q.shape;
        let of = |b| [0, length(&self.seqlens_q, b, queries), 0, length(&self.seqlens_k, b, self.k.shape[2])];
        (0..batch).map(of).collect()
    }

    /// Both sides of packed sequences.
    pub(crate) fn packed(&self) -> Option<[&CuSeqlensShape; 2]> {
        Some([self.cu_seqlens_q.as_ref()?, self.cu_seqlens_k.as_ref()?])
    }

    /// The shape of the bias without what is only repeated: that of its gradient.
    fn bias_shape(&self) -> [usize; 4] {
        let pairs = self.pairs();
        let once = |i: usize, bias: &Layout| if i < 3 && bias.strides[i] == 0 { pairs[i].min(1) } else { pairs[i] };
        self.bias.as_ref().map_or([0; 4], |bias| std::array::from_fn(|i| once(i, bias)))
    }

    /// The chosen and the full blocks.
    fn block_layouts(&self) -> [Option<&Layout>; 2] {
        self.block_mask.as_ref().map_or([None, None], |mask| [mask.chosen.as_ref(), mask.full.as_ref()])
    }

    /// Query heads to a head of the block mask.
    fn block_group(&self) -> usize {
        self.block_mask.as_ref().map_or(1, |mask| mask.group(self.q.shape[1]))
    }

    /// [batch, heads_q, queries, keys] of a bias or mask.
    pub(crate) fn pairs(&self) -> [usize; 4] {
        let heads = self.q.shape[1];
        match self.packed() {
            None => [self.q.shape[0], heads, self.q.shape[2], self.k.shape[2]],
            Some([q, k]) => [q.sequences(), heads, q.max_seqlen(), k.max_seqlen()],
        }
    }
}

/// In the order of [`AttentionShapes::buffers`].
fn slots<'a>(inputs: &AttentionInputs<'a>, outputs: &AttentionOutputs<'a>) -> [Option<&'a Tensor>; 11] {
    let AttentionInputs { q, k, v, bias, mask, additional_k, additional_v, block_mask, .. } = inputs;
    let AttentionOutputs { out, lse } = outputs;
    let [blocks, full] = block_mask.map_or([None, None], BlockMask::tensors);
    [Some(*q), Some(*k), Some(*v), Some(*out), Some(*lse), *bias, *mask, *additional_k, *additional_v, blocks, full]
}

/// Largest head dimension and value width.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Largest sequence: positions and their differences are 32-bit integers in the shader.
pub(crate) const MAX_SEQUENCE: usize = 1 << 30;

/// Shapes that fit together, lengths within the tensors, outputs that can be written.
pub(crate) fn check_shapes(shapes: &AttentionShapes) -> Result<()> {
    let AttentionShapes { q, k, v, out, lse, .. } = shapes;
    let [batch, heads_q, queries, head_dim] = q.shape;
    let [_, heads_kv, keys, _] = k.shape;
    let same = |what: &str, value: usize, with: &str, expected: usize| {
        require(value == expected, what, value, format!("{expected}, as in {with}"))
    };
    for (what, value) in [("q.shape[3] (head_dim)", head_dim), ("v.shape[3] (value width)", v.shape[3])] {
        require((1..=MAX_HEAD_DIM).contains(&value), what, value, format!("within 1..={MAX_HEAD_DIM}"))?;
    }
    for (what, value) in [("q.shape[2] (queries)", queries), ("k.shape[2] (keys)", keys)] {
        require(value <= MAX_SEQUENCE, what, value, format!("at most {MAX_SEQUENCE}"))?;
    }
    require(heads_kv > 0, "k.shape[1] (heads_kv)", heads_kv, "at least 1")?;
    let multiple = format!("a multiple of heads_kv = {heads_kv}, at least once");
    require(heads_q > 0 && heads_q.is_multiple_of(heads_kv), "q.shape[1] (heads_q)", heads_q, multiple)?;
    same("k.shape[0] (batch)", k.shape[0], "q", batch)?;
    same("k.shape[3] (head_dim)", k.shape[3], "q", head_dim)?;
    same("v.shape[0] (batch)", v.shape[0], "q", batch)?;
    same("v.shape[1] (heads_kv)", v.shape[1], "k", heads_kv)?;
    same("v.shape[2] (keys)", v.shape[2], "k", keys)?;
    let rows = format!("[{batch}, {heads_q}, {queries}, {}], by q and v", v.shape[3]);
    require(out.shape == [batch, heads_q, queries, v.shape[3]], "out.shape", format!("{:?}", out.shape), rows)?;
    let rows = format!("[{batch}, {heads_q}, {queries}, 1], by q");
    require(lse.shape == [batch, heads_q, queries, 1], "lse.shape", format!("{:?}", lse.shape), rows)?;
    require(lse.dtype == DType::F32, "lse.dtype", lse.dtype, "f32")?;
    check_packed(shapes)?;
    check_lengths("seqlens_q", shapes.seqlens_q.as_deref(), batch, queries)?;
    check_lengths("seqlens_k", shapes.seqlens_k.as_deref(), batch, keys)?;
    for (name, layout) in [("q", q), ("k", k), ("v", v), ("out", out), ("bias", shapes.bias.as_ref().unwrap_or(q))] {
        require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
    }
    let pairs = shapes.pairs();
    for (name, layout) in [("bias", &shapes.bias), ("mask", &shapes.mask)] {
        let shape = layout.as_ref().map_or(pairs, |layout| layout.shape);
        let bound = format!("{pairs:?}, by q and k; `Layout::expand` repeats dimensions of 1");
        require(shape == pairs, &format!("{name}.shape"), format!("{shape:?}"), bound)?;
    }
    let mask = shapes.mask.as_ref().map_or(DType::U8, |mask| mask.dtype);
    require(mask == DType::U8, "mask.dtype", mask, "u8")?;
    shapes.check_additional()?;
    let more = [&shapes.bias, &shapes.mask, &shapes.additional_k, &shapes.additional_v];
    for layout in [q, k, v, out, lse].into_iter().chain(more.into_iter().flatten()) {
        layout.byte_span()?;
    }
    out.check_output("out")?;
    lse.check_output("lse")
}

fn check_packed(shapes: &AttentionShapes) -> Result<()> {
    let AttentionShapes { cu_seqlens_q: q, cu_seqlens_k: k, seqlens_q, seqlens_k, .. } = shapes;
    for (name, given, other) in [("cu_seqlens_q", q, "cu_seqlens_k"), ("cu_seqlens_k", k, "cu_seqlens_q")] {
        require(given.is_some() || (q.is_none() && k.is_none()), name, "unset", format!("set, as {other} is"))?;
    }
    let Some(sides) = shapes.packed() else { return Ok(()) };
    for (name, lengths) in [("seqlens_q", seqlens_q), ("seqlens_k", seqlens_k)] {
        require(lengths.is_none(), name, "set", "unset with cu_seqlens_q and cu_seqlens_k, which say the lengths")?;
    }
    let batch = shapes.q.shape[0];
    require(batch == 1, "q.shape[0] (batch)", batch, "1 with packed sequences")?;
    packed::check(sides, [shapes.q.shape[2], shapes.k.shape[2]])
}

pub(crate) fn check_lengths(name: &str, lengths: Option<&[usize]>, batch: usize, most: usize) -> Result<()> {
    let Some(lengths) = lengths else { return Ok(()) };
    require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), format!("{batch}, one a batch entry"))?;
    for (i, &length) in lengths.iter().enumerate() {
        require(length <= most, &format!("{name}[{i}]"), length, format!("at most {most}, the tensor's length"))?;
    }
    Ok(())
}
