//! Cases of linear attention.

use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem, normal, poisoned};
use crate::program::Kernel;
use crate::reference::{self, LinearProblem};
use crate::{
    Caps, DType, FeatureMap, Gpu, GpuTime, Layout, LinearAttention, LinearInputs, LinearParams, LinearRule, Program,
    Result, Shapes, Tensor,
};
use futures::future::LocalBoxFuture;

/// A problem of linear attention.
#[derive(Clone, Debug)]
pub struct LinearCase {
    /// Batch entries.
    pub batch: usize,
    /// Heads of q, of k, of v.
    pub heads: [usize; 3],
    /// Tokens.
    pub tokens: usize,
    /// head_dim and value_dim.
    pub dims: (usize, usize),
    /// The params.
    pub params: LinearParams,
    /// Whether tokens have gates: the standard deviation of their logarithm of −g, and one gate of −80 every so many gates.
    pub gates: Option<(f32, usize)>,
    /// Whether each channel of a key has its own.
    pub by_channel: bool,
    /// Heads of the gates, if fewer than all.
    pub gate_heads: Option<usize>,
    /// Heads of betas, if there are any.
    pub betas: Option<usize>,
    /// Whether there is an initial state.
    pub h0: bool,
    /// Whether a normaliser's sum of keys begins with another; it goes where the state goes.
    pub z0: bool,
    /// Whether the state is updated in place; else it is written.
    pub in_place: bool,
    /// Tokens of each batch entry, or of each packed sequence; empty: all.
    pub sequences: Vec<usize>,
    /// Whether sequences lie one after another.
    pub packed: bool,
    /// Rows after the last of the packed sequences.
    pub spare: usize,
    /// Types of q and k, of v and o.
    pub dtypes: [DType; 2],
    /// [batch, tokens, heads, width] in memory instead of contiguous: q, k, v and, where the case brings its outputs, o.
    pub strided: bool,
    /// Seed of the random values.
    pub seed: u64,
}

impl Default for LinearCase {
    fn default() -> Self {
        Self {
            batch: 1,
            heads: [2; 3],
            tokens: 65,
            dims: (32, 32),
            params: LinearParams::default(),
            gates: None,
            by_channel: false,
            gate_heads: None,
            betas: None,
            h0: false,
            z0: false,
            in_place: false,
            sequences: vec![],
            packed: false,
            spare: 0,
            dtypes: [DType::F32; 2],
            strided: false,
            seed: 0,
        }
    }
}

/// The values of a case.
struct Values {
    tokens: [Vec<f32>; 3],
    g: Vec<f32>,
    beta: Vec<f32>,
    h0: Vec<f32>,
    z0: Vec<f32>,
}

impl LinearCase {
    pub(super) fn all_heads(&self) -> usize {
        self.heads.into_iter().max().unwrap_or(0)
    }

    fn rows(&self) -> usize {
        if self.packed { self.sequences.iter().sum::<usize>() + self.spare } else { self.tokens }
    }

    pub(super) fn token_shapes(&self) -> [[usize; 4]; 3] {
        let batch = if self.packed { 1 } else { self.batch };
        let widths = [self.dims.0, self.dims.0, self.dims.1];
        std::array::from_fn(|i| [batch, self.heads[i], self.rows(), widths[i]])
    }

    pub(super) fn state_shape(&self) -> [usize; 4] {
        let entries = if self.packed { self.sequences.len() } else { self.batch };
        [entries, self.all_heads(), self.features(), self.dims.1]
    }

    fn features(&self) -> usize {
        self.params.feature_map.features(self.dims.0)
    }

    /// Of a normaliser's sum of keys.
    pub(super) fn sums_shape(&self) -> [usize; 4] {
        let [entries, heads, features, _] = self.state_shape();
        [entries, heads, features, 1]
    }

    /// Whether the sum of keys begins with another, or goes on in place.
    fn brings_sums(&self) -> bool {
        self.params.normalize.is_some() && (self.z0 || self.in_place)
    }

    fn of_gates(&self) -> [usize; 4] {
        let [batch, _, rows, _] = self.token_shapes()[0];
        [batch, self.gate_heads.unwrap_or(self.all_heads()), rows, if self.by_channel { self.features() } else { 1 }]
    }

    fn of_betas(&self) -> Option<[usize; 4]> {
        let [batch, _, rows, _] = self.token_shapes()[0];
        self.betas.map(|heads| [batch, heads, rows, 1])
    }

    fn values(&self) -> Values {
        let [q, k, v] = self.token_shapes().map(|shape| shape.iter().product());
        let [qk, of_v] = self.dtypes;
        let count = self.of_gates().iter().product();
        let g = match self.gates {
            None => vec![],
            Some((spread, hard)) => {
                let gate = |(i, x): (usize, f32)| if i % hard == hard / 2 { -80.0 } else { -(spread * x - 3.0).exp() };
                normal(self.seed + 3, count, 1.0, DType::F32).into_iter().enumerate().map(gate).collect()
            }
        };
        let h0 = if self.h0 || self.in_place { self.state_shape().iter().product() } else { 0 };
        let mut keys = normal(self.seed + 1, k, 1.0, qk);
        if self.params.rule == LinearRule::Delta {
            // Of unit length, but for rounding.
            for key in keys.chunks_exact_mut(self.dims.0) {
                let length = key.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
                key.iter_mut().for_each(|x| *x = qk.round(*x / length));
            }
        }
        let sums = if self.brings_sums() { self.sums_shape().iter().product() } else { 0 };
        let betas = self.of_betas().map_or(0, |shape| shape.iter().product());
        // Within [0, 2], both ends among them.
        let beta = |x: f32| (1.0 + x).clamp(0.0, 2.0);
        Values {
            tokens: [normal(self.seed, q, 1.0, qk), keys, normal(self.seed + 2, v, 1.0, of_v)],
            g,
            beta: normal(self.seed + 7, betas, 0.7, DType::F32).into_iter().map(beta).collect(),
            h0: normal(self.seed + 4, h0, 1.0, DType::F32),
            // A sum of features that are mostly positive.
            z0: normal(self.seed + 8, sums, 1.0, DType::F32).into_iter().map(f32::abs).collect(),
        }
    }

    /// (batch entry, first row, tokens) of each sequence.
    fn places(&self) -> Vec<[usize; 3]> {
        if self.sequences.is_empty() {
            return (0..self.batch).map(|b| [b, 0, self.tokens]).collect();
        }
        let mut next = 0;
        let place = |(b, &count): (usize, &usize)| {
            let first = if self.packed { next } else { 0 };
            next += count;
            [if self.packed { 0 } else { b }, first, count]
        };
        self.sequences.iter().enumerate().map(place).collect()
    }

    fn offsets(&self) -> Vec<usize> {
        let ends = self.places().into_iter().map(|[_, first, count]| first + count);
        std::iter::once(0).chain(ends).collect()
    }

    pub(super) fn with_problem<T>(&self, solve: impl FnOnce(&LinearProblem) -> T) -> T {
        let (Values { tokens, g, beta, h0, z0 }, places) = (self.values(), self.places());
        solve(&LinearProblem {
            tokens: tokens.each_ref().map(|values| &values[..]),
            shapes: self.token_shapes(),
            g: self.gates.map(|_| (&g[..], [self.of_gates()[1], self.of_gates()[3]])),
            beta: self.betas.map(|heads| (&beta[..], heads)),
            h0: (!h0.is_empty()).then_some(&h0[..]),
            z0: (!z0.is_empty()).then_some(&z0[..]),
            sequences: &places,
        })
    }

    fn expected(&self) -> reference::LinearReference {
        self.with_problem(|problem| reference::linear(&self.params, problem))
    }

    fn layouts(&self) -> [Layout; 3] {
        let [qk, of_v] = self.dtypes;
        let dtypes = [qk, qk, of_v];
        let shapes = self.token_shapes();
        std::array::from_fn(|i| match self.strided {
            true => Layout::heads_last(dtypes[i], shapes[i]).at(2),
            false => Layout::heads_first(dtypes[i], shapes[i]),
        })
    }

    /// The inputs.
    pub(super) fn shapes(&self) -> Shapes {
        let [q, k, v] = self.layouts();
        Shapes::new([("q", q), ("k", k), ("v", v)])
            .tensor_if("g", self.gates.map(|_| Layout::heads_first(DType::F32, self.of_gates())))
            .tensor_if("beta", self.of_betas().map(|shape| Layout::heads_first(DType::F32, shape)))
            .tensor_if("h0", self.h0.then(|| Layout::heads_first(DType::F32, self.state_shape())))
            .tensor_if("z0", self.z0.then(|| Layout::heads_first(DType::F32, self.sums_shape())))
            .numbers_if("seqlens", (!self.packed && !self.sequences.is_empty()).then(|| self.sequences.clone()))
            .numbers_if("cu_seqlens", self.packed.then(|| self.offsets()))
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        let shapes = match self.in_place {
            true => self
                .shapes()
                .tensor("state", Layout::heads_first(DType::F32, self.state_shape()))
                .tensor_if("z", self.brings_sums().then(|| Layout::heads_first(DType::F32, self.sums_shape()))),
            false if self.params.normalize.is_some() => self.shapes().wanted("ht").wanted("zt"),
            false => self.shapes().wanted("ht"),
        };
        self.params.plan(caps, &shapes)
    }

    /// NaN in padding.
    pub(super) fn pad(&self, values: &mut [f32], [_, heads, rows, width]: [usize; 4]) {
        if self.sequences.is_empty() {
            return;
        }
        let all: usize = self.sequences.iter().sum();
        for (n, row) in values.chunks_exact_mut(width).enumerate() {
            if n % rows >= if self.packed { all } else { self.sequences[n / rows / heads] } {
                row.fill(f32::NAN);
            }
        }
    }

    pub(super) async fn upload(&self, gpu: &Gpu) -> Result<Uploaded> {
        let Values { tokens, mut g, mut beta, h0, z0 } = self.values();
        self.pad(&mut g, self.of_gates());
        let mut found = vec![];
        for (mut values, layout) in tokens.into_iter().zip(self.layouts()) {
            self.pad(&mut values, layout.shape);
            found.push(poisoned(gpu, layout, &values).await?);
        }
        let of_g = Layout::heads_first(DType::F32, self.of_gates());
        let state = Layout::heads_first(DType::F32, self.state_shape());
        Ok(Uploaded {
            g: if self.gates.is_some() { Some(poisoned(gpu, of_g, &g).await?) } else { None },
            beta: match self.of_betas() {
                Some(shape) => {
                    self.pad(&mut beta, shape);
                    Some(poisoned(gpu, Layout::heads_first(DType::F32, shape), &beta).await?)
                }
                None => None,
            },
            h0: if h0.is_empty() { None } else { Some(poisoned(gpu, state, &h0).await?) },
            z0: if z0.is_empty() {
                None
            } else {
                Some(poisoned(gpu, Layout::heads_first(DType::F32, self.sums_shape()), &z0).await?)
            },
            offsets: self.offsets(),
            tokens: found,
        })
    }

    pub(super) fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> LinearInputs<'a> {
        let [q, k, v] = &uploaded.tokens[..] else { unreachable!("three are uploaded") };
        LinearInputs {
            g: uploaded.g.as_ref(),
            beta: uploaded.beta.as_ref(),
            h0: uploaded.h0.as_ref().filter(|_| !self.in_place),
            z0: uploaded.z0.as_ref().filter(|_| !self.in_place),
            seqlens: (!self.packed && !self.sequences.is_empty()).then_some(&self.sequences),
            cu_seqlens: self.packed.then_some(&uploaded.offsets),
            ..LinearInputs::new(q, k, v)
        }
    }
}

#[derive(Debug)]
pub(super) struct Uploaded {
    tokens: Vec<Tensor>,
    g: Option<Tensor>,
    beta: Option<Tensor>,
    h0: Option<Tensor>,
    z0: Option<Tensor>,
    offsets: Vec<usize>,
}

/// Allowed of an f32 result.
const ALLOWED: f64 = 2e-6;

/// The root of the mean square error over that of the reference, against `unit`; of 16-bit results against what their rounding is.
pub(super) fn compare(dtype: DType, unit: f64, found: &[f32], expected: &[f64]) -> Outcome {
    assert_eq!(found.len(), expected.len(), "a result has as many values as its reference");
    let error = |x: &f32, y: &f64| f64::from(*x) - y;
    let squares: f64 = found.iter().zip(expected).map(|(x, y)| error(x, y).powi(2)).sum();
    let all: f64 = expected.iter().map(|y| y * y).sum();
    let largest = found.iter().zip(expected).map(|(x, y)| error(x, y).abs()).fold(0.0, f64::max);
    let allowed = match dtype {
        DType::F16 => 1e-3,
        DType::Bf16 => 8e-3,
        _ => unit,
    };
    let ratio = if all > 0.0 { (squares / all).sqrt() } else { squares.sqrt() };
    // A NaN is more than anything.
    let over_tolerance = if ratio.is_finite() { ratio / allowed } else { f64::INFINITY };
    Outcome { error: if largest.is_finite() { largest } else { f64::INFINITY }, over_tolerance }
}

impl Case for LinearCase {
    fn kernel(&self) -> &'static str {
        "linear"
    }

    fn name(&self) -> String {
        let Self {
            batch,
            heads,
            tokens,
            dims,
            params,
            gates,
            by_channel,
            gate_heads,
            betas,
            h0,
            in_place,
            sequences,
            packed,
            dtypes: [qk, v],
            spare,
            ..
        } = self;
        let LinearParams { rule, causal, reverse, slopes, algorithm, chunk, feature_map, l2_norm, normalize, .. } =
            params;
        let lengths = if sequences.is_empty() { format!("N {tokens}") } else { format!("N {sequences:?}") };
        let lengths = if *packed && *spare > 0 { format!("{lengths} of {}", self.rows()) } else { lengths };
        let gate = match (gates, slopes) {
            (Some((spread, hard)), _) if *by_channel => format!(" gates of channels {spread}/{hard}"),
            (Some((spread, hard)), _) => format!(" gates {spread}/{hard}"),
            (None, Some(_)) => " slopes".into(),
            (None, None) => String::new(),
        };
        let gate = gate_heads.map_or(gate.clone(), |heads| format!("{gate} of {heads}"));
        let switches = [
            (*causal, "causal"),
            (*reverse, "reverse"),
            (*h0, "h0"),
            (self.z0, "z0"),
            (*in_place, "in place"),
            (*packed, "packed"),
            (*l2_norm, "l2_norm"),
            (normalize.is_some(), "normalised"),
        ];
        let on: Vec<&str> = switches.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        let how = algorithm.map_or("auto".into(), |algorithm| format!("{algorithm:?}"));
        let how = chunk.map_or(how.clone(), |chunk| format!("{how} chunk {chunk}"));
        let rule = match (rule, betas) {
            (LinearRule::Linear, _) if *feature_map != FeatureMap::Identity => format!(" {feature_map:?}"),
            (LinearRule::Linear, _) => String::new(),
            (LinearRule::Delta, None) => " delta".into(),
            (LinearRule::Delta, Some(heads)) => format!(" delta beta of {heads}"),
        };
        format!("B {batch} H {heads:?} {lengths} D {}/{}{rule}{gate} {how} {} {qk}/{v}", dims.0, dims.1, on.join(", "))
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        let tokens: usize = self.places().iter().map(|place| place[2]).sum();
        let each = if self.params.rule == LinearRule::Delta { 7 } else { 5 };
        (each * tokens * self.all_heads() * self.dims.0 * self.dims.1) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let found = match self.strided || (self.in_place && self.params.normalize.is_some()) {
                true => {
                    let ready = self.ready(gpu).await?;
                    ready.run().await?;
                    self.results().into_iter().map(|name| ready.tensor(name).expect("a result").clone()).collect()
                }
                false => self.forward(gpu).await?,
            };
            let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
            for (found, expected) in found.iter().zip(self.expected_results()) {
                outcome = outcome.and(compare(found.layout().dtype, ALLOWED, &found.read().await?, &expected));
            }
            Ok(outcome)
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let ready = self.ready(gpu).await?;
            let expected = self.results().into_iter().zip(self.expected_results()).collect();
            Ok(Some(Problem { params: KernelParams::Linear(self.params.clone()), backward: false, ready, expected }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

impl LinearCase {
    /// The output and the last state, in tensors of the library's own.
    async fn forward(&self, gpu: &Gpu) -> Result<Vec<Tensor>> {
        let uploaded = self.upload(gpu).await?;
        let (attention, inputs) = (LinearAttention::new(gpu, self.params.clone())?, self.inputs(&uploaded));
        match (&uploaded.h0, self.in_place) {
            (Some(state), true) => Ok(vec![attention.forward_in_place(&inputs, state).await?, state.clone()]),
            _ if self.params.normalize.is_some() => {
                let (o, ht, zt) = attention.forward_with_states(&inputs).await?;
                Ok(vec![o, ht, zt])
            }
            _ => attention.forward_with_state(&inputs).await.map(|(o, ht)| vec![o, ht]),
        }
    }

    /// The results' names.
    fn results(&self) -> Vec<&'static str> {
        let all = if self.in_place { ["o", "state", "z"] } else { ["o", "ht", "zt"] };
        all[..if self.params.normalize.is_some() { 3 } else { 2 }].to_vec()
    }

    fn expected_results(&self) -> Vec<Vec<f64>> {
        let reference::LinearReference { o, ht, zt } = self.expected();
        vec![o, ht, zt]
    }

    /// Uploads the values and prepares the kernels.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let uploaded = self.upload(gpu).await?;
        let mut call = Owned::of(self.inputs(&uploaded));
        let attention = LinearAttention::new(gpu, self.params.clone())?;
        for (name, tensor) in [("state", uploaded.h0), ("z", uploaded.z0)].into_iter().filter(|_| self.in_place) {
            tensor.into_iter().for_each(|tensor| call.push(name, tensor));
        }
        for name in if self.in_place { vec!["o"] } else { self.results() } {
            let mut layout = self.plan(gpu.caps())?.tensor(name).expect("a result").layout.clone();
            if self.strided && name == "o" {
                layout = Layout::heads_last(layout.dtype, layout.shape).at(2);
            }
            call.push(name, Tensor::empty(gpu, layout).await?);
        }
        let prepared = attention.prepare(&call).await?;
        Ok(Ready::new(call, prepared))
    }
}
