//! Training of a gate: target, loss, gradients of its weights. Queries and keys are not trained.

use super::SeerGate;
use super::chains::{Stage, empty};
use super::frame::Frame;
use super::shapes::{SeerGateInputs, SeerGateShapes};
use super::step::{Part, Tensors};
#[cfg(feature = "catalogue")]
use crate::Caps;
use crate::dispatch::check_device;
use crate::error::require;
use crate::few::Few;
use crate::{
    AttentionInputs, DType, FlashParams, Gpu, HeadGroups, KeyGroups, Layout, QueryGroups, Reduction, Result,
    ScoreReduction, ScoreReductionInputs, ScoreReductionParams, Tensor,
};
#[cfg(doc)]
use crate::{BlockSparseAttention, Error};

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

/// What a forward pass of a gate leaves for its loss and gradients.
#[derive(Clone, Debug)]
pub struct SeerGateSaved {
    frame: Frame,
    tensors: Few<Part, Tensor>,
}

impl SeerGateSaved {
    /// The scores before the softmax, f32 [batch, heads, rows, blocks of keys]; −∞ where a row does not see a block.
    pub fn logits(&self) -> &Tensor {
        &self.tensors[&Part::Logits]
    }
}

/// Gradients of a gate's weights, f32, of their shapes.
#[derive(Clone, Debug)]
pub struct SeerGateGradients {
    /// Of the linear map of queries, where there is one.
    pub dwq: Option<Tensor>,
    /// Of the linear map of pooled keys.
    pub dwk: Tensor,
    /// Of the weights of the queries' RMS norm, where there is one.
    pub dnorm_q: Option<Tensor>,
    /// Of the keys'.
    pub dnorm_k: Option<Tensor>,
}

impl Frame {
    /// From tokens to logits, with what gradients need. `given` has tokens and weights.
    pub(super) async fn forward(self, gpu: &Gpu, given: Tensors<'_>) -> Result<SeerGateSaved> {
        let mut tensors = empty(gpu, self.before_logits()).await?;
        let all = given.iter().map(|(part, tensor)| (*part, *tensor));
        self.run(gpu, Stage::Logits, &all.chain(tensors.iter().map(|(part, tensor)| (*part, tensor))).collect())
            .await?;
        // What was found wrong with what came in holds for all that comes of it.
        let logits = given.values().fold(tensors[&Part::Logits].clone(), |all, from| all.under_all(from));
        tensors.insert(Part::Logits, logits);
        tensors.extend(given.into_iter().map(|(part, tensor)| (part, tensor.clone())));
        Ok(SeerGateSaved { frame: self, tensors })
    }

    /// The target that attention's largest probabilities give.
    pub(super) async fn target_of(
        &self,
        gpu: &Gpu,
        heads: HeadGroups,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let [query_block, key_block] = self.block;
        let params = ScoreReductionParams {
            attention: attention.clone(),
            reduction: Reduction::Max,
            heads,
            queries: QueryGroups::Blocks(query_block),
            keys: KeyGroups::Blocks(key_block),
            top_k: None,
        };
        let inputs = ScoreReductionInputs { attention: *inputs, lse, segments: None };
        let wanted = ScoreReduction::new(gpu, params)?.forward(&inputs).await?.values;
        let bound = format!("{:?}, by the gate's q and k", self.logits().shape);
        let fits = wanted.shape() == self.logits().shape;
        require(fits, "inputs: [batch, heads, blocks, blocks]", format!("{:?}", wanted.shape()), bound)?;
        self.normalized(gpu, &wanted).await
    }

    /// A target from numbers that are not negative.
    pub(super) async fn normalized(&self, gpu: &Gpu, wanted: &Tensor) -> Result<Tensor> {
        check_like("wanted", wanted, self.logits().shape, gpu)?;
        let target = Tensor::empty(gpu, self.logits()).await?;
        self.run(gpu, Stage::Target, &Tensors::from([(Part::Wanted, wanted), (Part::Target, &target)])).await?;
        Ok(target.under_all(wanted))
    }
}

impl SeerGateSaved {
    pub(super) async fn loss(&self, gpu: &Gpu, target: &Tensor, loss: SeerLoss) -> Result<(Tensor, Tensor)> {
        let SeerLoss { weight, from_row } = loss;
        require(weight.is_finite(), "weight", weight, "finite")?;
        let [rows, _] = self.frame.pairs();
        require(from_row < rows.max(1), "from_row", from_row, format!("below {rows}, the rows"))?;
        check_like("target", target, self.logits().shape(), gpu)?;
        let gradient = Tensor::empty(gpu, self.logits().layout().clone()).await?;
        let value = Tensor::empty(gpu, Layout::heads_first(DType::F32, [1; 4])).await?;
        let given = Tensors::from([
            (Part::Logits, self.logits()),
            (Part::Target, target),
            (Part::LogitsGradient, &gradient),
            (Part::Loss, &value),
        ]);
        self.frame.run(gpu, Stage::Loss(loss), &given).await?;
        let judged = |tensor: Tensor| tensor.under_all(self.logits()).under_all(target);
        Ok((judged(value), judged(gradient)))
    }

    pub(super) async fn backward(&self, gpu: &Gpu, dlogits: &Tensor) -> Result<SeerGateGradients> {
        check_like("dlogits", dlogits, self.logits().shape(), gpu)?;
        let found = empty(gpu, self.frame.gradients()).await?;
        let mut given: Tensors =
            self.tensors.iter().chain(found.iter()).map(|(part, tensor)| (*part, tensor)).collect();
        given.insert(Part::LogitsGradient, dlogits);
        self.frame.run(gpu, Stage::Gradients, &given).await?;
        let take = |part| found.get(&part).map(|t| t.clone().under_all(self.logits()).under_all(dlogits));
        Ok(SeerGateGradients {
            dwq: take(Part::WqGradient),
            dwk: take(Part::WkGradient).expect("keys are weighted"),
            dnorm_q: take(Part::NormQGradient),
            dnorm_k: take(Part::NormKGradient),
        })
    }
}

fn check_like(name: &str, tensor: &Tensor, wanted: [usize; 4], gpu: &Gpu) -> Result<()> {
    check_device(name, tensor, gpu)?;
    let shape = tensor.shape();
    require(shape == wanted, &format!("{name}.shape"), format!("{shape:?}"), format!("{wanted:?}, as the logits"))?;
    let dtype = tensor.layout().dtype;
    require(dtype == DType::F32, &format!("{name}.dtype"), dtype, "f32")
}

impl SeerGate {
    /// From tokens to logits, with what gradients need.
    ///
    /// # Errors
    /// Those of [`SeerGate::forward`].
    pub async fn forward_for_training(&self, inputs: &SeerGateInputs<'_>) -> Result<SeerGateSaved> {
        inputs.check_device(self.gpu())?;
        self.frame(inputs)?.forward(self.gpu(), inputs.tensors()).await
    }

    fn frame(&self, inputs: &SeerGateInputs) -> Result<Frame> {
        self.params().frame(&SeerGateShapes::of_inputs(self.params(), inputs, false))
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
        self.frame(gate)?.target_of(self.gpu(), HeadGroups::Each, attention, inputs, lse).await
    }

    /// A target from any numbers that are not negative, f32 [batch, heads_q, rows, blocks of keys]: each row divided by its sum (+
    /// 1e-9) over the blocks that it sees, 0 elsewhere.
    ///
    /// # Errors
    /// [`Error::Argument`] for another shape or type; those of [`SeerGate::forward`].
    pub async fn normalize(&self, gate: &SeerGateInputs<'_>, wanted: &Tensor) -> Result<Tensor> {
        self.frame(gate)?.normalized(self.gpu(), wanted).await
    }

    /// The Kullback-Leibler divergence of softmax(logits) from the target, mean over all elements of the rows that count, times the
    /// weight: f32 [1, 1, 1, 1]; and its gradient in the logits, `weight · (softmax(z) · Σ T − T) / elements`. The target is f32,
    /// not negative, [batch, heads_q, rows, blocks of keys]; what a row does not see is not looked at.
    ///
    /// # Errors
    /// [`Error::Argument`] for a target of another shape or type, a weight that is not finite, a first row beyond the last; those of
    /// [`SeerGate::forward`].
    pub async fn loss(&self, saved: &SeerGateSaved, target: &Tensor, loss: SeerLoss) -> Result<(Tensor, Tensor)> {
        saved.loss(self.gpu(), target, loss).await
    }

    /// Gradients of the weights from that of the logits, f32 [batch, heads_q, rows, blocks of keys]; what a row does not see is not
    /// looked at. Queries and keys get none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a gradient of another shape or type; those of [`SeerGate::forward`].
    pub async fn backward(&self, saved: &SeerGateSaved, dlogits: &Tensor) -> Result<SeerGateGradients> {
        saved.backward(self.gpu(), dlogits).await
    }
}

/// The text of every kernel of training, with its name.
#[cfg(feature = "catalogue")]
pub(crate) fn training_texts(
    caps: &Caps,
    params: &crate::SeerGateParams,
    shapes: &SeerGateShapes,
) -> Result<Vec<(String, String)>> {
    params.frame(shapes)?.texts(caps, &shapes.places())
}
