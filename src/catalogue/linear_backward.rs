//! Cases of the gradients of linear attention.

use super::linear::{Uploaded, compare};
use super::{Case, LinearCase, Outcome, linear_cases, normal, poisoned, random_linear_cases};
use crate::program::Name;
use crate::reference::{LinearGradientsReference, linear_backward};
use crate::{
    Caps, DType, Gpu, GpuTime, Layout, LinearAttention, LinearGradients, LinearParams, Prepared, Program, Result,
    Shapes, Tensor,
};
use futures::future::LocalBoxFuture;

/// The gradients of one problem of linear attention.
#[derive(Clone, Debug)]
pub struct LinearBackwardCase {
    /// The forward pass.
    pub forward: LinearCase,
    /// Whether the last state has a gradient.
    pub dht: bool,
}

/// A case on the GPU, ready to be timed.
#[derive(Debug)]
pub struct ReadyLinearBackward {
    case: LinearBackwardCase,
    uploaded: Uploaded,
    from: (Tensor, Option<Tensor>),
    to: LinearGradients,
    prepared: Prepared,
}

/// Allowed of an f32 gradient: its error's root mean square over its own.
const ALLOWED: f64 = 1e-5;

impl LinearBackwardCase {
    /// The gradients of this problem.
    pub fn of(forward: LinearCase) -> Self {
        let dht = forward.seed.is_multiple_of(20);
        // A state that goes on in place is gone when gradients are wanted.
        let h0 = forward.h0 || forward.in_place;
        Self { forward: LinearCase { in_place: false, h0, ..forward }, dht }
    }

    fn rows(&self) -> [usize; 4] {
        let [batch, _, rows, _] = self.forward.token_shapes()[0];
        [batch, self.forward.all_heads(), rows, self.forward.dims.1]
    }

    fn dout(&self) -> Vec<f32> {
        normal(self.forward.seed + 5, self.rows().iter().product(), 1.0, self.forward.dtypes[1])
    }

    fn dht(&self) -> Option<Vec<f32>> {
        let count = self.forward.state_shape().iter().product();
        self.dht.then(|| normal(self.forward.seed + 6, count, 1.0, DType::F32))
    }

    fn expected(&self) -> LinearGradientsReference {
        let (dout, dht) = (self.dout(), self.dht());
        let params = &self.forward.params;
        self.forward.with_problem(|problem| linear_backward(params, problem, &dout, dht.as_deref()))
    }

    fn layout(&self, dtype: DType, shape: [usize; 4]) -> Layout {
        if self.forward.strided { Layout::heads_last(dtype, shape).at(2) } else { Layout::heads_first(dtype, shape) }
    }

    fn dht_layout(&self) -> Option<Layout> {
        self.dht.then(|| Layout::heads_first(DType::F32, self.forward.state_shape()))
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_backward`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        let dout = self.layout(self.forward.dtypes[1], self.rows());
        let shapes = self.forward.shapes().tensor("dout", dout).tensor_if("dht", self.dht_layout());
        self.forward.params.plan_backward(caps, &shapes)
    }

    /// Uploads the values and prepares the kernels.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn ready(&self, gpu: &Gpu) -> Result<ReadyLinearBackward> {
        let uploaded = self.forward.upload(gpu).await?;
        let inputs = self.forward.inputs(&uploaded);
        let mut dout = self.dout();
        self.forward.pad(&mut dout, self.rows());
        let dout = poisoned(gpu, self.layout(self.forward.dtypes[1], self.rows()), &dout).await?;
        let dht = match (self.dht(), self.dht_layout()) {
            (Some(values), Some(layout)) => Some(poisoned(gpu, layout, &values).await?),
            _ => None,
        };
        let params = &self.forward.params;
        let program = self.plan(gpu.caps())?;
        let layout = |name: &str| program.tensor(name).map(|tensor| tensor.layout.clone());
        let like = async |name| {
            let layout = layout(name).expect("a gradient of every call");
            Tensor::empty(gpu, self.layout(layout.dtype, layout.shape)).await
        };
        let some = async |name| match layout(name) {
            Some(layout) => Ok::<_, crate::Error>(Some(Tensor::empty(gpu, layout).await?)),
            None => Ok(None),
        };
        let to = LinearGradients {
            dq: like("dq").await?,
            dk: like("dk").await?,
            dv: like("dv").await?,
            dg: some("dg").await?,
            dslopes: some("dslopes").await?,
            dh0: some("dh0").await?,
        };
        let shapes = Shapes::of((&inputs, of_outputs(&dout, &dht), &to));
        let prepared = LinearAttention::new(gpu, params.clone())?.prepare_backward(&shapes).await?;
        Ok(ReadyLinearBackward { case: self.clone(), uploaded, from: (dout, dht), to, prepared })
    }
}

fn of_outputs<'a>(dout: &'a Tensor, dht: &'a Option<Tensor>) -> Vec<(Name, &'a Tensor)> {
    let dht = dht.iter().map(|dht| ("dht".into(), dht));
    [("dout".into(), dout)].into_iter().chain(dht).collect()
}

impl ReadyLinearBackward {
    /// What runs.
    pub fn plan(&self) -> &Program {
        self.prepared.plan()
    }

    /// Runs it once, and measures.
    ///
    /// # Errors
    /// A lost device.
    pub async fn time(&self, gpu: &Gpu) -> Result<GpuTime> {
        let inputs = self.case.forward.inputs(&self.uploaded);
        let (dout, dht) = &self.from;
        gpu.time(|pass| self.prepared.encode_in(pass, (&inputs, of_outputs(dout, dht), &self.to))).await
    }
}

impl Case for LinearBackwardCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        format!("backward, {}{}", self.forward.name(), if self.dht { ", dht" } else { "" })
    }

    fn flops(&self) -> f64 {
        3.0 * self.forward.flops()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.ready(gpu).await?;
            ready.time(gpu).await?;
            let (to, expected) = (&ready.to, self.expected());
            let [dq, dk, dv] = &expected.tokens;
            let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
            let optional = [(&to.dg, &expected.dg), (&to.dslopes, &expected.dslopes), (&to.dh0, &expected.dh0)];
            let optional = optional.into_iter().filter_map(|(found, expected)| Some((found.as_ref()?, expected)));
            for (found, expected) in [(&to.dq, dq), (&to.dk, dk), (&to.dv, dv)].into_iter().chain(optional) {
                let dtype = found.layout().dtype;
                outcome = outcome.and(compare(dtype, ALLOWED, &found.read().await?, expected));
            }
            Ok(outcome)
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Gradients of the catalogue's problems; those of one algorithm only, since gradients are found alike for all.
pub fn linear_backward_cases() -> Vec<LinearBackwardCase> {
    let mut cases: Vec<LinearBackwardCase> = vec![];
    // Fewer widths: each is nine shaders.
    let narrow = |case: &LinearCase| ![(128, 128), (16, 256), (7, 20), (1, 1)].contains(&case.dims);
    for case in linear_cases().into_iter().filter(narrow) {
        let params = LinearParams { algorithm: None, ..case.params.clone() };
        let case = LinearBackwardCase::of(LinearCase { params, ..case });
        let alike = |other: &LinearBackwardCase| {
            let seed = case.forward.seed;
            LinearBackwardCase { forward: LinearCase { seed, ..other.forward.clone() }, dht: case.dht }.name()
                == case.name()
        };
        if !cases.iter().any(alike) {
            cases.push(case);
        }
    }
    cases
}

/// Gradients of random problems.
pub fn random_linear_backward_cases(count: usize, seed: u64) -> Vec<LinearBackwardCase> {
    random_linear_cases(count, seed ^ 0xbac).into_iter().map(LinearBackwardCase::of).collect()
}
