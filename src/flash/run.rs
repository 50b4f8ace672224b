//! From a plan to results.

use super::stage::StagePrepared;
use super::{
    FlashBackwardPrepared, FlashBackwardShapes, FlashInputs, FlashOutputs, FlashParams, FlashPlan, FlashShapes,
    check_params, slots,
};
use crate::dispatch::{Scratch, check_device};
use crate::tensor::Verdict;
use crate::{CuSeqlens, CuSeqlensShape, Error, Gpu, Result, Tensor, hook};
use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// How many shapes [`FlashAttention::forward`] keeps prepared.
const PREPARED: usize = 32;

/// Flash attention with fixed params on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, FlashAttention, FlashInputs, FlashParams, Gpu, Tensor};
/// let gpu = Gpu::request().await?;
/// // Two sequences in one batch, of 5 and 2 tokens: the second is padded, and padding is not seen.
/// let x = Tensor::upload(&gpu, [2, 1, 5, 8], DType::F32, &[1.0; 80]).await?;
/// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(0.0), ..Default::default() })?;
/// let inputs = FlashInputs { seqlens_k: Some(&[5, 2]), ..FlashInputs::new(&x, &x, &x) };
/// let (_, lse) = attention.forward_with_lse(&inputs).await?;
/// let lse = lse.read().await?; // with all scores 0: the logarithm of the number of keys
/// assert!((lse[0] - 5f32.ln()).abs() < 1e-6 && (lse[5] - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct FlashAttention {
    gpu: Gpu,
    params: FlashParams,
    prepared: Mutex<HashMap<FlashShapes, Arc<FlashPrepared>>>,
    prepared_backward: Mutex<HashMap<FlashBackwardShapes, Arc<FlashBackwardPrepared>>>,
}

impl FlashAttention {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number that is not finite or not in range, for a name in a hook that is none, and for a
    /// hook's buffer that cannot be bound; [`Error::OtherDevice`] for one of another device.
    pub fn new(gpu: &Gpu, params: FlashParams) -> Result<Self> {
        check_params(gpu.caps(), &params)?;
        hook::check_devices(gpu, &hook::place(&params.score_mod, &params.mask_mod))?;
        Ok(Self { gpu: gpu.clone(), params, prepared: Mutex::default(), prepared_backward: Mutex::default() })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn params(&self) -> &FlashParams {
        &self.params
    }

    /// What would run for these shapes, in words and as WGSL.
    ///
    /// # Errors
    /// Those of [`FlashPlan::new`].
    pub fn plan(&self, shapes: &FlashShapes) -> Result<FlashPlan> {
        FlashPlan::new(self.gpu.caps(), &self.params, shapes)
    }

    /// Compiles and uploads all that these shapes need, so that [`FlashPrepared::encode`] creates nothing but bind groups.
    ///
    /// # Errors
    /// Those of [`FlashPlan::new`]; [`Error::Shader`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &FlashShapes) -> Result<FlashPrepared> {
        let plan = self.plan(shapes)?;
        let stage = StagePrepared::new(&self.gpu, &plan.stage, &Scratch::new()).await?;
        Ok(FlashPrepared { stage, shapes: shapes.clone(), plan })
    }

    /// Attention in one call: allocates the output ([batch, heads_q, queries, value_dim], of q's type), submits.
    ///
    /// # Errors
    /// Those of [`FlashAttention::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_lse(&FlashInputs::new(q, k, v)).await?.0)
    }

    /// The same with lengths, packed sequences, a bias and a mask, and with the log-sum-exp of each row (f32 [batch,
    /// heads_q, queries, 1]). Where packed sequences' offsets are on the GPU and wrong, reading a result is an error.
    ///
    /// # Errors
    /// Those of [`FlashAttention::forward`].
    pub async fn forward_with_lse(&self, inputs: &FlashInputs<'_>) -> Result<(Tensor, Tensor)> {
        let all = [
            ("q", Some(inputs.q)),
            ("k", Some(inputs.k)),
            ("v", Some(inputs.v)),
            ("bias", inputs.bias),
            ("mask", inputs.mask),
            ("cu_seqlens_q", inputs.cu_seqlens_q.as_ref().and_then(CuSeqlens::tensor)),
            ("cu_seqlens_k", inputs.cu_seqlens_k.as_ref().and_then(CuSeqlens::tensor)),
        ];
        for (name, tensor) in all {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, &self.gpu))?;
        }
        let shapes = FlashShapes::of_inputs(inputs);
        let prepared = self.prepared(&shapes).await?;
        let out = Tensor::empty(&self.gpu, shapes.out).await?;
        let lse = Tensor::empty(&self.gpu, shapes.lse).await?;
        let outputs = FlashOutputs { out: &out, lse: &lse };
        match prepared.submit_slices(inputs, &outputs).await? {
            Some(verdict) => Ok((out.under(verdict.clone()), lse.under(verdict))),
            None => Ok((out, lse)),
        }
    }

    async fn prepared(&self, shapes: &FlashShapes) -> Result<Arc<FlashPrepared>> {
        self.gpu.alive()?;
        match kept(&self.prepared, shapes) {
            Some(found) => Ok(found),
            None => Ok(keep(&self.prepared, shapes, self.prepare(shapes).await?)),
        }
    }

    pub(super) async fn prepared_backward(&self, shapes: &FlashBackwardShapes) -> Result<Arc<FlashBackwardPrepared>> {
        self.gpu.alive()?;
        match kept(&self.prepared_backward, shapes) {
            Some(found) => Ok(found),
            None => Ok(keep(&self.prepared_backward, shapes, self.prepare_backward(shapes).await?)),
        }
    }
}

type Kept<K, V> = Mutex<HashMap<K, Arc<V>>>;

fn kept<K: Eq + Hash, V>(all: &Kept<K, V>, key: &K) -> Option<Arc<V>> {
    all.lock().expect("no panic under this lock").get(key).cloned()
}

fn keep<K: Eq + Hash + Clone, V>(all: &Kept<K, V>, key: &K, value: V) -> Arc<V> {
    let value = Arc::new(value);
    let mut all = all.lock().expect("no panic under this lock");
    if all.len() == PREPARED {
        all.clear();
    }
    all.insert(key.clone(), value.clone());
    value
}

/// Flash attention compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct FlashPrepared {
    stage: StagePrepared,
    shapes: FlashShapes,
    plan: FlashPlan,
}

impl FlashPrepared {
    /// What runs and why.
    pub fn plan(&self) -> &FlashPlan {
        &self.plan
    }

    /// Records the whole work. The caller submits; for long work see [`FlashPrepared::encode_slice`].
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
    ) -> Result<()> {
        self.record(encoder, inputs, outputs, 0..self.stage.slices().len())
    }

    /// Records one of [`FlashPlan::slices`], so that the caller can submit long work in parts of 50 to 100 ms.
    ///
    /// # Errors
    /// Those of [`FlashPrepared::encode`]; [`Error::Argument`] for a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slice: usize,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
    ) -> Result<()> {
        self.record(encoder, inputs, outputs, slice..slice.saturating_add(1))
    }

    /// Records the whole work into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`FlashPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
    ) -> Result<()> {
        self.encode_range(pass, inputs, outputs, 0..self.stage.slices().len())
    }

    /// Records each slice into an encoder of its own and submits it.
    ///
    /// # Errors
    /// Those of [`FlashPrepared::encode`]; [`Error::DeviceLost`].
    pub async fn submit(&self, inputs: &FlashInputs<'_>, outputs: &FlashOutputs<'_>) -> Result<()> {
        self.submit_slices(inputs, outputs).await.map(|_| ())
    }

    /// The same, with what was found wrong in offsets on the GPU.
    async fn submit_slices(&self, inputs: &FlashInputs<'_>, outputs: &FlashOutputs<'_>) -> Result<Option<Verdict>> {
        let gpu = self.stage.gpu();
        let mut verdict = None;
        for slice in 0..self.plan.slices().len() {
            let mut encoder = gpu.encoder();
            self.encode_slice(&mut encoder, slice, inputs, outputs)?;
            if verdict.is_none() {
                verdict = self.stage.verdict(&mut encoder, &self.shapes).await?;
            }
            gpu.submit(encoder).await?;
        }
        Ok(verdict)
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
        which: Range<usize>,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("flash attention"), timestamp_writes: None };
        self.encode_range(&mut encoder.begin_compute_pass(&descriptor), inputs, outputs, which)
    }

    /// Whether the offsets that the last recorded work found on the GPU were in order and in range, once it was submitted.
    /// (Results of [`FlashAttention::forward_with_lse`] say so when they are read.)
    ///
    /// # Errors
    /// [`Error::Argument`] that names the offset; [`Error::DeviceLost`].
    pub async fn check_offsets(&self) -> Result<()> {
        let gpu = self.stage.gpu();
        let mut encoder = gpu.encoder();
        let Some(verdict) = self.stage.verdict(&mut encoder, &self.shapes).await? else { return Ok(()) };
        gpu.submit(encoder).await?;
        verdict.ask(gpu).await
    }

    fn encode_range(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
        which: Range<usize>,
    ) -> Result<()> {
        self.stage.gpu().alive()?;
        self.shapes.check_as_prepared(inputs)?;
        let tensors: Vec<&Tensor> = slots(inputs, outputs).into_iter().flatten().collect();
        let sides = [inputs.cu_seqlens_q, inputs.cu_seqlens_k];
        let offsets: Vec<&Tensor> = sides.iter().flatten().filter_map(CuSeqlens::tensor).collect();
        self.stage.encode(pass, &tensors, inputs.mask, &offsets, which)
    }
}

impl FlashShapes {
    /// Inputs that are not tensors, and whether the others are there.
    pub(super) fn check_as_prepared(&self, inputs: &FlashInputs) -> Result<()> {
        for (name, given, prepared) in
            [("seqlens_q", inputs.seqlens_q, &self.seqlens_q), ("seqlens_k", inputs.seqlens_k, &self.seqlens_k)]
        {
            if given != prepared.as_deref() {
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        for (name, given, prepared) in [
            ("cu_seqlens_q", inputs.cu_seqlens_q, &self.cu_seqlens_q),
            ("cu_seqlens_k", inputs.cu_seqlens_k, &self.cu_seqlens_k),
        ] {
            let given = given.as_ref().map(CuSeqlens::shape);
            // Where a tensor of offsets lies is checked with the other tensors.
            let same = match (&given, prepared) {
                (Some(CuSeqlensShape::Gpu { max_seqlen: a, .. }), Some(CuSeqlensShape::Gpu { max_seqlen: b, .. })) => {
                    a == b
                }
                (given, prepared) => given == prepared,
            };
            if !same {
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        for (name, given, prepared) in [("bias", inputs.bias, &self.bias), ("mask", inputs.mask, &self.mask)] {
            if given.is_some() != prepared.is_some() {
                let (given, prepared) = (given.map(Tensor::layout), prepared.as_ref());
                return Err(Error::argument(name, format!("{given:?}"), format!("as prepared: {prepared:?}")));
            }
        }
        Ok(())
    }
}
