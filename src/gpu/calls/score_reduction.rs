//! Score reduction on a device.

use super::attention::AttentionInputs;
use super::hook;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::{Cache, Planner};
use crate::program::{Name, Program};
use crate::softmax::SoftmaxParams;
#[cfg(doc)]
use crate::{Error, Reduction};
use crate::{Gpu, Prepared, Result, ScoreReductionParams, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// What a score reduction reads.
#[derive(Clone, Copy, Debug)]
pub struct ScoreReductionInputs<'a> {
    /// What attention read. Values, additional keys and a block mask are ignored.
    pub attention: AttentionInputs<'a>,
    /// The log-sum-exp that it wrote, f32 [batch, heads_q, queries, 1].
    pub lse: &'a Tensor,
    /// For [`crate::KeyGroups::Segments`]: the segment of each key, u32 [batch or 1, 1, 1, keys] (for packed sequences: [sequences or 1, 1,
    /// 1, longest keys]). A number that is out of range leaves its key out and makes reading the result an error.
    pub segments: Option<&'a Tensor>,
}

impl ScoreReductionInputs<'_> {
    fn attention(&self) -> AttentionInputs<'_> {
        AttentionInputs { additional_k: None, additional_v: None, block_mask: None, ..self.attention }
    }
}

impl Call for ScoreReductionInputs<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let AttentionInputs { q, k, v, bias, mask, buffers, .. } = &self.attention;
        let mut all = present([
            ("q", Some(q)),
            ("k", Some(k)),
            ("v", Some(v)),
            ("bias", *bias),
            ("mask", *mask),
            ("lse", Some(self.lse)),
            ("segments", self.segments),
        ]);
        all.extend(self.attention.sequences().tensors());
        all.extend(buffers.iter().map(|&(name, tensor)| (crate::program::hook::tensor_name(name), tensor)));
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let attention = self.attention();
        let all = attention.numbers().into_iter();
        all.map(|(name, numbers)| (name, Cow::Owned(numbers.into_owned()))).collect()
    }
}

/// What a score reduction writes: [batch (for packed sequences: sequences), groups of heads, groups of queries, groups of keys or `top_k`].
#[derive(Clone, Debug)]
pub struct ReducedScores {
    /// f32. 0 where nothing is seen.
    pub values: Tensor,
    /// u32, where there is a `top_k` (numbers of the groups of keys) or [`crate::Reduction::ArgMax`] (keys): `u32::MAX` for none.
    pub indices: Option<Tensor>,
}

impl Call for ReducedScores {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("values", Some(&self.values)), ("indices", self.indices.as_ref())])
    }
}

/// Reduces attention's probabilities, with fixed params on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::score_reduction::*;
/// use wgpu_attention::*;
/// let gpu = Gpu::request().await?;
/// // Two queries and four keys in blocks of 2; the first query prefers the last key: scores ln 5 and 0.
/// let q = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[5f32.ln(), 0.0]).await?;
/// let k = Tensor::upload(&gpu, [1, 1, 4, 1], DType::F32, &[0.0, 0.0, 0.0, 1.0]).await?;
/// let inputs = AttentionInputs::new(&q, &k, &k);
/// let (_, lse) = FlashAttention::new(&gpu, FlashParams::default())?.forward_with_lse(&inputs).await?;
/// let params = ScoreReductionParams { queries: QueryGroups::Blocks(2), keys: KeyGroups::Blocks(2), ..Default::default() };
/// let inputs = ScoreReductionInputs { attention: inputs, lse: &lse, segments: None };
/// let largest = ScoreReduction::new(&gpu, params)?.forward(&inputs).await?.values.read().await?;
/// assert!((largest[0] - 1.0 / 4.0).abs() < 1e-6 && (largest[1] - 5.0 / 8.0).abs() < 1e-6);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct ScoreReduction {
    gpu: Gpu,
    params: ScoreReductionParams,
    /// What the hooks carry.
    carried: Vec<(Name, Tensor)>,
    cache: Arc<Cache>,
}

impl ScoreReduction {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for group sizes that are not powers of two, a bound outside of [0, 1], zero segments, a
    /// `top_k` of 0 or one together with [`Reduction::ArgMax`], and those of [`crate::Attention::new`].
    pub fn new(gpu: &Gpu, params: ScoreReductionParams) -> Result<Self> {
        params.check()?;
        let scores = params.attention.scores();
        scores.check(gpu.caps())?;
        let hooks = scores.hooks();
        hook::check_devices(gpu, &hooks)?;
        Ok(Self { gpu: gpu.clone(), params, carried: hook::defaults(&hooks), cache: Arc::default() })
    }

    /// The params.
    pub fn params(&self) -> &ScoreReductionParams {
        &self.params
    }

    /// What would run for these shapes.
    ///
    /// # Errors
    /// Those of [`ScoreReductionParams::plan`].
    pub fn plan(&self, shapes: &Shapes) -> Result<Program> {
        self.params.plan(self.gpu.caps(), shapes)
    }

    /// Compiles and allocates all that these shapes need. A call is `(inputs, results)`: [`ScoreReductionInputs`], [`ReducedScores`].
    ///
    /// # Errors
    /// Those of [`ScoreReductionParams::plan`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(&shapes.into())?, &self.carried).await
    }

    /// The reduction in one call: allocates its results and submits. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`ScoreReduction::prepare`]; [`Error::OtherDevice`].
    pub async fn forward(&self, inputs: &ScoreReductionInputs<'_>) -> Result<ReducedScores> {
        let plan: Planner = &|caps, shapes| self.params.plan(caps, shapes);
        let mut found = self.gpu.forward(&self.cache, "forward", plan, &self.carried, inputs, &[], &[]).await?;
        Ok(ReducedScores { values: found.take("values"), indices: found.take_if("indices") })
    }
}
