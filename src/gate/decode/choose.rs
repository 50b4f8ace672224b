//! A step of decoding: from queries and the cache to a block mask.

use super::{SeerDecodeGate, SeerDecodeInputs, SeerDecodeStep, SeerDecodeWeights, Sizes, check_compressed};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::error::require;
use crate::gate::frame::Frame;
use crate::gate::kernels::SideParts;
use crate::gate::run::SeerGateOutput;
use crate::gate::step::{Part, Task};
use crate::packed::Side;
use crate::softmax::check_shapes;
use crate::{AttentionShapes, BlockGrid, BlockMask, DType, Layout, Result, Tensor};

impl SeerDecodeGate {
    /// The block mask in one call: [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit together and lengths beyond `compressed` or `keys`; [`Error::OtherDevice`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn forward(&self, weights: &SeerDecodeWeights<'_>, inputs: &SeerDecodeInputs<'_>) -> Result<BlockMask> {
        let (step, mask, _) = self.selection(weights, inputs, false).await?;
        step.submit().await?;
        Ok(mask)
    }

    /// The same with the scores, f32 [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_with_scores(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
    ) -> Result<SeerGateOutput> {
        let (step, mask, scores) = self.selection(weights, inputs, true).await?;
        step.submit().await?;
        let [logits, scores] = scores.expect("asked for");
        Ok(SeerGateOutput { mask, logits, scores })
    }

    /// The same to be recorded by the caller, with the mask that it will write.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn prepare(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
    ) -> Result<(SeerDecodeStep, BlockMask)> {
        let (step, mask, _) = self.selection(weights, inputs, false).await?;
        Ok((step, mask))
    }

    async fn selection(
        &self,
        weights: &SeerDecodeWeights<'_>,
        inputs: &SeerDecodeInputs<'_>,
        scores: bool,
    ) -> Result<(SeerDecodeStep, BlockMask, Option<[Tensor; 2]>)> {
        let SeerDecodeInputs { q, compressed, seqlens_k, keys } = *inputs;
        let block = self.params.block;
        check_device("q", q, &self.gpu)?;
        let [batch, heads_q, queries, head_dim] = q.shape();
        let heads_kv = compressed.shape()[1];
        let kv = Layout::heads_first(DType::F32, [batch, heads_kv, keys, head_dim]);
        let shapes = AttentionShapes::new(q.layout().clone(), kv.clone(), kv);
        check_shapes(&AttentionShapes { seqlens_k: Some(seqlens_k.to_vec()), ..shapes })?;
        let dims = [heads_q, heads_kv, head_dim];
        let gate_dim = weights.check(&self.gpu, self.params.pool_k.len(), dims, self.params.rope_theta.is_some())?;
        let blocks = check_compressed(&self.gpu, compressed, [batch, heads_kv, gate_dim])?;
        for (b, &length) in seqlens_k.iter().enumerate() {
            let bound = format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block);
            require(length / block <= blocks, &format!("seqlens_k[{b}]"), length, bound)?;
        }
        let sequences = seqlens_k.iter().map(|&length| [0, queries as u32, 0, length as u32]).collect();
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let frame = self.params.frame(sequences, [queries, keys.div_ceil(block)], weights.normed(), &sizes);
        let grid = BlockGrid { batch, heads: heads_kv, queries, keys, block: [1, block] };
        grid.check()?;
        let empty = async |layout: Layout| Tensor::empty(&self.gpu, layout).await;
        let chosen = empty(Layout::heads_first(DType::U32, grid.shape())).await?;
        let wanted = if scores { Some([empty(frame.logits()).await?, empty(frame.logits()).await?]) } else { None };
        let parts = SideParts::of(Side::Queries);
        let mut between = vec![(parts.vectors, frame.vectors(Side::Queries))];
        let mut given = weights.tensors();
        given.extend([(Part::Q, q), (Part::VectorsK, compressed), (Part::Chosen, &chosen)]);
        match &wanted {
            Some([logits, scores]) => given.extend([(Part::Logits, logits), (Part::Scores, scores)]),
            None => between.push((Part::Logits, frame.logits())),
        }
        let tasks = selection(&frame, scores);
        let judged = |tensor: &Tensor| tensor.clone().under_all(q).under_all(compressed);
        let mask = BlockMask::from_bits(&self.gpu, grid, &judged(&chosen), None)?;
        let wanted_out = wanted.as_ref().map(|all| all.each_ref().map(judged));
        Ok((self.step(&frame, tasks, given, between).await?, mask, wanted_out))
    }
}

/// From queries to a mask.
pub(super) fn selection(frame: &Frame, scores: bool) -> Vec<Task> {
    vec![frame.project(Side::Queries), frame.logits_task(), frame.select(scores)]
}
