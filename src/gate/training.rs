//! Training of a gate: target, loss, gradients of its weights. Queries and keys are not trained.

use super::SeerGate;
use super::frame::Frame;
use super::kernels::SideParts;
use super::shapes::{SeerGateInputs, SeerGateShapes};
use super::step::{Chain, ChainPrepared, Part, Places, Task, Tensors};
use crate::dispatch::check_device;
use crate::error::require;
use crate::packed::Side;
use crate::softmax::attention::{Kept, keep, kept};
use crate::{
    AttentionInputs, DType, FlashParams, Gpu, HeadGroups, KeyGroups, Layout, QueryGroups, Reduction, Result,
    ScoreReduction, ScoreReductionInputs, ScoreReductionParams, Tensor,
};
#[cfg(doc)]
use crate::{BlockSparseAttention, Error};
use std::collections::BTreeMap;

/// How the distance from the target counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeerLoss {
    /// Factor of the mean. Default: 10, SeerAttention's.
    pub weight: f32,
    /// The first block of queries that counts. Default: 0.
    pub from_row: usize,
}

impl Default for SeerLoss {
    fn default() -> Self {
        Self { weight: 10.0, from_row: 0 }
    }
}

/// What a forward pass of the gate leaves for its loss and gradients.
#[derive(Clone, Debug)]
pub struct SeerGateSaved {
    shapes: SeerGateShapes,
    tensors: BTreeMap<Part, Tensor>,
}

impl SeerGateSaved {
    /// The scores before the softmax, f32 [batch, heads_q, rows, blocks of keys]; −∞ where a row does not see a block.
    pub fn logits(&self) -> &Tensor {
        &self.tensors[&Part::Logits]
    }
}

/// Gradients of a gate's weights, f32, of their shapes.
#[derive(Clone, Debug)]
pub struct SeerGateGradients {
    /// Of the linear map of pooled queries, where there is one.
    pub dwq: Option<Tensor>,
    /// Of the linear map of pooled keys.
    pub dwk: Tensor,
}

/// What a chain of training was made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Logits,
    Target,
    /// First row and bits of the weight.
    Loss(usize, u32),
    Gradients,
}

/// Chains of training by what they were made for, and by the layout of what came from outside.
pub(super) type KeptChains = Kept<(Stage, SeerGateShapes, Option<Layout>), ChainPrepared>;

impl Frame {
    /// What lies between tokens and logits.
    fn before_logits(&self) -> Vec<(Part, Layout)> {
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
    fn gradients(&self) -> Vec<(Part, Layout)> {
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

async fn empty(gpu: &Gpu, layouts: Vec<(Part, Layout)>) -> Result<BTreeMap<Part, Tensor>> {
    let mut all = BTreeMap::new();
    for (part, layout) in layouts {
        all.insert(part, Tensor::empty(gpu, layout).await?);
    }
    Ok(all)
}

impl SeerGate {
    /// From tokens to logits, with what gradients need.
    ///
    /// # Errors
    /// Those of [`SeerGate::forward`].
    pub async fn forward_for_training(&self, inputs: &SeerGateInputs<'_>) -> Result<SeerGateSaved> {
        inputs.check_device(self.gpu())?;
        let shapes = SeerGateShapes::of_inputs(self.params(), inputs, false);
        let frame = self.params().frame(&shapes)?;
        let mut tensors = empty(self.gpu(), frame.before_logits()).await?;
        let mut given = inputs.tensors();
        given.extend(tensors.iter().map(|(part, tensor)| (*part, tensor)));
        self.run(Stage::Logits, &shapes, None, &given).await?;
        let weights = [(Part::Wq, inputs.wq), (Part::Wk, Some(inputs.wk))];
        tensors.extend(weights.into_iter().filter_map(|(part, tensor)| Some((part, tensor?.clone()))));
        let logits = inputs.tensors().values().fold(tensors[&Part::Logits].clone(), |all, from| all.under_all(from));
        tensors.insert(Part::Logits, logits);
        Ok(SeerGateSaved { shapes, tensors })
    }

    /// The target: of each block the largest probability that attention gives to any pair in it, each row divided by its sum. f32
    /// [batch, heads_q, rows, blocks of keys]. `attention`, its inputs and the log-sum-exp are those of the dense attention whose
    /// blocks the gate learns; `gate` is what the gate reads.
    ///
    /// # Errors
    /// Those of [`ScoreReduction::forward`] and [`SeerGate::forward`].
    pub async fn target(
        &self,
        gate: &SeerGateInputs<'_>,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let shapes = SeerGateShapes::of_inputs(self.params(), gate, false);
        let frame = self.params().frame(&shapes)?;
        let [query_block, key_block] = self.params().block;
        let params = ScoreReductionParams {
            attention: attention.clone(),
            reduction: Reduction::Max,
            heads: HeadGroups::Each,
            queries: QueryGroups::Blocks(query_block),
            keys: KeyGroups::Blocks(key_block),
            top_k: None,
        };
        let inputs = ScoreReductionInputs { attention: *inputs, lse, segments: None };
        let wanted = ScoreReduction::new(self.gpu(), params)?.forward(&inputs).await?.values;
        let bound = format!("{:?}, by the gate's q and k", frame.logits().shape);
        let fits = wanted.shape() == frame.logits().shape;
        require(fits, "inputs: [batch, heads, blocks, blocks]", format!("{:?}", wanted.shape()), bound)?;
        self.normalize(gate, &wanted).await
    }

    /// A target from any numbers that are not negative, f32 [batch, heads_q, rows, blocks of keys]: each row divided by its sum (+
    /// 1e-9) over the blocks that it sees, 0 elsewhere.
    ///
    /// # Errors
    /// [`Error::Argument`] for another shape or type; those of [`SeerGate::forward`].
    pub async fn normalize(&self, gate: &SeerGateInputs<'_>, wanted: &Tensor) -> Result<Tensor> {
        let shapes = SeerGateShapes::of_inputs(self.params(), gate, false);
        let frame = self.params().frame(&shapes)?;
        check_like_logits("wanted", wanted, frame.logits().shape, self.gpu())?;
        let target = Tensor::empty(self.gpu(), frame.logits()).await?;
        let given = Tensors::from([(Part::Wanted, wanted), (Part::Target, &target)]);
        self.run(Stage::Target, &shapes, Some(wanted.layout().clone()), &given).await?;
        Ok(target.under_all(wanted))
    }

    /// The Kullback-Leibler divergence of softmax(logits) from the target, mean over all elements of the rows that count, times the
    /// weight: f32 [1, 1, 1, 1]; and its gradient in the logits, `weight · (softmax(z) · Σ T − T) / elements`. The target is f32,
    /// not negative, [batch, heads_q, rows, blocks of keys]; what a row does not see is not looked at.
    ///
    /// # Errors
    /// [`Error::Argument`] for a target of another shape or type, a weight that is not finite, a first row beyond the last; those of
    /// [`SeerGate::forward`].
    pub async fn loss(&self, saved: &SeerGateSaved, target: &Tensor, loss: SeerLoss) -> Result<(Tensor, Tensor)> {
        let SeerLoss { weight, from_row } = loss;
        require(weight.is_finite(), "weight", weight, "finite")?;
        let [_, _, rows, _] = saved.logits().shape();
        require(from_row < rows.max(1), "from_row", from_row, format!("below {rows}, the rows"))?;
        check_like_logits("target", target, saved.logits().shape(), self.gpu())?;
        let gradient = Tensor::empty(self.gpu(), saved.logits().layout().clone()).await?;
        let value = Tensor::empty(self.gpu(), Layout::heads_first(DType::F32, [1; 4])).await?;
        let given = Tensors::from([
            (Part::Logits, saved.logits()),
            (Part::Target, target),
            (Part::LogitsGradient, &gradient),
            (Part::Loss, &value),
        ]);
        let layout = Some(target.layout().clone());
        self.run(Stage::Loss(from_row, weight.to_bits()), &saved.shapes, layout, &given).await?;
        let judged = |tensor: Tensor| tensor.under_all(saved.logits()).under_all(target);
        Ok((judged(value), judged(gradient)))
    }

    /// Gradients of the weights from that of the logits, f32 [batch, heads_q, rows, blocks of keys]; what a row does not see is not
    /// looked at.
    ///
    /// # Errors
    /// [`Error::Argument`] for a gradient of another shape or type; those of [`SeerGate::forward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        check_like_logits("dlogits", dlogits, saved.logits().shape(), self.gpu())?;
        let frame = self.params().frame(&saved.shapes)?;
        let mut found = empty(self.gpu(), frame.gradients()).await?;
        let mut given: Tensors = saved.tensors.iter().chain(&found).map(|(part, tensor)| (*part, tensor)).collect();
        given.insert(Part::LogitsGradient, dlogits);
        self.run(Stage::Gradients, &saved.shapes, Some(dlogits.layout().clone()), &given).await?;
        let mut take = |part| found.remove(&part).map(|t| t.under_all(saved.logits()).under_all(dlogits));
        Ok(SeerGateGradients { dwq: take(Part::WqGradient), dwk: take(Part::WkGradient).expect("keys are weighted") })
    }

    /// Prepares a chain, or takes the one that was prepared, and submits it.
    async fn run(
        &self,
        stage: Stage,
        shapes: &SeerGateShapes,
        layout: Option<Layout>,
        given: &Tensors<'_>,
    ) -> Result<()> {
        self.gpu().alive()?;
        let key = (stage, shapes.clone(), layout);
        let prepared = match kept(&self.kept_chains, &key) {
            Some(found) => found,
            None => {
                let chain = self.chain(&key.0, shapes, given)?;
                keep(&self.kept_chains, &key, ChainPrepared::new(self.gpu(), &chain).await?)
            }
        };
        prepared.submit(given).await
    }

    /// The chain of a stage over tensors of the caller's, each in a buffer of its own.
    fn chain(&self, stage: &Stage, shapes: &SeerGateShapes, given: &Tensors) -> Result<Chain> {
        let frame = self.params().frame(shapes)?;
        let mut places = Places::default();
        for (part, tensor) in given {
            places.own(*part, tensor.layout().clone());
        }
        frame.training(stage, places, self.gpu().caps())
    }
}

/// The text of every kernel of training, with its name.
#[cfg(feature = "catalogue")]
pub(crate) fn training_texts(
    caps: &crate::Caps,
    params: &crate::SeerGateParams,
    shapes: &SeerGateShapes,
) -> Result<Vec<(String, String)>> {
    let frame = params.frame(shapes)?;
    let mut texts = vec![];
    for stage in [Stage::Target, Stage::Loss(0, 0), Stage::Gradients] {
        let mut places = shapes.places();
        let given = [Part::Wanted, Part::Target, Part::LogitsGradient].map(|part| (part, frame.logits()));
        let loss = (Part::Loss, Layout::heads_first(DType::F32, [1; 4]));
        for (part, layout) in frame.before_logits().into_iter().chain(frame.gradients()).chain(given).chain([loss]) {
            places.own(part, layout);
        }
        let chain = frame.training(&stage, places, caps)?;
        texts.extend(chain.wgsl().into_iter().map(|(name, text)| (name.to_string(), text)));
    }
    Ok(texts)
}

impl Frame {
    fn training(&self, stage: &Stage, mut places: Places, caps: &crate::Caps) -> Result<Chain> {
        let [rows, cols] = self.pairs();
        let between = match stage {
            Stage::Logits | Stage::Target => vec![],
            Stage::Loss(..) => {
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
            Stage::Loss(from, weight) => {
                let elements = self.batch() * self.heads * (rows - from.min(&rows)) * cols;
                let weight = f32::from_bits(*weight) / elements.max(1) as f32;
                vec![self.loss(*from, weight), self.sum_rows(Part::RowShares, Part::Loss, &places)]
            }
            Stage::Gradients => self.to_gradients(&places),
        };
        let steps = tasks.into_iter().map(|task| task.plan(caps, self, &places)).collect::<Result<_>>()?;
        Ok(Chain { steps, between })
    }
}

fn check_like_logits(name: &str, tensor: &Tensor, wanted: [usize; 4], gpu: &Gpu) -> Result<()> {
    check_device(name, tensor, gpu)?;
    let shape = tensor.shape();
    require(shape == wanted, &format!("{name}.shape"), format!("{shape:?}"), format!("{wanted:?}, as the logits"))?;
    let dtype = tensor.layout().dtype;
    require(dtype == DType::F32, &format!("{name}.dtype"), dtype, "f32")
}
