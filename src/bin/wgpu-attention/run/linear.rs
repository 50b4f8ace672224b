//! `run linear`: linear attention on the tensors of a file.

use super::attention::{params, request};
use super::call::{Named, Uploaded};
use super::causal::Diagonal;
use super::file::{Floats, Inputs, Output, error};
use super::linear_gate::Gate;
use super::linear_heads::Heads;
use super::{Backend, Options};
use serde::Deserialize;
use wgpu_attention::plan::{Caps, Program, Shapes};
use wgpu_attention::reference::{self, LinearMomentumProblem, LinearProblem};
use wgpu_attention::{FeatureMap, Gpu, Layout, LinearAlgorithm, LinearAttention, LinearParams, LinearRule, Result};

/// The fields of `LinearParams` that are numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    rule: LinearRule,
    feature_map: FeatureMap,
    l2_norm: bool,
    normalize: bool,
    eps: f32,
    #[serde(alias = "way")]
    algorithm: Algorithm,
    scale: Option<f32>,
    causal: Option<Diagonal>,
    reverse: bool,
    chunk: Option<usize>,
    gate: Gates,
    beta: Betas,
    beta_factor: f32,
}

/// What `g` in the file is.
#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Gates {
    /// Logarithms of decay factors.
    Log,
    /// What softplus, `a_log` and `dt_bias` make those of.
    Softplus,
}

/// What `beta` in the file is.
#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Betas {
    Given,
    /// What a sigmoid, times `beta_factor`, makes those of.
    Sigmoid,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            rule: LinearRule::Linear,
            feature_map: FeatureMap::Identity,
            l2_norm: false,
            normalize: false,
            eps: 1e-6,
            algorithm: Algorithm::Auto,
            scale: None,
            causal: Some(Diagonal::On(true)),
            reverse: false,
            chunk: None,
            gate: Gates::Log,
            beta: Betas::Given,
            beta_factor: 1.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Algorithm {
    Auto,
    Recurrent,
    OnePass,
    ThreePass,
}

/// Results, in the order in which they are written.
const RESULTS: [&str; 16] = [
    "o", "ht", "zt", "st", "dq", "dk", "dv", "dg", "dbeta", "dalpha", "deta", "dtheta", "dslopes", "dh0", "dz0", "ds0",
];
/// The steps of memory with momentum.
const STEPS: [&str; 3] = ["alpha", "eta", "theta"];

/// The name in a file of what a call has under this one.
fn in_file(rule: LinearRule, name: &'static str) -> &'static str {
    match (rule, name) {
        (LinearRule::Momentum, "o") => "out",
        (LinearRule::Momentum, "h0") => "m0",
        (LinearRule::Momentum, "ht") => "m",
        (LinearRule::Momentum, "st") => "s",
        (LinearRule::Momentum, "dht") => "dm",
        (LinearRule::Momentum, "dst") => "ds",
        (LinearRule::Momentum, "dh0") => "dm0",
        (LinearRule::Momentum, _) => name,
        (_, "dout") => "do",
        _ => name,
    }
}

/// Results by name.
type Found = Vec<(&'static str, Vec<f32>)>;

/// All that the file holds for linear attention.
struct Problem {
    params: LinearParams,
    /// By the names of a call.
    tensors: Named,
    cu_seqlens: Option<Vec<usize>>,
}

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    let of_call: Params = params(options)?;
    let Params { rule, feature_map, l2_norm, normalize, eps, algorithm, scale, causal, reverse, chunk, .. } = of_call;
    let algorithm = match algorithm {
        Algorithm::Auto => None,
        Algorithm::Recurrent => Some(LinearAlgorithm::Recurrent),
        Algorithm::OnePass => Some(LinearAlgorithm::OnePass),
        Algorithm::ThreePass => Some(LinearAlgorithm::ThreePass),
    };
    let cu_seqlens = inputs.integers("cu_seqlens")?;
    let offsets = cu_seqlens.clone();
    let packed = cu_seqlens.is_some();
    let causal = causal.and_then(Diagonal::causal).is_some();
    let normalize = normalize.then_some(eps);
    let slopes = inputs.vector("slopes")?;
    let params =
        LinearParams { rule, feature_map, l2_norm, normalize, causal, reverse, scale, slopes, algorithm, chunk };
    let mut tensors = Named::new();
    for name in ["q", "k", "v"] {
        tensors.insert(name, inputs.tokens(name, packed)?);
    }
    if inputs.has("g") && inputs.has("gk") {
        return Err(error(inputs.what("gk"), "in the file", "absent with g: gates are of tokens or of channels"));
    }
    // Gates of channels have a dimension more.
    let by_channel = match inputs.dimensions("g") {
        _ if inputs.has("gk") => Some("gk"),
        Some(4) => Some("g"),
        Some(3) if packed => Some("g"),
        _ => None,
    };
    if let Some(name) = by_channel {
        tensors.insert("g", inputs.tokens(name, packed)?);
    } else {
        tensors.extend(inputs.gates("g", packed)?.map(|g| ("g", g)));
    }
    tensors.extend(inputs.gates("beta", packed)?.map(|beta| ("beta", beta)));
    let named = |name| in_file(rule, name);
    let momentum = rule == LinearRule::Momentum;
    for name in STEPS.into_iter().filter(|_| momentum) {
        let missing = || inputs.missing(name, ", for the rule momentum");
        tensors.insert(name, inputs.gates(name, packed)?.ok_or_else(missing)?);
    }
    let gpu = match options.backend {
        Backend::Gpu => Some(pollster::block_on(request(options.adapter.as_deref()))?),
        Backend::Reference => None,
    };
    let mut activated = vec![];
    if of_call.gate == Gates::Softplus {
        let missing = || inputs.missing("g", ", what softplus makes gates of");
        let gate = Gate::softplus(inputs, tensors.remove("g").ok_or_else(missing)?, offsets.as_deref())?;
        tensors.insert("g", gate.forward(gpu.as_ref())?);
        activated.push(("dg", gate));
    }
    if of_call.beta == Betas::Sigmoid {
        let missing = || inputs.missing("beta", ", what a sigmoid makes betas of");
        let x = tensors.remove("beta").ok_or_else(missing)?;
        let gate = Gate::sigmoid(of_call.beta_factor, x, offsets.as_deref());
        tensors.insert("beta", gate.forward(gpu.as_ref())?);
        activated.push(("dbeta", gate));
    }
    let mut heads = Heads::of(&tensors);
    let states = [inputs.state(named("h0"))?, if momentum { inputs.state("s0")? } else { None }];
    if states.iter().flatten().any(|state| state.shape[1] == heads.call) {
        heads.file = heads.call;
    }
    let named_states = ["h0", "s0"].into_iter().zip(states);
    tensors.extend(named_states.filter_map(|(name, state)| Some((name, heads.repeat(state?)))));
    tensors.extend(inputs.key_sums("z0")?.map(|z0| ("z0", heads.repeat(z0))));
    let mut problem = Problem { params, tensors, cu_seqlens };
    problem.check_gates()?;
    let mut shapes = problem.shapes().wanted("ht");
    if normalize.is_some() {
        shapes = shapes.wanted("zt");
    }
    if momentum {
        shapes = shapes.wanted("st");
    }
    let mut program = problem.params.plan(&Caps::unlimited(), &shapes)?;
    if options.backward {
        problem.tensors.insert("dout", inputs.tokens(named("dout"), packed)?);
        for name in ["dht", "dst"].into_iter().take(if momentum { 2 } else { 1 }) {
            problem.tensors.extend(inputs.state(named(name))?.map(|state| (name, heads.first(state))));
        }
        problem.tensors.extend(inputs.key_sums("dzt")?.map(|dzt| ("dzt", heads.first(dzt))));
        shapes = problem.shapes();
        program = problem.params.plan_backward(&Caps::unlimited(), &shapes)?;
    }
    let mut found = match &gpu {
        Some(gpu) => pollster::block_on(problem.on_gpu(gpu, options, &shapes))?,
        None => problem.on_cpu(options.backward, &program),
    };
    let mut of_gates = vec![];
    for (name, gate) in activated {
        for (_, values) in found.iter_mut().filter(|(other, _)| *other == name) {
            let (dx, shared) = gate.backward(gpu.as_ref(), values)?;
            *values = dx.values;
            of_gates.extend(shared);
        }
    }
    let output = |(name, values): (&'static str, Vec<f32>)| {
        let Layout { dtype, shape, .. } = program.tensor(name).expect("a result of the program").layout;
        match name {
            "ht" | "st" | "dh0" | "ds0" => {
                let sums = name.starts_with('d');
                let Floats { shape, values, .. } = heads.merge(Floats { dtype, shape, values }, sums);
                Output { name: named(name).into(), dtype, shape: shape.into(), values }
            }
            "zt" | "dz0" => {
                let Floats { shape, values, .. } = heads.merge(Floats { dtype, shape, values }, name == "dz0");
                let of_token = inputs.dimensions("z0") == Some(4);
                let shape = if of_token { vec![shape[0], 1, shape[1], shape[2]] } else { shape[..3].to_vec() };
                Output { name: name.into(), dtype, shape, values }
            }
            "dslopes" => Output { name: name.into(), dtype, shape: vec![values.len()], values },
            "dg" if by_channel.is_some() => inputs.output(
                if by_channel == Some("gk") { "dgk" } else { "dg" },
                Floats { dtype, shape, values },
                packed,
            ),
            "dg" | "dbeta" | "dalpha" | "deta" | "dtheta" => {
                let mut output = inputs.output(name, Floats { dtype, shape, values }, packed);
                output.shape.pop();
                output
            }
            _ => inputs.output(named(name), Floats { dtype, shape, values }, packed),
        }
    };
    Ok(found.into_iter().map(output).chain(of_gates).collect())
}

impl Problem {
    fn shapes(&self) -> Shapes {
        let tensors = self.tensors.iter().map(|(&name, floats)| (name, floats.layout()));
        Shapes::new(tensors).numbers_if("cu_seqlens", self.cu_seqlens.clone())
    }

    /// Log-space gates are at most 0, betas within [0, 2], the steps of momentum within theirs.
    fn check_gates(&self) -> Result<()> {
        let rules = [
            ("g", f32::NEG_INFINITY..=0.0, "at most 0: it is the logarithm of a decay factor"),
            ("beta", 0.0..=2.0, "within [0, 2]"),
            ("alpha", 0.0..=1.0, "within [0, 1]"),
            ("eta", 0.0..=1.0, "within [0, 1]"),
            ("theta", 0.0..=f32::MAX, "finite and at least 0"),
        ];
        for (name, range, bound) in rules {
            let Some(Floats { shape: [_, heads, rows, width], values, .. }) = self.tensors.get(name) else { continue };
            let Some(i) = values.iter().position(|x| !range.contains(x)) else { continue };
            let n = i / width;
            let what = format!("{name}[{}][{}][{}]", n / rows / heads, n / rows % heads, n % rows);
            return Err(error(what, values[i], bound));
        }
        Ok(())
    }

    async fn on_gpu(&self, gpu: &Gpu, options: &Options, shapes: &Shapes) -> Result<Found> {
        println!("{}", gpu.caps());
        let attention = LinearAttention::new(gpu, self.params.clone())?;
        let prepared = if options.backward {
            attention.prepare_backward(shapes).await?
        } else {
            println!("{}", attention.plan(shapes)?);
            attention.prepare(shapes).await?
        };
        let mut call = Uploaded::new(gpu, &self.tensors).await?;
        call.run(&prepared).await?;
        let mut found = vec![];
        for name in RESULTS.into_iter().filter(|name| call.tensors.contains_key(*name)) {
            found.push((name, call.tensors[name].read().await?));
        }
        Ok(found)
    }

    fn on_cpu(&self, backward: bool, program: &Program) -> Found {
        let all = if self.params.rule == LinearRule::Momentum {
            self.momentum_on_cpu(backward)
        } else if backward {
            let last = ["dht", "dzt"].map(|name| self.tensors.get(name).map(|floats| &floats.values[..]));
            let dout = &self.tensors["dout"].values;
            let found = self.by_reference(|problem| reference::linear_backward(&self.params, problem, dout, last));
            let [dq, dk, dv] = found.tokens;
            let rest = [("dbeta", found.dbeta), ("dslopes", found.dslopes), ("dh0", found.dh0), ("dz0", found.dz0)];
            [("dq", dq), ("dk", dk), ("dv", dv), ("dg", found.dg)].into_iter().chain(rest).collect()
        } else {
            let found = self.by_reference(|problem| reference::linear(&self.params, problem));
            vec![("o", found.o), ("ht", found.ht), ("zt", found.zt)]
        };
        let rounded = |(name, values): (&'static str, Vec<f64>)| {
            let dtype = program.tensor(name)?.layout.dtype;
            Some((name, values.into_iter().map(|x| dtype.round(x as f32)).collect()))
        };
        all.into_iter().filter_map(rounded).collect()
    }

    fn momentum_on_cpu(&self, backward: bool) -> Vec<(&'static str, Vec<f64>)> {
        let values = |name: &str| self.tensors.get(name).map(|floats| &floats.values[..]);
        let steps = STEPS.map(|name| (&self.tensors[name].values[..], self.tensors[name].shape[1]));
        self.by_reference(|tokens| {
            let problem = LinearMomentumProblem { tokens: *tokens, steps, s0: values("s0") };
            if !backward {
                let found = reference::linear_momentum(&self.params, &problem);
                return vec![("o", found.o), ("ht", found.ht), ("st", found.st)];
            }
            let (dout, last) = (&self.tensors["dout"].values, ["dht", "dst"].map(values));
            let found = reference::linear_momentum_backward(&self.params, &problem, dout, last);
            let tokens = ["dq", "dk", "dv"].into_iter().zip(found.tokens);
            let steps = ["dalpha", "deta", "dtheta"].into_iter().zip(found.steps);
            tokens.chain(steps).chain([("dh0", found.dh0), ("ds0", found.ds0)]).collect()
        })
    }

    fn by_reference<T>(&self, solve: impl FnOnce(&LinearProblem) -> T) -> T {
        let names = ["q", "k", "v"];
        let shapes = names.map(|name| self.tensors[name].shape);
        let [batch, _, rows, _] = shapes[0];
        let sequences: Vec<[usize; 3]> = match &self.cu_seqlens {
            None => (0..batch).map(|b| [b, 0, rows]).collect(),
            Some(offsets) => offsets.windows(2).map(|w| [0, w[0], w[1] - w[0]]).collect(),
        };
        let tokens = names.map(|name| &self.tensors[name].values[..]);
        let of = |name: &str| self.tensors.get(name).map(|floats| (&floats.values[..], floats.shape));
        let g = of("g").map(|(g, [_, heads, _, width])| (g, [heads, width]));
        let beta = of("beta").map(|(beta, [_, heads, ..])| (beta, heads));
        let [h0, z0] = ["h0", "z0"].map(|name| of(name).map(|(state, _)| state));
        solve(&LinearProblem { tokens, shapes, g, beta, h0, z0, sequences: &sequences })
    }
}
