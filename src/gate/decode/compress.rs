//! The cache of a gate for decoding: a vector for each full block of keys.

use super::{SeerDecodeGate, SeerDecodeStep, SeerDecodeWeights, Sizes, check_compressed};
#[cfg(doc)]
use crate::Error;
use crate::dispatch::check_device;
use crate::error::require;
use crate::gate::frame::Frame;
use crate::gate::kernels::SideParts;
use crate::gate::step::{Part, Task};
use crate::packed::Side;
use crate::softmax::check_shapes;
use crate::{AttentionShapes, Result, Tensor};

impl SeerDecodeGate {
    /// Writes the vectors of the blocks that become full when batch entry b grows from `before[b]` to `after[b]` keys into
    /// `compressed` [batch, heads_kv, blocks, gate_dim]: block j into row j. Keys, before their rotary embedding, are [batch,
    /// heads_kv, rows, head_dim], token t in row t mod rows, rows a multiple of a block: a whole cache, or a ring that holds no more
    /// than the block that is being filled and what is new.
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit together, lengths that shrink, keys that are no longer in the ring, and
    /// blocks beyond `compressed`; [`Error::OtherDevice`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn compress(
        &self,
        weights: &SeerDecodeWeights<'_>,
        k: &Tensor,
        compressed: &Tensor,
        before: &[usize],
        after: &[usize],
    ) -> Result<()> {
        self.prepare_compression(weights, k, compressed, before, after).await?.submit().await
    }

    /// The same to be recorded by the caller.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGate::compress`].
    pub async fn prepare_compression(
        &self,
        weights: &SeerDecodeWeights<'_>,
        k: &Tensor,
        compressed: &Tensor,
        before: &[usize],
        after: &[usize],
    ) -> Result<SeerDecodeStep> {
        let block = self.params.block;
        check_device("k", k, &self.gpu)?;
        let [batch, heads_kv, ring, head_dim] = k.shape();
        let group = self.check_tokens(weights, heads_kv, head_dim)?;
        let gate_dim = weights.check(
            &self.gpu,
            self.params.pool_k.len(),
            [group * heads_kv, heads_kv, head_dim],
            self.params.rope_theta.is_some(),
        )?;
        check_shapes(&AttentionShapes::new(k.layout().clone(), k.layout().clone(), k.layout().clone()))?;
        let bound = format!("a multiple of {block}, the keys of a block");
        require(ring > 0 && ring.is_multiple_of(block), "k.shape[2] (rows)", ring, bound)?;
        let blocks = check_compressed(&self.gpu, compressed, [batch, heads_kv, gate_dim])?;
        for (name, lengths) in [("before", before), ("after", after)] {
            let bound = format!("{batch}, one a batch entry");
            require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), bound)?;
        }
        let (mut sequences, mut rows) = (vec![], 0);
        for (b, (&before, &after)) in before.iter().zip(after).enumerate() {
            let what = format!("after[{b}]");
            require(after >= before, &what, after, format!("at least {before}, before[{b}]"))?;
            let (first, end) = (before / block, after / block);
            require(
                end <= blocks,
                &what,
                after,
                format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block),
            )?;
            // Keys of the first block that becomes full are still there.
            let bound = format!(
                "at most {}: the ring of {ring} rows holds keys from {} on",
                first * block + ring,
                first * block
            );
            require(first == end || after - first * block <= ring, &what, after, bound)?;
            sequences.push([first as u32, 0, 0, after as u32]);
            rows = rows.max(end - first);
        }
        let sizes = Sizes { heads_kv, group, head_dim, gate_dim };
        let frame = Frame { ring, ..self.params.frame(sequences, [0, rows], weights.normed(), &sizes) };
        let parts = SideParts::of(Side::Keys);
        let between = vec![(parts.pooled, frame.pooled(Side::Keys))];
        let mut given = weights.tensors();
        given.extend([(Part::K, k), (parts.vectors, compressed)]);
        self.step(&frame, compression(&frame), given, between).await
    }

    /// Query heads to a key head, by the map of queries.
    fn check_tokens(&self, weights: &SeerDecodeWeights, heads_kv: usize, head_dim: usize) -> Result<usize> {
        require(heads_kv > 0, "k.shape[1] (heads_kv)", heads_kv, "at least 1")?;
        let features = weights.wq.shape()[2];
        let bound = format!("a multiple of head_dim = {head_dim}, at least once");
        require(features > 0 && features.is_multiple_of(head_dim.max(1)), "wq.shape[2]", features, bound)?;
        Ok(features / head_dim)
    }
}

/// From keys to the vectors of blocks.
pub(super) fn compression(frame: &Frame) -> Vec<Task> {
    vec![frame.pool(Side::Keys), frame.project(Side::Keys)]
}
