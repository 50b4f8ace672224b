//! Attention in one call: what is prepared is kept.

use super::tiles::Tiles;
use super::{
    AttentionInputs, AttentionParams, AttentionPlan, AttentionPrepared, AttentionShapes, BackwardPrepared,
    BackwardShapes, Order,
};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::{BlockMask, CuSeqlens, Gpu, Result, Tensor, hook};
use std::sync::{Arc, Mutex};

/// How many shapes [`Attention::forward`] keeps prepared.
const PREPARED: usize = 32;

/// Attention with fixed params on one device: see [`crate::FlashAttention`] and [`crate::NeighborhoodAttention`].
#[derive(Debug)]
pub struct Attention<P> {
    gpu: Gpu,
    params: P,
    order: Order,
    prepared: Kept<AttentionShapes, AttentionPrepared>,
    prepared_backward: Kept<BackwardShapes, BackwardPrepared>,
}

impl<P: AttentionParams> Attention<P> {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number that is not finite or not in range, for a name in a hook that is none, and for a
    /// hook's buffer that cannot be bound; [`Error::OtherDevice`] for one of another device.
    pub fn new(gpu: &Gpu, params: P) -> Result<Self> {
        let (scores, order) = (params.scores(), params.tiles()?);
        scores.check(gpu.caps())?;
        hook::check_devices(gpu, &hook::place(&scores.score_mod, &scores.mask_mod))?;
        let gpu = gpu.clone();
        Ok(Self { gpu, params, order, prepared: Mutex::default(), prepared_backward: Mutex::default() })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn tiles(&self) -> &dyn Tiles {
        &*self.order.0
    }

    /// The params.
    pub fn params(&self) -> &P {
        &self.params
    }

    /// What would run for these shapes, in words and as WGSL.
    ///
    /// # Errors
    /// Those of [`AttentionPlan::new`].
    pub fn plan(&self, shapes: &AttentionShapes) -> Result<AttentionPlan> {
        AttentionPlan::of(self.gpu.caps(), self.tiles(), &self.params.scores(), shapes)
    }

    /// Compiles and uploads all that these shapes need, so that [`AttentionPrepared::encode`] creates nothing but bind groups.
    ///
    /// # Errors
    /// Those of [`AttentionPlan::new`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &AttentionShapes) -> Result<AttentionPrepared> {
        AttentionPrepared::new(&self.gpu, self.plan(shapes)?, shapes).await
    }

    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type), submits. Block-sparse
    /// attention needs a mask besides: see [`Attention::forward_with_lse`].
    ///
    /// # Errors
    /// Those of [`Attention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&AttentionInputs::new(q, k, v)).await?.0)
    }

    /// The same with lengths, packed sequences, a bias, a mask and a block mask, and with the log-sum-exp of each row (f32 [batch,
    /// heads_q, queries, 1]). Where packed sequences' offsets are on the GPU and wrong, reading a result is an error.
    ///
    /// # Errors
    /// Those of [`Attention::forward`].
    pub async fn forward_with_lse(&self, inputs: &AttentionInputs<'_>) -> Result<(Tensor, Tensor)> {
        check_devices(&self.gpu, inputs)?;
        self.prepared(&AttentionShapes::of_inputs(inputs)).await?.forward(inputs).await
    }

    async fn prepared(&self, shapes: &AttentionShapes) -> Result<Arc<AttentionPrepared>> {
        self.gpu.alive()?;
        match kept(&self.prepared, shapes) {
            Some(found) => Ok(found),
            None => Ok(keep(&self.prepared, shapes, self.prepare(shapes).await?)),
        }
    }

    pub(super) async fn prepared_backward(&self, shapes: &BackwardShapes) -> Result<Arc<BackwardPrepared>> {
        self.gpu.alive()?;
        match kept(&self.prepared_backward, shapes) {
            Some(found) => Ok(found),
            None => Ok(keep(&self.prepared_backward, shapes, self.prepare_backward(shapes).await?)),
        }
    }
}

/// Every tensor is of the kernel's own device.
fn check_devices(gpu: &Gpu, inputs: &AttentionInputs<'_>) -> Result<()> {
    let [blocks, full] = inputs.block_mask.map_or([None, None], BlockMask::tensors);
    let all = [
        ("q", Some(inputs.q)),
        ("k", Some(inputs.k)),
        ("v", Some(inputs.v)),
        ("bias", inputs.bias),
        ("mask", inputs.mask),
        ("additional_k", inputs.additional_k),
        ("additional_v", inputs.additional_v),
        ("block_mask.chosen", blocks),
        ("block_mask.full", full),
        ("cu_seqlens_q", inputs.cu_seqlens_q.as_ref().and_then(CuSeqlens::tensor)),
        ("cu_seqlens_k", inputs.cu_seqlens_k.as_ref().and_then(CuSeqlens::tensor)),
    ];
    all.into_iter().try_for_each(|(name, tensor)| tensor.map_or(Ok(()), |tensor| check_device(name, tensor, gpu)))
}

/// What was prepared for the last few shapes, the oldest first.
pub(crate) type Kept<K, V> = Mutex<Vec<(K, Arc<V>)>>;

pub(crate) fn kept<K: PartialEq, V>(all: &Kept<K, V>, key: &K) -> Option<Arc<V>> {
    let all = all.lock().expect("no panic under this lock");
    all.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
}

pub(crate) fn keep<K: Clone, V>(all: &Kept<K, V>, key: &K, value: V) -> Arc<V> {
    let value = Arc::new(value);
    let mut all = all.lock().expect("no panic under this lock");
    if all.len() == PREPARED {
        all.remove(0);
    }
    all.push((key.clone(), value.clone()));
    value
}
