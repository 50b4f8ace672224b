//! The calls that a training loop makes.

use super::{AttentionGradients, BackwardShapes, OutputGradients};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::softmax::{Attention, AttentionInputs, AttentionOutputs, AttentionParams, AttentionShapes};
use crate::{BlockMask, CuSeqlens, DType, Layout, Result, Tensor};

impl<P: AttentionParams> Attention<P> {
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
        let seqlens = [inputs.seqlens_q, inputs.seqlens_k].map(|s| s.map(<[usize]>::to_vec));
        let offsets = [inputs.cu_seqlens_q, inputs.cu_seqlens_k].map(|side| {
            side.map(|side| match side {
                CuSeqlens::Host(offsets) => Offsets::Host(offsets.to_vec()),
                CuSeqlens::Gpu { offsets, max_seqlen } => Offsets::Gpu(offsets.clone(), max_seqlen),
            })
        });
        let saved = AttentionSaved {
            inputs: [inputs.q, inputs.k, inputs.v].map(Tensor::clone),
            optional: [inputs.bias, inputs.mask, inputs.additional_k, inputs.additional_v]
                .map(Option::<&Tensor>::cloned),
            seqlens,
            offsets,
            block_mask: inputs.block_mask.cloned(),
            outputs: [out.clone(), lse],
        };
        Ok((out, saved))
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
        let gpu = self.gpu();
        check_device("q", &saved.inputs[0], gpu)?;
        for (name, tensor) in [("dout", Some(from.dout)), ("dlse", from.dlse), ("dq_so_far", from.dq_so_far)] {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, gpu))?;
        }
        let (inputs, outputs) = (saved.inputs(), saved.outputs());
        let like = async |tensor: &Tensor| {
            let Layout { dtype, shape, .. } = tensor.layout().clone();
            Tensor::empty(gpu, Layout::heads_first(dtype, shape)).await
        };
        let dbias = match inputs.bias {
            None => None,
            Some(_) => {
                let shape = AttentionShapes::of_inputs(&inputs).bias_shape();
                Some(Tensor::empty(gpu, Layout::heads_first(DType::F32, shape)).await?)
            }
        };
        let like_some = async |tensor: Option<&Tensor>| match tensor {
            Some(tensor) => like(tensor).await.map(Some),
            None => Ok(None),
        };
        let to = AttentionGradients {
            dq: like(inputs.q).await?,
            dk: like(inputs.k).await?,
            dv: like(inputs.v).await?,
            dbias,
            d_additional_k: like_some(inputs.additional_k).await?,
            d_additional_v: like_some(inputs.additional_v).await?,
        };
        let shapes = BackwardShapes::of(&inputs, &outputs, from, &to);
        let prepared = self.prepared_backward(&shapes).await?;
        let verdict = prepared.submit_slices(&inputs, &outputs, from, &to).await?;
        let blocks = inputs.block_mask.map_or([None, None], BlockMask::tensors);
        Ok(to.map(|tensor| {
            let tensor = verdict.iter().cloned().fold(tensor, Tensor::under);
            blocks.into_iter().flatten().fold(tensor, Tensor::under_all)
        }))
    }
}

impl AttentionGradients {
    fn map(self, change: impl Fn(Tensor) -> Tensor) -> Self {
        Self {
            dq: change(self.dq),
            dk: change(self.dk),
            dv: change(self.dv),
            dbias: self.dbias.map(&change),
            d_additional_k: self.d_additional_k.map(&change),
            d_additional_v: self.d_additional_v.map(&change),
        }
    }
}

/// What a forward pass leaves for the backward pass. It shares the tensors with whoever else holds them: they must not be
/// written in between.
#[derive(Clone, Debug)]
pub struct AttentionSaved {
    inputs: [Tensor; 3],
    optional: [Option<Tensor>; 4],
    seqlens: [Option<Vec<usize>>; 2],
    offsets: [Option<Offsets>; 2],
    block_mask: Option<BlockMask>,
    outputs: [Tensor; 2],
}

#[derive(Clone, Debug)]
enum Offsets {
    Host(Vec<u32>),
    Gpu(Tensor, usize),
}

impl AttentionSaved {
    /// The forward pass's inputs.
    pub fn inputs(&self) -> AttentionInputs<'_> {
        let side = |i: usize| {
            self.offsets[i].as_ref().map(|side| match side {
                Offsets::Host(offsets) => CuSeqlens::Host(offsets),
                Offsets::Gpu(offsets, max_seqlen) => CuSeqlens::Gpu { offsets, max_seqlen: *max_seqlen },
            })
        };
        let [q, k, v] = &self.inputs;
        let [bias, mask, additional_k, additional_v] = self.optional.each_ref().map(Option::as_ref);
        AttentionInputs {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens_q: side(0),
            cu_seqlens_k: side(1),
            bias,
            mask,
            additional_k,
            additional_v,
            block_mask: self.block_mask.as_ref(),
            ..AttentionInputs::new(q, k, v)
        }
    }

    /// Its outputs.
    pub fn outputs(&self) -> AttentionOutputs<'_> {
        let [out, lse] = &self.outputs;
        AttentionOutputs { out, lse }
    }

    /// The same as part of a merged result: with the merged output and log-sum-exp, each part's ordinary backward pass gives
    /// its share of the exact gradients.
    pub fn merged(self, out: &Tensor, lse: &Tensor) -> Self {
        Self { outputs: [out.clone(), lse.clone()], ..self }
    }
}
