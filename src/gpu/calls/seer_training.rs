//! Training of SeerAttention's gates on a device.

use super::attention::AttentionInputs;
use super::score_reduction::{ScoreReduction, ScoreReductionInputs};
use crate::error::require;
use crate::gate::Training;
use crate::gpu::call::Call;
use crate::gpu::forward::Planner;
use crate::gpu::prepared::check_device;
use crate::program::Name;
use crate::{
    DType, FlashParams, Gpu, HeadGroups, KeyGroups, QueryGroups, Reduction, Result, ScoreReductionParams, Tensor,
};

/// What a forward pass of a gate keeps for its loss and gradients.
#[derive(Clone, Debug)]
pub struct SeerGateSaved {
    training: Training,
    logits: Tensor,
    /// Tokens, weights, and what came of them.
    tensors: Vec<(Name, Tensor)>,
}

/// Gradients of a gate's weights, f32, with the weights' shapes.
#[derive(Clone, Debug)]
pub struct SeerGateGradients {
    /// Of the linear map of queries, where there is one.
    pub dwq: Option<Tensor>,
    /// Of the linear map of pooled keys.
    pub dwk: Tensor,
    /// Of the weights of the queries' RMS norm, where there is one.
    pub dnorm_q: Option<Tensor>,
    /// Of the weights of the keys' RMS norm, where there is one.
    pub dnorm_k: Option<Tensor>,
}

impl Training {
    /// The target that attention's largest probabilities give.
    pub(super) async fn target_of(
        &self,
        gpu: &Gpu,
        heads: HeadGroups,
        attention: &FlashParams,
        inputs: &AttentionInputs<'_>,
        lse: &Tensor,
    ) -> Result<Tensor> {
        let [query_block, key_block] = self.0.block;
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
        let bound = format!("{:?}, to match the gate's q and k", self.logits_shape());
        let fits = wanted.shape() == self.logits_shape();
        require(fits, "inputs: [batch, heads, blocks, blocks]", format!("{:?}", wanted.shape()), bound)?;
        self.normalized(gpu, &wanted).await
    }

    /// A target from numbers that are not negative.
    pub(super) async fn normalized(&self, gpu: &Gpu, wanted: &Tensor) -> Result<Tensor> {
        check_like("wanted", wanted, self.logits_shape(), gpu)?;
        let plan: Planner = &|caps, shapes| self.plan_target(caps, shapes);
        Ok(gpu.run(plan, &[], &[("wanted", wanted)]).await?.take("target"))
    }
}

impl SeerGateSaved {
    /// From tokens and weights to logits.
    pub(super) async fn new(gpu: &Gpu, training: Training, given: &dyn Call) -> Result<Self> {
        let plan: Planner = &|caps, shapes| training.plan_logits(caps, shapes);
        // Lengths are in the frame.
        let tensors = given.tensors();
        let mut tensors: Vec<(Name, Tensor)> = gpu.run(plan, &[], &tensors).await?.into_all();
        let place = tensors.iter().position(|(name, _)| name == "logits").expect("a result of the program");
        let (_, logits) = tensors.swap_remove(place);
        tensors.extend(given.tensors().into_iter().map(|(name, tensor)| (name, tensor.clone())));
        Ok(Self { training, logits, tensors })
    }

    /// The scores before the softmax, f32 [batch, heads, rows, blocks of keys]; −∞ where a row does not see a block.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    pub(super) async fn loss(
        &self,
        gpu: &Gpu,
        target: &Tensor,
        weight: f32,
        from_row: usize,
    ) -> Result<(Tensor, Tensor)> {
        require(weight.is_finite(), "weight", weight, "finite")?;
        let [_, _, rows, _] = self.training.logits_shape();
        require(from_row < rows.max(1), "from_row", from_row, format!("below {rows}, the number of rows"))?;
        check_like("target", target, self.logits.shape(), gpu)?;
        let plan: Planner = &|caps, shapes| self.training.plan_loss(weight, from_row, caps, shapes);
        let mut found = gpu.run(plan, &[], &[("logits", &self.logits), ("target", target)]).await?;
        Ok((found.take("loss"), found.take("dlogits")))
    }

    pub(super) async fn backward(&self, gpu: &Gpu, dlogits: &Tensor) -> Result<SeerGateGradients> {
        check_like("dlogits", dlogits, self.logits.shape(), gpu)?;
        let plan: Planner = &|caps, shapes| self.training.plan_gradients(caps, shapes);
        let mut given: Vec<(Name, &Tensor)> =
            self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        given.push(("dlogits".into(), dlogits));
        let mut found = gpu.run(plan, &[], &given).await?;
        Ok(SeerGateGradients {
            dwq: found.take_if("dwq"),
            dwk: found.take("dwk"),
            dnorm_q: found.take_if("dnorm_q"),
            dnorm_k: found.take_if("dnorm_k"),
        })
    }
}

fn check_like(name: &str, tensor: &Tensor, wanted: [usize; 4], gpu: &Gpu) -> Result<()> {
    check_device(name, tensor, gpu)?;
    let shape = tensor.shape();
    require(shape == wanted, &format!("{name}.shape"), format!("{shape:?}"), format!("{wanted:?}, like the logits"))?;
    let dtype = tensor.layout().dtype;
    require(dtype == DType::F32, &format!("{name}.dtype"), dtype, "f32")
}
