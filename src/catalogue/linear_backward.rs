//! Cases of the gradients of linear attention.

use super::linear::compare;
use super::ready::{Owned, Ready};
use super::{Case, KernelParams, LinearCase, Outcome, Problem, linear_cases, normal, poisoned, random_linear_cases};
use crate::program::Kernel;
use crate::reference::{LinearGradientsReference, linear_backward};
use crate::{Caps, DType, Gpu, GpuTime, Layout, LinearAttention, LinearParams, Program, Result, Tensor};
use futures::future::LocalBoxFuture;

/// The gradients of one problem of linear attention.
#[derive(Clone, Debug)]
pub struct LinearBackwardCase {
    /// The forward pass.
    pub forward: LinearCase,
    /// Whether the last state has a gradient.
    pub dht: bool,
}

/// Gradients by name.
const GRADIENTS: [&str; 8] = ["dq", "dk", "dv", "dg", "dbeta", "dslopes", "dh0", "dz0"];

/// Allowed of an f32 gradient: its error's root mean square over its own.
const ALLOWED: f64 = 1e-5;

impl LinearBackwardCase {
    /// The gradients of this problem.
    pub fn of(forward: LinearCase) -> Self {
        let dht = forward.seed.is_multiple_of(20);
        // A state that goes on in place is gone when gradients are wanted.
        let h0 = forward.h0 || forward.in_place;
        let z0 = forward.z0 || (forward.in_place && forward.params.normalize.is_some());
        Self { forward: LinearCase { in_place: false, h0, z0, ..forward }, dht }
    }

    /// Those that come out, by name.
    fn results(of: LinearGradientsReference, ready: &Ready) -> Vec<(&'static str, Vec<f64>)> {
        let LinearGradientsReference { tokens: [dq, dk, dv], dg, dbeta, dslopes, dh0, dz0 } = of;
        let all = GRADIENTS.into_iter().zip([dq, dk, dv, dg, dbeta, dslopes, dh0, dz0]);
        all.filter(|(name, _)| ready.tensor(name).is_some()).collect()
    }

    /// A slope's gradient is a sum of the tokens' that may cancel: its error counts against the sum of their magnitudes.
    fn compare_slopes(&self, found: &[f32], expected: &[f64], dg: &[f64]) -> Outcome {
        let [batch, heads, tokens, _] = self.rows();
        let row = |b: usize, h: usize| &dg[(b * heads + h) * tokens..][..tokens];
        let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
        for (h, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let all: f64 = (0..batch).flat_map(|b| row(b, h)).map(|x| x.abs()).sum();
            let error = (f64::from(found) - expected).abs();
            // A NaN is more than anything.
            let error = if error.is_finite() { error } else { f64::INFINITY };
            let over_tolerance = if error == 0.0 { 0.0 } else { error / (ALLOWED * all) };
            outcome = outcome.and(Outcome { error, over_tolerance });
        }
        outcome
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

    fn dzt(&self) -> Option<Vec<f32>> {
        let count = self.forward.sums_shape().iter().product();
        let has = self.dht && self.forward.params.normalize.is_some();
        has.then(|| normal(self.forward.seed + 9, count, 1.0, DType::F32))
    }

    fn expected(&self) -> LinearGradientsReference {
        let (dout, dht, dzt) = (self.dout(), self.dht(), self.dzt());
        let params = &self.forward.params;
        self.forward.with_problem(|problem| linear_backward(params, problem, &dout, [dht.as_deref(), dzt.as_deref()]))
    }

    fn layout(&self, dtype: DType, shape: [usize; 4]) -> Layout {
        if self.forward.strided { Layout::heads_last(dtype, shape).at(2) } else { Layout::heads_first(dtype, shape) }
    }

    fn dht_layout(&self) -> Option<Layout> {
        self.dht.then(|| Layout::heads_first(DType::F32, self.forward.state_shape()))
    }

    fn dzt_layout(&self) -> Option<Layout> {
        self.dzt().map(|_| Layout::heads_first(DType::F32, self.forward.sums_shape()))
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan_backward`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        let dout = self.layout(self.forward.dtypes[1], self.rows());
        let shapes = self
            .forward
            .shapes()
            .tensor("dout", dout)
            .tensor_if("dht", self.dht_layout())
            .tensor_if("dzt", self.dzt_layout());
        self.forward.params.plan_backward(caps, &shapes)
    }

    /// Uploads the values and prepares the kernels.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let uploaded = self.forward.upload(gpu).await?;
        let mut call = Owned::of(self.forward.inputs(&uploaded));
        let mut dout = self.dout();
        self.forward.pad(&mut dout, self.rows());
        call.push("dout", poisoned(gpu, self.layout(self.forward.dtypes[1], self.rows()), &dout).await?);
        for (name, values, layout) in [("dht", self.dht(), self.dht_layout()), ("dzt", self.dzt(), self.dzt_layout())] {
            if let (Some(values), Some(layout)) = (values, layout) {
                call.push(name, poisoned(gpu, layout, &values).await?);
            }
        }
        let program = self.plan(gpu.caps())?;
        for name in GRADIENTS {
            let Some(Layout { dtype, shape, .. }) = program.tensor(name).map(|tensor| tensor.layout.clone()) else {
                continue;
            };
            let is_token = ["dq", "dk", "dv"].contains(&name);
            let layout = if is_token { self.layout(dtype, shape) } else { Layout::heads_first(dtype, shape) };
            call.push(name, Tensor::empty(gpu, layout).await?);
        }
        let attention = LinearAttention::new(gpu, self.forward.params.clone())?;
        let prepared = attention.prepare_backward(&call).await?;
        Ok(Ready::new(call, prepared))
    }
}

impl Case for LinearBackwardCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        format!("backward, {}{}", self.forward.name(), if self.dht { ", dht" } else { "" })
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        3.0 * self.forward.flops()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let (ready, expected) = (self.ready(gpu).await?, self.expected());
            let dg = expected.dg.clone();
            let compare = |name: &str, dtype, found: &[f32], expected: &[f64]| match name {
                "dslopes" => self.compare_slopes(found, expected, &dg),
                _ => compare(dtype, ALLOWED, found, expected),
            };
            ready.compared(Self::results(expected, &ready), compare).await
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let ready = self.ready(gpu).await?;
            let (params, expected) =
                (KernelParams::Linear(self.forward.params.clone()), Self::results(self.expected(), &ready));
            Ok(Some(Problem { params, backward: true, ready, expected }))
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
