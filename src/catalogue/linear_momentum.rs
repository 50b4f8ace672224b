//! Cases of linear attention's memory with momentum, and of its gradients.

use super::linear::compare;
use super::ready::{Owned, Ready};
use super::{Case, KernelParams, LinearCase, Outcome, Problem, normal, poisoned, random_linear_cases};
use crate::program::Kernel;
use crate::reference::{LinearMomentumProblem, linear_momentum, linear_momentum_backward};
use crate::{
    Caps, DType, FeatureMap, Gpu, GpuTime, Layout, LinearAlgorithm, LinearMomentum, LinearParams, LinearRule, Program,
    Result,
};
use futures::future::LocalBoxFuture;

/// A problem of memory with momentum.
#[derive(Clone, Debug)]
pub struct LinearMomentumCase {
    /// Tokens, params and the memory.
    pub tokens: LinearCase,
    /// Heads of α, of η, of θ.
    pub heads: [usize; 3],
    /// Whether the momentum begins with another than an empty one. Where the memory is updated in place, it is too.
    pub s0: bool,
    /// Whether it is the gradients; then with those of both last states, or of the output alone.
    pub backward: Option<bool>,
}

const STEPS: [&str; 3] = ["alpha", "eta", "theta"];
const BOTH: [&str; 2] = ["dht", "dst"];

impl LinearMomentumCase {
    /// The rule on the tokens of another problem: without gates, betas or a normaliser.
    pub fn of(tokens: LinearCase) -> Self {
        let params = LinearParams {
            rule: LinearRule::Momentum,
            causal: true,
            slopes: None,
            normalize: None,
            algorithm: None,
            ..tokens.params
        };
        let heads = [tokens.heads.into_iter().max().unwrap_or(1); 3];
        let tokens = LinearCase { params, gates: None, by_channel: false, gate_heads: None, betas: None, ..tokens };
        Self { tokens: LinearCase { z0: false, ..tokens }, heads, s0: false, backward: None }
    }

    /// The gradients of the same problem.
    fn gradients(self, of_states: bool) -> Self {
        // A state that goes on in place is gone when gradients are wanted.
        let h0 = self.tokens.h0 || self.tokens.in_place;
        let tokens = LinearCase { in_place: false, h0, ..self.tokens };
        Self { tokens, backward: Some(of_states), ..self }
    }

    fn of_steps(&self) -> [[usize; 4]; 3] {
        let [batch, _, rows, _] = self.tokens.token_shapes()[0];
        self.heads.map(|heads| [batch, heads, rows, 1])
    }

    /// α and η within [0, 1], both ends among them; θ from 0 on, less for tokens that do not see what others of their chunk did.
    fn steps(&self) -> [Vec<f32>; 3] {
        let chunk = self.tokens.params.chunk.unwrap_or(1) as f32;
        let longest = self.tokens.longest_features();
        // Features that are all positive point the same way.
        let most = if longest > 1.0 { 1.0 / (chunk * longest) } else { 1.5 / chunk.sqrt() };
        let bounded = |i: usize, x: f32| match i {
            0 => (0.1 * x).clamp(0.0, 1.0),
            1 => (0.5 + 0.4 * x).clamp(0.0, 1.0),
            _ => most * (0.4 + 0.3 * x).clamp(0.0, 1.0),
        };
        let hard = |i: usize, n: usize, x: f32| if i == 0 && n % 31 == 13 { 1.0 } else { x };
        std::array::from_fn(|i| {
            let values = normal(self.tokens.seed + 20 + i as u64, self.of_steps()[i].iter().product(), 1.0, DType::F32);
            let dtype = self.tokens.dtypes[0];
            values.into_iter().enumerate().map(|(n, x)| dtype.round(hard(i, n, bounded(i, x)))).collect()
        })
    }

    fn has_momentum(&self) -> bool {
        self.s0 || self.tokens.in_place
    }

    /// A state's values, of a type.
    fn state(&self, number: u64, dtype: DType) -> Vec<f32> {
        normal(self.tokens.seed + 30 + number, self.tokens.state_shape().iter().product(), 0.5, dtype)
    }

    fn last(&self) -> Option<[Vec<f32>; 2]> {
        let wanted = self.backward == Some(true);
        wanted.then(|| [1, 2].map(|number| self.state(number, DType::F32)))
    }

    fn rows(&self) -> [usize; 4] {
        let [batch, _, rows, _] = self.tokens.token_shapes()[0];
        [batch, self.tokens.all_heads(), rows, self.tokens.dims.1]
    }

    fn dout(&self) -> Vec<f32> {
        normal(self.tokens.seed + 33, self.rows().iter().product(), 1.0, self.tokens.dtypes[1])
    }

    /// What runs for a call with all inputs.
    fn plan(&self, caps: &Caps) -> Result<Program> {
        let exact = |shape| Layout::heads_first(DType::F32, shape);
        let mut shapes = self.tokens.shapes();
        for (name, shape) in STEPS.into_iter().zip(self.of_steps()) {
            shapes = shapes.tensor(name, Layout::heads_first(self.tokens.dtypes[0], shape));
        }
        let state = self.tokens.state_layout();
        shapes = shapes.tensor_if("s0", (self.s0 && !self.tokens.in_place).then(|| state.clone()));
        if self.backward.is_none() {
            let shapes = match self.tokens.in_place {
                true => shapes.tensor("state", state.clone()).tensor("s", state),
                false => shapes.wanted("ht").wanted("st"),
            };
            return self.tokens.params.plan(caps, &shapes);
        }
        for name in BOTH.into_iter().filter(|_| self.backward == Some(true)) {
            shapes = shapes.tensor(name, exact(state.shape));
        }
        let dout = Layout::heads_first(self.tokens.dtypes[1], self.rows());
        self.tokens.params.plan_backward(caps, &shapes.tensor("dout", dout))
    }

    /// Results by name.
    fn expected(&self) -> Vec<(&'static str, Vec<f64>)> {
        let (params, steps) = (&self.tokens.params, self.steps());
        let s0 = self.has_momentum().then(|| self.state(0, self.tokens.of_states));
        self.tokens.with_problem(|tokens| {
            let steps = [0, 1, 2].map(|i| (&steps[i][..], self.heads[i]));
            let problem = LinearMomentumProblem { tokens: *tokens, steps, s0: s0.as_deref() };
            if self.backward.is_none() {
                let found = linear_momentum(params, &problem);
                let [ht, st] = if self.tokens.in_place { ["state", "s"] } else { ["ht", "st"] };
                return vec![("o", found.o), (ht, found.ht), (st, found.st)];
            }
            let last = self.last();
            let last = [0, 1].map(|i| last.as_ref().map(|of| &of[i][..]));
            let found = linear_momentum_backward(params, &problem, &self.dout(), last);
            let [[dq, dk, dv], [dalpha, deta, dtheta]] = [found.tokens, found.steps];
            let all = [
                ("dq", dq, true),
                ("dk", dk, true),
                ("dv", dv, true),
                ("dalpha", dalpha, true),
                ("deta", deta, true),
                ("dtheta", dtheta, true),
                ("dh0", found.dh0, self.tokens.h0),
                ("ds0", found.ds0, self.s0),
            ];
            all.into_iter().filter(|(.., there)| *there).map(|(name, values, _)| (name, values)).collect()
        })
    }

    /// Uploads the values and prepares the kernels.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let uploaded = self.tokens.upload(gpu).await?;
        let exact = |shape| Layout::heads_first(DType::F32, shape);
        let mut steps = vec![];
        for (mut values, shape) in self.steps().into_iter().zip(self.of_steps()) {
            self.tokens.pad(&mut values, shape);
            steps.push(poisoned(gpu, Layout::heads_first(self.tokens.dtypes[0], shape), &values).await?);
        }
        let layout = self.tokens.state_layout();
        let momentum = match self.has_momentum() {
            true => Some(poisoned(gpu, layout.clone(), &self.state(0, layout.dtype)).await?),
            false => None,
        };
        let [alpha, eta, theta] = &steps[..] else { unreachable!("three are made") };
        let in_place = self.tokens.in_place;
        let s0 = momentum.as_ref().filter(|_| !in_place);
        let inputs = self.tokens.inputs(&uploaded).with_momentum(LinearMomentum { alpha, eta, theta, s0 });
        let mut call = Owned::of(inputs);
        for (name, state) in [("state", uploaded.h0.clone()), ("s", momentum.clone())] {
            state.filter(|_| in_place).into_iter().for_each(|state| call.push(name, state));
        }
        if self.backward.is_some() {
            let mut dout = self.dout();
            self.tokens.pad(&mut dout, self.rows());
            let of_output = Layout::heads_first(self.tokens.dtypes[1], self.rows());
            call.push("dout", poisoned(gpu, of_output, &dout).await?);
        }
        for (name, values) in BOTH.into_iter().zip(self.last().into_iter().flatten()) {
            call.push(name, poisoned(gpu, exact(layout.shape), &values).await?);
        }
        let names: Vec<_> = self.expected().into_iter().map(|(name, _)| name).collect();
        let results = names.into_iter().filter(|name| call.tensor(name).is_none()).collect::<Vec<_>>();
        Ready::of(gpu, call, self.plan(gpu.caps())?, results).await
    }
}

impl Case for LinearMomentumCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        let Self { tokens, heads, s0, backward } = self;
        let label = match backward {
            None => "momentum",
            Some(false) => "momentum backward",
            Some(true) => "momentum backward of states",
        };
        format!("{label}, {}, steps of {heads:?}{}", tokens.name(), if *s0 { ", s0" } else { "" })
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        let each: usize = if self.backward.is_some() { 40 } else { 10 };
        let tokens: usize = self.tokens.places().iter().map(|place| place[2]).sum();
        (each * tokens * self.tokens.all_heads() * self.tokens.dims.0 * self.tokens.dims.1) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let unit = if self.backward.is_some() { 1e-5 } else { 2e-6 };
            let compare = |_: &str, dtype, found: &[f32], expected: &[f64]| compare(dtype, unit, found, expected);
            self.ready(gpu).await?.compared(self.expected(), compare).await
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let (params, ready) = (KernelParams::Linear(self.tokens.params.clone()), self.ready(gpu).await?);
            Ok(Some(Problem { params, backward: self.backward.is_some(), ready, expected: self.expected() }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Chunks of every kind, lengths around them and around segments and dispatches, widths, grouped heads, directions, states, packed
/// sequences, types, features; each forward and backward.
pub fn linear_momentum_cases() -> Vec<LinearMomentumCase> {
    let base = LinearCase { h0: true, dims: (20, 18), ..LinearCase::default() };
    let of = |tokens: usize, chunk: Option<usize>, case: &LinearCase| {
        let params = LinearParams { chunk, ..case.params.clone() };
        LinearMomentumCase { s0: true, ..LinearMomentumCase::of(LinearCase { tokens, params, ..case.clone() }) }
    };
    // Each width, type and chunk has shaders of its own: few of them, often.
    let lengths = [
        (1, None),
        (33, None),
        (300, None),
        (4, Some(5)),
        (65, Some(5)),
        (300, Some(5)),
        (500, Some(48)),
        (300, Some(200)),
    ];
    let mut cases: Vec<_> = lengths.into_iter().map(|(tokens, chunk)| of(tokens, chunk, &base)).collect();
    for (i, dims) in [(64, 64), (256, 20), (7, 33)].into_iter().enumerate() {
        let chunk = (i % 2 == 1).then_some(16);
        let case = of(40, chunk, &LinearCase { dims, h0: i % 2 == 0, strided: i % 2 == 1, ..base.clone() });
        cases.push(LinearMomentumCase { s0: i % 3 == 0, ..case });
    }
    let grouped = LinearCase { batch: 2, heads: [4, 1, 2], ..base.clone() };
    cases.push(LinearMomentumCase { heads: [1, 2, 4], ..of(50, None, &grouped) });
    for (i, packed) in [true, false].into_iter().enumerate() {
        let params = LinearParams { reverse: true, ..base.params.clone() };
        let sequences = vec![30, 0, 290, 1];
        let case = LinearCase { batch: 4, packed, sequences, spare: 9 * i, params, ..base.clone() };
        cases.push(of(290, (i == 0).then_some(5), &LinearCase { on_gpu: i == 1, spare: 0, ..case.clone() }));
        let dtypes = [DType::F16, DType::Bf16];
        cases.push(of(290, None, &LinearCase { in_place: true, h0: false, dtypes, ..case }));
    }
    let params = LinearParams { feature_map: FeatureMap::Elu1, l2_norm: true, scale: Some(0.3), ..base.params.clone() };
    cases.push(of(40, Some(5), &LinearCase { params, ..base.clone() }));
    for (tokens, of_states, in_place) in [(8, DType::F16, true), (300, DType::Bf16, true), (40, DType::F16, false)] {
        cases.push(of(tokens, None, &LinearCase { of_states, in_place, h0: !in_place, ..base.clone() }));
    }
    cases.push(of(0, None, &base));
    cases.extend(cases_over_chunks(&base));
    for (seed, case) in (15000..).step_by(50).zip(&mut cases) {
        case.tokens.seed = seed;
    }
    // Gradients are found alike for all algorithms.
    let exact =
        |case: &&LinearMomentumCase| case.tokens.of_states == DType::F32 && case.tokens.params.algorithm.is_none();
    let backward = cases.iter().filter(exact).enumerate().map(|(i, case)| case.clone().gradients(i % 2 == 0));
    cases.iter().cloned().chain(backward).collect()
}

/// Both ways over chunks, lengths around chunks and segments, errors of one memory that end with chunks and inside of them, directions, packed
/// sequences, types, states in place.
fn cases_over_chunks(base: &LinearCase) -> Vec<LinearMomentumCase> {
    let [one, three] = [LinearAlgorithm::OnePass, LinearAlgorithm::ThreePass];
    let of = |tokens: usize, chunk: Option<usize>, algorithm, case: &LinearCase| {
        let params = LinearParams { chunk, ..case.params.clone() };
        let mut found = LinearMomentumCase::of(LinearCase { tokens, params, ..case.clone() });
        found.tokens.params.algorithm = Some(algorithm);
        LinearMomentumCase { s0: true, ..found }
    };
    let lengths = [
        (1, None, one),
        (63, None, three),
        (300, None, one),
        (600, None, three),
        (100, Some(16), one),
        (600, Some(3), three),
    ];
    let mut cases: Vec<_> = lengths.into_iter().map(|(n, chunk, algorithm)| of(n, chunk, algorithm, base)).collect();
    cases.push(of(70, None, one, &LinearCase { dims: (64, 64), h0: false, ..base.clone() }));
    cases.push(of(70, Some(16), one, &LinearCase { dims: (7, 33), strided: true, ..base.clone() }));
    let grouped = LinearCase { batch: 2, heads: [4, 1, 2], ..base.clone() };
    cases.push(LinearMomentumCase { heads: [1, 2, 4], ..of(150, None, three, &grouped) });
    let params = LinearParams { reverse: true, ..base.params.clone() };
    let packed = LinearCase { batch: 4, packed: true, sequences: vec![30, 0, 290, 1], params, ..base.clone() };
    cases.push(of(290, None, one, &packed));
    let params = LinearParams { feature_map: FeatureMap::Elu1, l2_norm: true, ..base.params.clone() };
    let dtypes = [DType::F16, DType::Bf16];
    let in_place = LinearCase { in_place: true, h0: false, dtypes, params, of_states: DType::F16, ..base.clone() };
    cases.push(of(300, Some(16), three, &in_place));
    cases.push(of(0, None, one, base));
    cases
}

/// Random shapes, params and types.
pub fn random_linear_momentum_cases(count: usize, seed: u64) -> Vec<LinearMomentumCase> {
    let chunks = [None, Some(1), Some(3), Some(16), Some(32), Some(33), Some(100)];
    let case = |(i, tokens): (usize, LinearCase)| {
        let params = LinearParams { chunk: chunks[i % chunks.len()], ..tokens.params.clone() };
        let mut case = LinearMomentumCase::of(LinearCase { params, ..tokens });
        let chunk = case.tokens.params.chunk.unwrap_or(1);
        if i % 4 < 2 && (chunk == 1 || !case.tokens.params.reverse && [3, 16, 32].contains(&chunk)) {
            case.tokens.params.algorithm =
                [None, Some(LinearAlgorithm::OnePass), Some(LinearAlgorithm::ThreePass)][i / 4 % 3];
        }
        let all = case.heads[0];
        let one_or_all = |shift: usize| if (i >> shift).is_multiple_of(2) { all } else { 1 };
        let case = LinearMomentumCase { heads: [0, 1, 2].map(one_or_all), s0: i % 3 > 0, ..case };
        match i % 4 {
            0 | 1 => case,
            n => case.gradients(n == 2),
        }
    };
    random_linear_cases(count, seed ^ 0x7175).into_iter().enumerate().map(case).collect()
}
