//! Cases of summaries of linear attention, and of their gradients.

use super::linear::compare;
use super::ready::{Owned, Ready};
use super::{Case, LinearCase, Outcome, Tolerance, linear_cases, normal, poisoned};
use crate::program::Kernel;
use crate::reference::{linear_summary, linear_summary_backward};
use crate::{Caps, DType, Gpu, GpuTime, Layout, LinearAlgorithm, LinearRule, Program, Result};
use futures::future::LocalBoxFuture;

/// What the tokens of a problem do to a state.
#[derive(Clone, Debug)]
pub struct LinearSummaryCase {
    /// The problem: its states do not count.
    pub tokens: LinearCase,
    /// Whether it is the gradients.
    pub backward: bool,
}

impl LinearSummaryCase {
    fn seed(&self) -> u64 {
        self.tokens.seed
    }

    /// Shapes of ΔS and M.
    fn parts(&self) -> [[usize; 4]; 2] {
        let added = self.tokens.state_shape();
        let [entries, heads, rows, _] = added;
        let columns = if self.tokens.params.rule == LinearRule::Delta { rows } else { 1 };
        [added, [entries, heads, rows, columns]]
    }

    fn gradients(&self) -> [Vec<f32>; 2] {
        let part = |i: usize| normal(self.seed() + 10 + i as u64, self.parts()[i].iter().product(), 1.0, DType::F32);
        [part(0), part(1)]
    }

    fn plan(&self, caps: &Caps) -> Result<Program> {
        let (shapes, params) = (self.tokens.shapes(), &self.tokens.params);
        if !self.backward {
            return params.plan_summary(caps, &shapes);
        }
        let [added, transition] = self.parts().map(|shape| Layout::heads_first(DType::F32, shape));
        params.plan_summary_backward(caps, &shapes.tensor("dadded", added).tensor("dtransition", transition))
    }

    /// Results by name.
    fn expected(&self) -> Vec<(&'static str, Vec<f64>)> {
        let params = &self.tokens.params;
        if !self.backward {
            let [added, transition] = self.tokens.with_problem(|problem| linear_summary(params, problem));
            return vec![("added", added), ("transition", transition)];
        }
        let [added, transition] = self.gradients();
        let parts = [&added[..], &transition];
        let found = self.tokens.with_problem(|problem| linear_summary_backward(params, problem, parts));
        let [_, dk, dv] = found.tokens;
        let (gates, betas) = (self.tokens.gates.is_some(), self.tokens.betas.is_some());
        let all = [("dk", dk, true), ("dv", dv, true), ("dg", found.dg, gates), ("dbeta", found.dbeta, betas)];
        all.into_iter().filter(|(.., there)| *there).map(|(name, values, _)| (name, values)).collect()
    }

    async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let uploaded = self.tokens.upload(gpu).await?;
        let mut call = Owned::of(self.tokens.inputs(&uploaded));
        for ((name, shape), values) in ["dadded", "dtransition"].into_iter().zip(self.parts()).zip(self.gradients()) {
            if self.backward {
                call.push(name, poisoned(gpu, Layout::heads_first(DType::F32, shape), &values).await?);
            }
        }
        Ready::of(gpu, call, self.plan(gpu.caps())?, self.expected().into_iter().map(|(name, _)| name)).await
    }
}

impl Case for LinearSummaryCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        format!("summary{}, {}", if self.backward { " backward" } else { "" }, self.tokens.name())
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        let more = if self.tokens.params.rule == LinearRule::Delta { 2.0 } else { 1.0 };
        self.tokens.flops() * more * if self.backward { 3.0 } else { 1.0 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let unit = if self.backward { 1e-5 } else { 2e-6 };
            let compare = |name: &str, dtype, found: &[f32], expected: &[f64]| match name {
                // What is left of 1: hard gates leave less than f32 has.
                "transition" => Tolerance { dtype, unit, magnitude: 0.0 }.compare(found, expected),
                _ => compare(dtype, unit, found, expected),
            };
            self.ready(gpu).await?.compared(self.expected(), compare).await
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Both rules, gates of every kind, each algorithm, and gradients.
pub fn linear_summary_cases() -> Vec<LinearSummaryCase> {
    let algorithms = [LinearAlgorithm::Recurrent, LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass];
    // Of the catalogue, without states; padding and packed sequences, directions, grouped heads and types among them.
    let fits = |case: &LinearCase| case.params.causal && case.params.normalize.is_none() && !case.in_place;
    let problems = linear_cases().into_iter().filter(fits).filter(|case| case.tokens >= 40 && case.dims.0 < 128);
    let problems: Vec<LinearCase> = problems.map(|case| LinearCase { h0: false, z0: false, ..case }).collect();
    let mut cases: Vec<LinearSummaryCase> = vec![];
    for (i, case) in problems.into_iter().step_by(3).enumerate() {
        let params = crate::LinearParams { algorithm: Some(algorithms[i % 3]), chunk: None, ..case.params.clone() };
        cases.push(LinearSummaryCase { tokens: LinearCase { params, ..case }, backward: i % 4 == 3 });
    }
    cases
}
