//! Training of a gate for decoding: every query of a sequence is a row.

use super::{SeerDecodeGate, SeerDecodeWeights, Sizes};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::gate::frame::Frame;
use crate::gate::step::Part;
use crate::gate::training::{SeerGateGradients, SeerGateSaved, SeerLoss};
use crate::softmax::check_shapes;
use crate::{AttentionInputs, AttentionShapes, FlashParams, HeadGroups, Result, Tensor};

impl SeerDecodeGate {
    /// From the tokens of whole sequences, before their rotary embedding, to logits [batch, heads_kv, queries, blocks of keys], with
    /// what gradients need. A query sees the blocks before its own.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::forward`].
    pub async fn forward_for_training(
        &self,
        weights: &SeerDecodeWeights<'_>,
        q: &Tensor,
        k: &Tensor,
    ) -> Result<SeerGateSaved> {
        let frame = self.training_frame(weights, q, k)?;
        let mut given = weights.tensors();
        given.extend([(Part::Q, q), (Part::K, k)]);
        frame.forward(&self.gpu, given).await
    }

    fn training_frame(&self, weights: &SeerDecodeWeights, q: &Tensor, k: &Tensor) -> Result<Frame> {
        for (name, tensor) in [("q", q), ("k", k)] {
            check_device(name, tensor, &self.gpu)?;
        }
        check_shapes(&AttentionShapes::new(q.layout().clone(), k.layout().clone(), k.layout().clone()))?;
        let ([batch, heads_q, queries, head_dim], [_, heads_kv, keys, _]) = (q.shape(), k.shape());
        let dims = [heads_q, heads_kv, head_dim];
        let gate_dim = weights.check(&self.gpu, self.params.pool_k.len(), dims, self.params.rope_theta.is_some())?;
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let sequences = vec![[0, queries as u32, 0, keys as u32]; batch];
        let frame = self.params.frame(sequences, [queries, keys.div_ceil(self.params.block)], weights.normed(), &sizes);
        Ok(Frame { past: true, complete: false, forced: 0, ..frame })
    }

    /// The target: of each query and block of keys before its own the largest probability that attention gives to any of its keys
    /// in any head that shares the key head, each row divided by its sum (+ 1e-9). f32 [batch, heads_kv, queries, blocks of keys].
    ///
    /// # Errors
    /// Those of [`crate::ScoreReduction::forward`] and [`SeerDecodeGate::forward`].
    pub async fn target(
        &self,
        weights: &SeerDecodeWeights<'_>,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let frame = self.training_frame(weights, inputs.q, inputs.k)?;
        frame.target_of(&self.gpu, HeadGroups::OfKeyHead, attention, inputs, lse).await
    }

    /// The divergence from the target and its gradient in the logits: see [`crate::SeerGate::loss`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::loss`].
    pub async fn loss(&self, saved: &SeerGateSaved, target: &Tensor, loss: SeerLoss) -> Result<(Tensor, Tensor)> {
        saved.loss(&self.gpu, target, loss).await
    }

    /// Gradients of the weights from that of the logits: see [`crate::SeerGate::backward`].
    ///
    /// # Errors
    /// Those of [`crate::SeerGate::backward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        saved.backward(&self.gpu, dlogits).await
    }
}
