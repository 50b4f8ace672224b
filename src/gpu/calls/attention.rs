//! Softmax attention on a device: inputs and outputs, and calls, forward and backward.

use super::block_mask::BlockMask;
use super::hook;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::{Cache, Planner};
use crate::program::{Name, Program};
use crate::softmax::AttentionParams;
use crate::{BlockSparseParams, FlashParams, Gpu, NeighborhoodParams, Prepared, Result, Shapes, Tensor};
#[cfg(doc)]
use crate::{Error, Layout};
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

/// Flash attention with fixed params on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Tensor};
/// let gpu = Gpu::request().await?;
/// // Two sequences in one batch, of 5 and 2 tokens: the second is padded, and padding is not seen.
/// let x = Tensor::upload(&gpu, [2, 1, 5, 8], DType::F32, &[1.0; 80]).await?;
/// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(0.0), ..Default::default() })?;
/// let inputs = AttentionInputs { seqlens_k: Some(&[5, 2]), ..AttentionInputs::new(&x, &x, &x) };
/// let (_, lse) = attention.forward_with_lse(&inputs).await?;
/// let lse = lse.read().await?; // with all scores 0: the logarithm of the number of keys
/// assert!((lse[0] - 5f32.ln()).abs() < 1e-6 && (lse[5] - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type FlashAttention = Attention<FlashParams>;

/// Neighborhood attention with fixed params on one device: each query sees the window of its nearest keys on every axis,
/// shifted inwards at a border so that it keeps its size. Tokens are the positions of a grid, row-major: [batch, heads,
/// tokens, head_dim]. Takes q, k, v and no lengths, packed sequences, bias or mask; see [`NeighborhoodParams`].
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor};
/// let gpu = Gpu::request().await?;
/// // A picture of 3 × 5 positions, windows of 3 × 3. With all scores 0 the output is the mean of the window.
/// let axes = vec![NeighborhoodAxis::new(3, 3), NeighborhoodAxis::new(5, 3)];
/// let params = NeighborhoodParams { axes, scale: Some(0.0), ..Default::default() };
/// let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
/// let x = Tensor::upload(&gpu, [1, 1, 15, 1], DType::F32, &values).await?;
/// let out = NeighborhoodAttention::new(&gpu, params)?.forward(&x, &x, &x).await?.read().await?;
/// let expected = [6.0, 6.0, 7.0, 8.0, 8.0]; // columns 0 to 2, 0 to 2, 1 to 3, 2 to 4, 2 to 4 of all three rows
/// assert!(out.iter().zip(expected.iter().cycle()).all(|(x, y)| (x - y).abs() < 1e-5));
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
///
/// For users of NATTEN: `na1d`, `na2d` and `na3d` are one, two and three axes.
///
/// | NATTEN | here |
/// |---|---|
/// | `query`, `key`, `value` [batch, *space, heads, dim] | the same memory as a tensor of [`crate::Layout::heads_last`], [batch, heads, tokens, dim] |
/// | `kernel_size` | `window` of each axis |
/// | `stride`, `dilation`, `is_causal` | `stride`, `dilation`, `causal` of each axis |
/// | `scale` | `scale` |
/// | `additional_keys`, `additional_values` | `additional_k`, `additional_v` of [`AttentionInputs`] |
/// | `return_lse` | [`Attention::forward_with_lse`] |
/// | `q_tile_shape`, `kv_tile_shape`, `backend` | chosen by the plan, which says what it chose |
pub type NeighborhoodAttention = Attention<NeighborhoodParams>;

/// Block-sparse attention with fixed params on one device: `out = softmax(score(scale · q kᵀ)) v` over the keys of the blocks
/// that a [`BlockMask`] has chosen for each head and block of queries, less what a causal mask and the lengths take away. What
/// is not chosen is never computed. A row that sees nothing has output 0 and LSE −∞.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{AttentionInputs, BlockGrid, BlockMask, BlockSparseAttention, BlockSparseParams, Gpu, Tensor, DType};
/// let gpu = Gpu::request().await?;
/// // 4 queries and 6 keys in blocks of 2 × 2: the first block of queries sees the last block of keys, the second the first.
/// let grid = BlockGrid { batch: 1, heads: 1, queries: 4, keys: 6, block: [2, 2] };
/// let mask = BlockMask::from_fn(&gpu, grid, |_batch, _head, i, j| i + j == 2 && j == 2 || i == 1 && j == 0).await?;
/// let q = Tensor::upload(&gpu, [1, 1, 4, 1], DType::F32, &[0.0; 4]).await?;
/// let k = Tensor::upload(&gpu, [1, 1, 6, 1], DType::F32, &[0.0; 6]).await?;
/// let v = Tensor::upload(&gpu, [1, 1, 6, 1], DType::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).await?;
/// let attention = BlockSparseAttention::new(&gpu, BlockSparseParams::default())?;
/// let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
/// let (out, _) = attention.forward_with_lse(&inputs).await?;
/// assert_eq!(out.read().await?, [5.5, 5.5, 1.5, 1.5]); // all scores are 0: means of 5, 6 and of 1, 2
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub type BlockSparseAttention = Attention<BlockSparseParams>;

/// Attention with fixed params on one device: see [`FlashAttention`], [`NeighborhoodAttention`] and [`BlockSparseAttention`].
#[derive(Debug)]
pub struct Attention<P> {
    gpu: Gpu,
    params: P,
    /// What the hooks carry.
    carried: Vec<(Name, Tensor)>,
    cache: Cache,
}

impl<P: AttentionParams> Attention<P> {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number that is not finite or not in range, for a name in a hook that is none, and for a
    /// hook's buffer that cannot be bound; [`Error::OtherDevice`] for one of another device.
    pub fn new(gpu: &Gpu, params: P) -> Result<Self> {
        let scores = params.scores();
        params.visibility()?;
        scores.check(gpu.caps())?;
        let hooks = scores.hooks();
        hook::check_devices(gpu, &hooks)?;
        Ok(Self { gpu: gpu.clone(), params, carried: hook::defaults(&hooks), cache: Cache::default() })
    }

    /// The params.
    pub fn params(&self) -> &P {
        &self.params
    }

    /// What would run for these shapes, in words and as WGSL.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// The same for gradients.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_backward`].
    pub fn plan_backward(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan_backward(self.gpu.caps(), shapes)
    }

    /// Compiles and uploads all that these shapes need, so that [`Prepared::encode`] creates nothing but bind groups. A call is
    /// `(inputs, outputs)`: [`AttentionInputs`], [`AttentionOutputs`].
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &Shapes) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(shapes)?, &self.carried).await
    }

    /// The same for gradients. A call is `(inputs, outputs, from, to)`: [`AttentionInputs`], [`AttentionOutputs`], [`OutputGradients`],
    /// [`AttentionGradients`].
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_backward`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: &Shapes) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan_backward(shapes)?, &self.carried).await
    }

    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type) and the log-sum-exp of each row
    /// (f32 [batch, heads_q, queries, 1]), and submits. What was prepared for the shapes is kept. Where packed sequences' offsets are
    /// on the GPU and wrong, reading a result is an error.
    ///
    /// # Errors
    /// Those of [`Attention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward_with_lse(&self, inputs: &AttentionInputs<'_>) -> Result<(Tensor, Tensor)> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "forward", plan, &self.carried, inputs, &[], &[]).await?;
        Ok((found.take("out"), found.take("lse")))
    }

    /// The forward pass, with all that the backward pass needs of it.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, FlashAttention, AttentionInputs, FlashParams, Gpu, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let q = Tensor::upload(&gpu, [1, 1, 1, 2], DType::F32, &[1.0, 0.0]).await?;
    /// let k = Tensor::upload(&gpu, [1, 1, 2, 2], DType::F32, &[0.0; 4]).await?;
    /// let v = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[1.0, 5.0]).await?;
    /// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(1.0), ..Default::default() })?;
    /// let (out, saved) = attention.forward_for_training(&AttentionInputs::new(&q, &k, &v)).await?;
    /// assert_eq!(out.read().await?, [3.0]); // both weights are 1/2
    /// let dout = Tensor::upload(&gpu, [1, 1, 1, 1], DType::F32, &[1.0]).await?;
    /// let gradients = attention.backward(&saved, &dout).await?;
    /// assert_eq!(gradients.dv.read().await?, [0.5, 0.5]);
    /// assert_eq!(gradients.dk.read().await?, [-1.0, 0.0, 1.0, 0.0]); // 1/2 · (1 − 3) · q, 1/2 · (5 − 3) · q
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn forward_for_training(&self, inputs: &AttentionInputs<'_>) -> Result<(Tensor, AttentionSaved)> {
        let (out, lse) = self.forward_with_lse(inputs).await?;
        let call = (inputs, AttentionOutputs { out: &out, lse: &lse });
        let tensors = call.tensors().into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
        let numbers = call.numbers().into_iter().map(|(name, numbers)| (name, numbers.into_owned())).collect();
        Ok((out.clone(), AttentionSaved { tensors, numbers }))
    }

    /// The gradients of Σ dout · out in one call: allocates them, of the inputs' types, and submits. Where packed sequences'
    /// offsets are on the GPU and wrong, reading a gradient is an error.
    ///
    /// # Errors
    /// Those of [`Attention::prepare_backward`]; [`Error::OtherDevice`].
    pub async fn backward(&self, saved: &AttentionSaved, dout: &Tensor) -> Result<AttentionGradients> {
        self.backward_with_lse(saved, &OutputGradients::new(dout)).await
    }

    /// The same where the log-sum-exp has a gradient too: those of Σ dout · out + Σ dlse · lse. Results that were merged:
    /// give each part the merged output and log-sum-exp ([`AttentionSaved::merged`]).
    ///
    /// # Errors
    /// Those of [`Attention::backward`].
    pub async fn backward_with_lse(
        &self,
        saved: &AttentionSaved,
        from: &OutputGradients<'_>,
    ) -> Result<AttentionGradients> {
        let plan: Planner = &|caps, shapes| self.params.plan_backward(caps, shapes);
        let wanted: &[&str] = if saved.has("bias") { &["dbias"] } else { &[] };
        let call = (saved, from);
        let mut found = self.gpu.forward(&self.cache, "backward", plan, &self.carried, &call, &[], wanted).await?;
        Ok(AttentionGradients {
            dq: found.take("dq"),
            dk: found.take("dk"),
            dv: found.take("dv"),
            dbias: found.take_if("dbias"),
            d_additional_k: found.take_if("d_additional_k"),
            d_additional_v: found.take_if("d_additional_v"),
        })
    }
}

impl Attention<FlashParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type), submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v)).await?.0)
    }
}

impl Attention<NeighborhoodParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, tokens, value_dim], of q's type), submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v)).await?.0)
    }
}

impl Attention<BlockSparseParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type), submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &BlockMask) -> Result<Tensor> {
        let inputs = AttentionInputs { block_mask: Some(mask), ..AttentionInputs::new(q, k, v) };
        Ok(self.forward_with_lse(&inputs).await?.0)
    }
}

/// What a forward pass leaves for the backward pass. It shares the tensors with whoever else holds them: they must not be
/// written in between.
#[derive(Clone, Debug)]
pub struct AttentionSaved {
    tensors: Vec<(Name, Tensor)>,
    numbers: Vec<(Name, Vec<usize>)>,
}

impl AttentionSaved {
    fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|(other, _)| other == name)
    }

    /// The same as part of a merged result: with the merged output and log-sum-exp, each part's ordinary backward pass gives
    /// its share of the exact gradients.
    pub fn merged(mut self, out: &Tensor, lse: &Tensor) -> Self {
        for (name, tensor) in &mut self.tensors {
            match &**name {
                "out" => *tensor = out.clone(),
                "lse" => *tensor = lse.clone(),
                _ => {}
            }
        }
        self
    }
}

/// The inputs and the outputs.
impl Call for AttentionSaved {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.numbers.iter().map(|(name, numbers)| (name.clone(), (&numbers[..]).into())).collect()
    }
}
