//! Cases of gates and betas of linear attention.

use super::ready::{Owned, Ready};
use super::{Case, Outcome, Tolerance, normal, poisoned};
use crate::program::Kernel;
use crate::reference::{LinearGateProblem, linear_gate, linear_gate_backward};
use crate::{Caps, DType, Gpu, GpuTime, Layout, LinearGateActivation, Program, Result, Shapes};
use futures::future::LocalBoxFuture;

/// Gates or betas, or their gradients.
#[derive(Clone, Debug)]
pub struct LinearGateCase {
    /// What makes them.
    pub activation: LinearGateActivation,
    /// Of what they are made of: [batch, heads, tokens, width].
    pub shape: [usize; 4],
    /// Its type.
    pub dtype: DType,
    /// Whether something is added to it.
    pub bias: bool,
    /// [batch, tokens, heads, width] in memory instead of contiguous.
    pub strided: bool,
    /// Whether it is the gradients.
    pub backward: bool,
    /// Seed of the random values.
    pub seed: u64,
}

impl LinearGateCase {
    fn layout(&self, dtype: DType) -> Layout {
        if self.strided { Layout::heads_last(dtype, self.shape).at(2) } else { Layout::heads_first(dtype, self.shape) }
    }

    /// Inputs by name: x, a_log, dt_bias, dout, those of them that are there.
    fn inputs(&self) -> Vec<(&'static str, Layout, Vec<f32>)> {
        let [_, heads, _, width] = self.shape;
        let softplus = self.activation == LinearGateActivation::Softplus;
        let shared = |width| Layout::heads_first(DType::F32, [1, heads, 1, width]);
        let all = [
            ("x", self.layout(self.dtype), true, 3.0),
            ("a_log", shared(1), softplus, 1.0),
            ("dt_bias", shared(width), softplus && self.bias, 1.0),
            ("dout", self.layout(DType::F32), self.backward, 1.0),
        ];
        let there = (self.seed..).zip(all).filter(|(_, (_, _, there, _))| *there);
        let values = |seed, layout: &Layout, spread| normal(seed, layout.shape.iter().product(), spread, layout.dtype);
        there.map(|(seed, (name, layout, _, spread))| (name, layout.clone(), values(seed, &layout, spread))).collect()
    }

    fn plan(&self, caps: &Caps) -> Result<Program> {
        let shapes = Shapes::new(self.inputs().into_iter().map(|(name, layout, _)| (name, layout)));
        if self.backward { self.activation.plan_backward(caps, &shapes) } else { self.activation.plan(caps, &shapes) }
    }

    /// Results by name.
    fn expected(&self) -> Vec<(&'static str, Vec<f64>)> {
        let inputs = self.inputs();
        let of = |name: &str| inputs.iter().find(|(other, ..)| *other == name).map(|(.., values)| &values[..]);
        let x = of("x").expect("always there");
        let problem = LinearGateProblem { x, shape: self.shape, a_log: of("a_log"), dt_bias: of("dt_bias") };
        let Some(dout) = of("dout") else { return vec![("out", linear_gate(self.activation, &problem))] };
        let found = linear_gate_backward(self.activation, &problem, dout);
        let shared = [("a_log", "da_log", found.da_log), ("dt_bias", "ddt_bias", found.ddt_bias)];
        let shared = shared.into_iter().filter(|(input, ..)| of(input).is_some());
        [("dx", found.dx)].into_iter().chain(shared.map(|(_, name, values)| (name, values))).collect()
    }

    async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let mut call = Owned::default();
        for (name, layout, values) in self.inputs() {
            call.push(name, poisoned(gpu, layout, &values).await?);
        }
        Ready::of(gpu, call, self.plan(gpu.caps())?, self.expected().into_iter().map(|(name, _)| name)).await
    }
}

impl Case for LinearGateCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        let Self { activation, shape: [b, h, n, d], dtype, bias, backward, .. } = self;
        let direction = if *backward { " backward" } else { "" };
        format!(
            "gates{direction}, {activation:?}: B {b} H {h} N {n} D {d}{} {dtype}",
            if *bias { " dt_bias" } else { "" }
        )
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        40.0 * self.shape.iter().product::<usize>() as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let compare = |name: &str, dtype, found: &[f32], expected: &[f64]| {
                // Sums are of as many terms as a head has.
                let unit = if ["out", "dx"].contains(&name) { 1e-6 } else { 1e-5 };
                Tolerance { dtype, unit, magnitude: 0.0 }.compare(found, expected)
            };
            self.ready(gpu).await?.compared(self.expected(), compare).await
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Both activations, per token and per channel, types, strides, and gradients.
pub fn linear_gate_cases() -> Vec<LinearGateCase> {
    let softplus = LinearGateActivation::Softplus;
    let sigmoid = LinearGateActivation::Sigmoid { factor: 2.0 };
    let kinds = [
        (softplus, [2, 3, 70, 1], DType::F32, true),
        (softplus, [1, 2, 33, 20], DType::F32, false),
        (softplus, [2, 2, 9, 7], DType::F16, true),
        (sigmoid, [2, 3, 70, 1], DType::F32, false),
        (sigmoid, [1, 4, 65, 1], DType::Bf16, false),
    ];
    let of = |(i, (activation, shape, dtype, bias))| {
        [false, true].map(|backward| LinearGateCase {
            activation,
            shape,
            dtype,
            bias,
            strided: i % 2 == 1,
            backward,
            seed: 9600 + 10 * i as u64,
        })
    };
    kinds.into_iter().enumerate().flat_map(of).collect()
}
