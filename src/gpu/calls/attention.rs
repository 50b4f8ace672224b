//! Softmax attention on a device, forward and backward.

mod families;
mod tensors;

pub use families::{BlockSparseAttention, FlashAttention, NeighborhoodAttention, TokenListAttention};
pub use tensors::{AttentionGradients, AttentionInputs, AttentionOutputs, OutputGradients};

use super::hook;
#[cfg(doc)]
use crate::Error;
use crate::gpu::call::Call;
use crate::gpu::forward::{Cache, Planner};
use crate::program::{Name, Program};
use crate::softmax::AttentionParams;
use crate::{
    BlockMask, BlockSparseParams, DType, FlashParams, Gpu, Layout, NeighborhoodParams, Prepared, Result, Shapes, Tensor,
};
use std::borrow::Cow;

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
    /// [`Error::Argument`] for a number that is not finite or is out of range, for an invalid name in a hook, and for a hook's buffer that
    /// cannot be bound; [`Error::OtherDevice`] for a hook's buffer of another device.
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
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &self.carried).await
    }

    /// The same for gradients. A call is `(inputs, outputs, from, to)`: [`AttentionInputs`], [`AttentionOutputs`], [`OutputGradients`],
    /// [`AttentionGradients`].
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_backward`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan_backward(&shapes.into())?, &self.carried).await
    }

    /// Allocates the results for these inputs: the output, with q's type and the given layout ([`Layout::heads_first`] or
    /// [`Layout::heads_last`]), and the log-sum-exp.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan`]; [`Error::OutOfMemory`], [`Error::Limit`], [`Error::DeviceLost`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Layout, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let x = Tensor::upload(&gpu, [1, 2, 3, 4], DType::F32, &[1.0; 24]).await?;
    /// let attention = FlashAttention::new(&gpu, FlashParams::causal())?;
    /// let inputs = AttentionInputs::new(&x, &x, &x);
    /// let outputs = attention.outputs_for(&inputs, Layout::heads_last).await?;
    /// let prepared = attention.prepare((&inputs, &outputs)).await?; // once for these shapes
    /// let mut encoder = gpu.device().create_command_encoder(&Default::default());
    /// prepared.encode(&mut encoder, (&inputs, &outputs))?; // as often as wanted
    /// gpu.queue().submit([encoder.finish()]);
    /// assert_eq!(outputs.out.read().await?, [1.0; 24]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn outputs_for(
        &self,
        inputs: &AttentionInputs<'_>,
        layout: fn(DType, [usize; 4]) -> Layout,
    ) -> Result<AttentionOutputs> {
        let program = self.plan(&inputs.into())?;
        let of = |name: &str| program.tensor(name).expect("a tensor of each plan").layout.clone();
        let (out, lse) = (of("out"), of("lse"));
        let out = Tensor::empty(&self.gpu, layout(out.dtype, out.shape)).await?;
        Ok(AttentionOutputs { out, lse: Tensor::empty(&self.gpu, lse).await? })
    }

    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type) and the log-sum-exp of each row (f32
    /// [batch, heads_q, queries, 1]), and submits. What was prepared for the shapes is kept. If lengths or offsets on the GPU are wrong,
    /// reading a result is an error.
    ///
    /// # Errors
    /// Those of [`Attention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward_with_lse(&self, inputs: &AttentionInputs<'_>) -> Result<(Tensor, Tensor)> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "forward", plan, &self.carried, inputs, &[], &[]).await?;
        Ok((found.take("out"), found.take("lse")))
    }

    /// The forward pass, which also returns what the backward pass needs.
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
        let call = (inputs, AttentionOutputs::new(&out, &lse));
        let tensors = call.tensors().into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
        let numbers = call.numbers().into_iter().map(|(name, numbers)| (name, numbers.into_owned())).collect();
        Ok((out.clone(), AttentionSaved { tensors, numbers }))
    }

    /// The gradients of Σ dout · out in one call: allocates them, with the inputs' types, and submits. If lengths or
    /// offsets on the GPU are wrong, reading a gradient is an error.
    ///
    /// # Errors
    /// Those of [`Attention::prepare_backward`]; [`Error::OtherDevice`].
    pub async fn backward(&self, saved: &AttentionSaved, dout: &Tensor) -> Result<AttentionGradients> {
        self.backward_with_lse(saved, &OutputGradients::new(dout)).await
    }

    /// The same where the log-sum-exp has a gradient too: the gradients of Σ dout · out + Σ dlse · lse. For merged results, give each part
    /// the merged output and log-sum-exp ([`AttentionSaved::merged`]).
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

impl<P: AttentionParams> Attention<P> {
    /// What transposed weights would run for these shapes.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_transposed`].
    pub fn plan_transposed(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan_transposed(self.gpu.caps(), shapes)
    }

    /// Compiles and uploads all that transposed weights of these shapes need. A call has the tensors that
    /// [`AttentionParams::plan_transposed`] names.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_transposed`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare_transposed(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan_transposed(&shapes.into())?, &self.carried).await
    }

    /// Weights transposed: `out[j] = Σ_i p[i][j] · u[i]`, over the query heads that share a key head, of u [batch, heads_q, queries, width] to
    /// [batch, heads_kv, keys, width]: what queries send instead of what they gather (DependencyViT, arXiv 2304.03282). It is dv of a
    /// backward pass with dout = u, alone; values do not count.
    ///
    /// Its gradients need nothing new: with g the gradient of `out`, attention with g for values gives that of u as its output, and its backward
    /// pass with dout = u gives dq and dk.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let x = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[0.0; 2]).await?;
    /// let u = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[2.0, 6.0]).await?;
    /// let attention = FlashAttention::new(&gpu, FlashParams::causal())?;
    /// let (_, saved) = attention.forward_for_training(&AttentionInputs::new(&x, &x, &x)).await?;
    /// // The first query gives all to the first key, the second half to each.
    /// assert_eq!(attention.transposed(&saved, &u).await?.read().await?, [5.0, 3.0]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_transposed`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherDevice`].
    pub async fn transposed(&self, saved: &AttentionSaved, u: &Tensor) -> Result<Tensor> {
        let plan: Planner = &|caps, shapes| self.params.plan_transposed(caps, shapes);
        let unread = |name: &Name| ["v", "out"].contains(&&**name);
        let tensors = saved.tensors.iter().filter(|(name, _)| !unread(name)).cloned().collect();
        let call = (AttentionSaved { tensors, numbers: saved.numbers.clone() }, [("u", u)]);
        Ok(self.gpu.forward(&self.cache, "transposed", plan, &self.carried, &call, &[], &[]).await?.take("out"))
    }
}

impl Attention<FlashParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type) and submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v)).await?.0)
    }
}

impl Attention<NeighborhoodParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, tokens, value_dim], of q's type) and submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v)).await?.0)
    }
}

impl Attention<BlockSparseParams> {
    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type) and submits.
    ///
    /// # Errors
    /// Those of [`Attention::forward_with_lse`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &BlockMask) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v).with_block_mask(mask)).await?.0)
    }
}

/// What a forward pass keeps for the backward pass. It shares the tensors with their other owners; nothing may write to them before the
/// backward pass.
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
