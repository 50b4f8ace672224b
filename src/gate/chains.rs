//! Chains of kernels for training: from tokens to logits, to a target, to a loss, to gradients.

use super::frame::Frame;
use super::kernels::SideParts;
use super::step::{Chain, Part, Places, Task, Tensors, prepared};
use super::training::SeerLoss;
use crate::few::Few;
use crate::packed::Side;
use crate::{Caps, DType, Gpu, Layout, Result, Tensor};

/// What a chain of training computes.
pub(super) enum Stage {
    Logits,
    Target,
    Loss(SeerLoss),
    Gradients,
}

impl Frame {
    /// What lies between tokens and logits.
    pub(super) fn before_logits(&self) -> Vec<(Part, Layout)> {
        let mut all = vec![];
        for side in [Side::Queries, Side::Keys] {
            let parts = SideParts::of(side);
            all.extend(self.side(side).pools.is_some().then(|| (parts.pooled, self.pooled(side))));
            all.push((parts.vectors, self.vectors(side)));
        }
        all.push((Part::Logits, self.logits()));
        all
    }

    /// Whether a side has anything to learn.
    fn learns(&self, side: Side) -> bool {
        self.side(side).weighted || self.side(side).normed
    }

    /// What the gradients are.
    pub(super) fn gradients(&self) -> Vec<(Part, Layout)> {
        let mut all = vec![];
        for side in [Side::Queries, Side::Keys] {
            let (of, parts) = (self.side(side), SideParts::of(side));
            all.extend(of.weighted.then(|| (parts.weights_gradient, self.weights(side))));
            let norm = || (parts.norm_gradient, Layout::heads_first(DType::F32, [1, 1, 1, self.gate_dim]));
            all.extend(of.normed.then(norm));
        }
        all
    }

    /// What lies between the gradient of the logits and those of the weights.
    fn before_gradients(&self) -> Vec<(Part, Layout)> {
        let mut all = vec![];
        for side in [Side::Queries, Side::Keys].into_iter().filter(|&side| self.learns(side)) {
            let parts = SideParts::of(side);
            let shares = self.side(side).normed.then_some(parts.norm_rows);
            let like_vectors = [parts.vectors_gradient, parts.projected_gradient].into_iter().chain(shares);
            all.extend(like_vectors.map(|part| (part, self.vectors(side))));
        }
        all
    }

    /// From the gradient of the logits to those of the weights.
    fn to_gradients(&self, places: &Places) -> Vec<Task> {
        let mut all = vec![];
        for side in [Side::Queries, Side::Keys].into_iter().filter(|&side| self.learns(side)) {
            let (of, parts) = (self.side(side), SideParts::of(side));
            all.push(if side == Side::Queries { self.gradient_query() } else { self.gradient_key() });
            all.push(self.unproject(side));
            all.extend(of.weighted.then(|| self.gradient_weights(side)));
            all.extend(of.normed.then(|| self.sum_rows(parts.norm_rows, parts.norm_gradient, places)));
        }
        all
    }
}

pub(super) async fn empty(gpu: &Gpu, layouts: Vec<(Part, Layout)>) -> Result<Few<Part, Tensor>> {
    let mut all = Few::default();
    for (part, layout) in layouts {
        all.insert(part, Tensor::empty(gpu, layout).await?);
    }
    Ok(all)
}

impl Frame {
    /// Plans, compiles and submits a chain over tensors, each of which lies in a buffer of its own if it is written.
    pub(super) async fn run(&self, gpu: &Gpu, stage: Stage, given: &Tensors<'_>) -> Result<()> {
        gpu.alive()?;
        let mut places = Places::default();
        for (part, tensor) in given.iter() {
            places.own(*part, tensor.layout().clone());
        }
        let chain = self.training(&stage, places, gpu.caps())?;
        prepared(gpu, &chain, self.angles()).await?.submit(given).await
    }

    fn training(&self, stage: &Stage, mut places: Places, caps: &Caps) -> Result<Chain> {
        let [rows, cols] = self.pairs();
        let between = match stage {
            Stage::Logits | Stage::Target => vec![],
            Stage::Loss(_) => {
                vec![(Part::RowShares, Layout::heads_first(DType::F32, [self.batch(), self.heads, rows, 1]))]
            }
            Stage::Gradients => self.before_gradients(),
        };
        for (part, layout) in &between {
            places.own(*part, layout.clone());
        }
        let tasks = match stage {
            Stage::Logits => self.to_logits(),
            Stage::Target => vec![self.target()],
            &Stage::Loss(SeerLoss { weight, from_row }) => {
                let elements = self.batch() * self.heads * (rows - from_row.min(rows)) * cols;
                let each = weight / elements.max(1) as f32;
                vec![self.loss(from_row, each), self.sum_rows(Part::RowShares, Part::Loss, &places)]
            }
            Stage::Gradients => self.to_gradients(&places),
        };
        let steps = tasks.into_iter().map(|task| task.plan(caps, self, &places)).collect::<Result<_>>()?;
        Ok(Chain { steps, between })
    }

    /// The text of every kernel of training, with its name. `places` knows tokens and weights.
    #[cfg(feature = "catalogue")]
    pub(super) fn texts(&self, caps: &Caps, places: &Places) -> Result<Vec<(String, String)>> {
        let mut texts = vec![];
        for stage in [Stage::Logits, Stage::Target, Stage::Loss(SeerLoss::default()), Stage::Gradients] {
            let mut places = places.clone();
            let given = [Part::Wanted, Part::Target, Part::LogitsGradient].map(|part| (part, self.logits()));
            let loss = (Part::Loss, Layout::heads_first(DType::F32, [1; 4]));
            for (part, layout) in self.before_logits().into_iter().chain(self.gradients()).chain(given).chain([loss]) {
                places.own(part, layout);
            }
            let chain = self.training(&stage, places, caps)?;
            texts.extend(chain.wgsl().into_iter().map(|(name, text)| (name.to_string(), text)));
        }
        Ok(texts)
    }
}
