//! The feature map of keys and queries: a kernel before the walks, and one for its gradient behind them.

use super::LinearParams;
use super::names::{FEATURES, Tensor};
use super::shapes::LinearShapes;
use super::task::{Access, Frame, THREADS, Task};
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand};
use crate::{DType, Layout, Result};

/// φ, which makes features of keys and queries, so that their products take the place of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FeatureMap {
    /// φ(x) = x.
    #[default]
    Identity,
    /// φ(x) = elu(x) + 1 (Linear Transformers, arXiv 2006.16236).
    Elu1,
    /// φ(x) = max(x, 0).
    Relu,
    /// Of second order: φ(q) · φ(k) = 1 + s + s²/2 with s = scale · q·k, which takes the scale in (BASED, arXiv 2402.18668). Features: 1, √scale · x_i,
    /// then scale/√2 · x_i² and scale · x_i x_j for i < j, row by row of the upper triangle: 1 + d + d (d + 1)/2 of them, so head_dim is
    /// at most 21.
    Taylor2,
}

impl FeatureMap {
    /// How many features a row of so many numbers has.
    ///
    /// ```
    /// assert_eq!(wgpu_attention::FeatureMap::Taylor2.features(16), 153);
    /// ```
    pub fn features(self, head_dim: usize) -> usize {
        match self {
            Self::Taylor2 => head_dim.saturating_add(1).saturating_mul(head_dim.saturating_add(2)) / 2,
            _ => head_dim,
        }
    }
}

impl LinearParams {
    /// Whether walks go over features instead of q and k.
    pub(super) fn has_features(&self) -> bool {
        self.feature_map != FeatureMap::Identity || self.l2_norm
    }

    /// Factor of Sᵀ φ(q): the Taylor map has it inside.
    pub(super) fn outer_scale(&self, head_dim: usize) -> f32 {
        if self.feature_map == FeatureMap::Taylor2 { 1.0 } else { self.scale_for(head_dim) }
    }

    /// What is mapped, its gradient, and where features are: nothing without a map, and no queries in a summary.
    fn mapped<'a>(&self, inputs: &'a LinearShapes) -> Vec<(&'a Operand, Tensor, [Tensor; 3])> {
        let [q, k] = FEATURES;
        let both = [(!inputs.is_summary, &inputs.q, "dq", q), (true, &inputs.k, "dk", k)];
        let wanted = both.into_iter().filter(|(is_read, ..)| self.has_features() && *is_read);
        wanted.map(|(_, of, to, names)| (of, to, names)).collect()
    }

    /// Computes the features of q and k, and says where the walks find them.
    pub(super) fn add_features(&self, builder: &mut Builder, inputs: &LinearShapes, frame: &Frame) -> Result<()> {
        for (of, _, [from, to, _]) in self.mapped(inputs) {
            let [batch, heads, tokens, width] = of.shape();
            let features = self.feature_map.features(width);
            builder.scratch(to, Layout::heads_first(DType::F32, [batch, heads, tokens, features]))?;
            let tensors = vec![("q", from, AccessKind::Load4), ("o", to, AccessKind::Store4)];
            self.of_rows("features", file::LINEAR_FEATURES_MAP, tensors, [heads, width], frame)
                .add(builder, &Frame { gain: self.scale_for(width), ..frame.clone() })?;
        }
        Ok(())
    }

    /// Where the gradients of what walks read as q and k go.
    pub(super) fn feature_gradients(&self, builder: &mut Builder, inputs: &LinearShapes) -> Result<[Tensor; 2]> {
        if !self.has_features() {
            return Ok(["dq", "dk"]);
        }
        for (of, _, [.., name]) in self.mapped(inputs) {
            let [batch, heads, tokens, width] = of.shape();
            let features = self.feature_map.features(width);
            builder.scratch(name, Layout::heads_first(DType::F32, [batch, heads, tokens, features]))?;
        }
        Ok(FEATURES.map(|[.., name]| name))
    }

    /// The gradients of q and k from those of their features.
    pub(super) fn add_feature_gradients(
        &self,
        builder: &mut Builder,
        inputs: &LinearShapes,
        frame: &Frame,
    ) -> Result<()> {
        for (of, to, [from, _, dy]) in self.mapped(inputs) {
            let [_, heads, _, width] = of.shape();
            let tensors =
                vec![("q", from, AccessKind::Load4), ("dy", dy, AccessKind::Load4), ("o", to, AccessKind::Store4)];
            self.of_rows("gradient of features", file::LINEAR_FEATURES_GRADIENT, tensors, [heads, width], frame)
                .add(builder, &Frame { gain: self.scale_for(width), ..frame.clone() })?;
        }
        Ok(())
    }

    /// A kernel with a thread for each row.
    fn of_rows(
        &self,
        name: &'static str,
        text: &'static str,
        tensors: Vec<Access>,
        [heads, width]: [usize; 2],
        frame: &Frame,
    ) -> Task {
        let map = match self.feature_map {
            FeatureMap::Identity => 0,
            FeatureMap::Elu1 => 1,
            FeatureMap::Relu => 2,
            FeatureMap::Taylor2 => 3,
        };
        let features = self.feature_map.features(width);
        Task {
            name,
            files: vec![file::LINEAR_FEATURES, text],
            constants: vec![
                ("WG", THREADS),
                ("WIDTH", width),
                ("FEATURES", features),
                ("MAP", map),
                ("NORMS", usize::from(self.l2_norm)),
            ],
            tensors,
            segment: frame.whole(),
            work: [frame.entries(), heads, frame.longest().div_ceil(THREADS)],
            runs: 0..1,
            flops: (4 * THREADS * (width + features)) as f64,
        }
    }
}
