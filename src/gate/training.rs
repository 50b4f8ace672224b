//! Training of a gate: logits, target, loss, gradients of its weights. Queries and keys are not trained.

use super::frame::Frame;
use super::kernels::SideTensors;
use super::task::{Task, Tensor};
use crate::packed::Side;
use crate::program::{Builder, Program};
use crate::{Caps, DType, Layout, Result, Shapes};

/// The programs of training. All read and write tensors by the names of one call.
#[derive(Clone, Debug)]
pub(crate) struct Training(pub Frame);

impl Training {
    /// The shape of logits, targets and their gradients.
    pub fn logits_shape(&self) -> [usize; 4] {
        self.0.logits().shape
    }

    /// From tokens and weights to `logits`, with what gradients need.
    pub fn plan_logits(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let mut builder = Builder::new(caps, shapes)?;
        for side in [Side::Queries, Side::Keys] {
            if self.0.side(side).pools.is_some() {
                builder.output(SideTensors::of(side).pooled, self.0.pooled(side))?;
            }
            builder.output(self.0.side(side).vectors, self.0.vectors(side))?;
        }
        builder.output("logits", self.0.logits())?;
        self.finish(builder, self.0.to_logits(), "gate: logits")
    }

    /// A `target` from numbers that are `wanted`, which are not negative.
    pub fn plan_target(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let mut builder = Builder::new(caps, shapes)?;
        builder.output("target", self.0.logits())?;
        self.finish(builder, vec![self.0.target()], "gate: target")
    }

    /// The `loss` of `logits` against a `target`, and its gradient `dlogits`. Rows from the `from_row`-th on count.
    pub fn plan_loss(&self, weight: f32, from_row: usize, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let mut builder = Builder::new(caps, shapes)?;
        let [batch, heads, rows, cols] = self.logits_shape();
        builder.output("loss", Layout::heads_first(DType::F32, [1; 4]))?;
        builder.output("dlogits", self.0.logits())?;
        let shares = [batch, heads, rows, 1];
        builder.scratch("row shares", Layout::heads_first(DType::F32, shares))?;
        let elements = batch * heads * (rows - from_row.min(rows)) * cols;
        let each = weight / elements.max(1) as f32;
        let tasks = vec![self.0.loss(from_row, each), self.0.sum_rows("row shares", "loss", shares)];
        self.finish(builder, tasks, "gate: loss")
    }

    /// From `dlogits` to the gradients of weights and norms.
    pub fn plan_gradients(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let mut builder = Builder::new(caps, shapes)?;
        let mut tasks = vec![];
        for side in [Side::Queries, Side::Keys] {
            let (of, tensors) = (self.0.side(side), SideTensors::of(side));
            // A side that has nothing to learn is left alone.
            if !of.weighted && !of.normed {
                continue;
            }
            let vectors = self.0.vectors(side);
            let between = [Some(tensors.vectors_gradient), Some(tensors.projected_gradient)];
            let shares: Option<Tensor> = of.normed.then_some(tensors.norm_rows);
            for name in between.into_iter().chain([shares]).flatten() {
                builder.scratch(name, vectors.clone())?;
            }
            tasks.push(if side == Side::Queries { self.0.gradient_query() } else { self.0.gradient_key() });
            tasks.push(self.0.unproject(side));
            if of.weighted {
                builder.output(tensors.weights_gradient, self.0.weights(side))?;
                tasks.push(self.0.gradient_weights(side));
            }
            if of.normed {
                let norm = Layout::heads_first(DType::F32, [1, 1, 1, self.0.gate_dim]);
                builder.output(tensors.norm_gradient, norm)?;
                tasks.push(self.0.sum_rows(tensors.norm_rows, tensors.norm_gradient, vectors.shape));
            }
        }
        self.finish(builder, tasks, "gate: gradients of weights")
    }

    fn finish(&self, mut builder: Builder, tasks: Vec<Task>, words: &str) -> Result<Program> {
        tasks.into_iter().try_for_each(|task| task.add(&mut builder, self.0.sequences.clone()))?;
        builder.finish(words)
    }

    /// All of it: logits, target, loss, gradients. `shapes` has tokens and weights.
    pub fn plan(&self, weight: f32, from_row: usize, caps: &Caps, shapes: &Shapes) -> Result<[Program; 4]> {
        let logits = self.plan_logits(caps, shapes)?;
        let with = |shapes: Shapes, name: &'static str| shapes.tensor(name, self.0.logits());
        let all = logits
            .tensors
            .iter()
            .fold(Shapes::default(), |all, tensor| all.tensor(tensor.name.clone(), tensor.layout.clone()));
        let target = self.plan_target(caps, &with(Shapes::default(), "wanted"))?;
        let loss = self.plan_loss(weight, from_row, caps, &with(with(Shapes::default(), "logits"), "target"))?;
        Ok([logits, target, loss, self.plan_gradients(caps, &with(all, "dlogits"))?])
    }
}
