//! Cases of linear attention.

use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem};
use crate::program::Kernel;
use crate::reference;
use crate::{
    Caps, DType, FeatureMap, Gpu, GpuTime, Layout, LinearAttention, LinearParams, LinearRule, Program, Result, Shapes,
    Tensor,
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
    /// Whether lengths and offsets lie on the GPU.
    pub on_gpu: bool,
    /// Rows after the last of the packed sequences.
    pub spare: usize,
    /// Types of q and k, of v and o.
    pub dtypes: [DType; 2],
    /// Type of the initial state, and of one that is updated in place.
    pub of_states: DType,
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
            on_gpu: false,
            spare: 0,
            dtypes: [DType::F32; 2],
            of_states: DType::F32,
            strided: false,
            seed: 0,
        }
    }
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

    fn lengths_name(&self) -> &'static str {
        if self.packed { "cu_seqlens" } else { "seqlens" }
    }

    /// Lengths of batch entries, or offsets of sequences.
    pub(super) fn lengths(&self) -> Option<Vec<usize>> {
        match self.packed {
            true => Some(self.offsets()),
            false => (!self.sequences.is_empty()).then(|| self.sequences.clone()),
        }
    }

    /// More than the longest sequence has, where there is as much.
    pub(super) fn max_seqlen(&self) -> Option<usize> {
        let longest = self.sequences.iter().max().copied().unwrap_or(0);
        (self.on_gpu && self.packed).then_some((longest + 9).min(self.rows()))
    }

    pub(super) fn state_layout(&self) -> Layout {
        Layout::heads_first(self.of_states, self.state_shape())
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
    pub(super) fn brings_sums(&self) -> bool {
        self.params.normalize.is_some() && (self.z0 || self.in_place)
    }

    pub(super) fn of_gates(&self) -> [usize; 4] {
        let [batch, _, rows, _] = self.token_shapes()[0];
        [batch, self.gate_heads.unwrap_or(self.all_heads()), rows, if self.by_channel { self.features() } else { 1 }]
    }

    pub(super) fn of_betas(&self) -> Option<[usize; 4]> {
        let [batch, _, rows, _] = self.token_shapes()[0];
        self.betas.map(|heads| [batch, heads, rows, 1])
    }

    pub(super) fn layouts(&self) -> [Layout; 3] {
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
            .tensor_if("h0", self.h0.then(|| self.state_layout()))
            .tensor_if("z0", self.z0.then(|| Layout::heads_first(DType::F32, self.sums_shape())))
            .tensor_if(
                self.lengths_name(),
                self.lengths()
                    .filter(|_| self.on_gpu)
                    .map(|lengths| Layout::heads_first(DType::U32, [1, 1, 1, lengths.len()])),
            )
            .numbers_if(self.lengths_name(), self.lengths().filter(|_| !self.on_gpu))
            .numbers_if("max_seqlen", self.max_seqlen().map(|longest| vec![longest]))
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`LinearParams::plan`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        let shapes = match self.in_place {
            true => self
                .shapes()
                .tensor("state", self.state_layout())
                .tensor_if("z", self.brings_sums().then(|| Layout::heads_first(DType::F32, self.sums_shape()))),
            false if self.params.normalize.is_some() => self.shapes().wanted("ht").wanted("zt"),
            false => self.shapes().wanted("ht"),
        };
        self.params.plan(caps, &shapes)
    }
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
            (self.on_gpu, "on the GPU"),
            (*l2_norm, "l2_norm"),
            (normalize.is_some(), "normalised"),
        ];
        let on: Vec<&str> = switches.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        let how = algorithm.map_or("auto".into(), |algorithm| format!("{algorithm:?}"));
        let how = chunk.map_or(how.clone(), |chunk| format!("{how} chunk {chunk}"));
        let rule = match (rule, betas) {
            (LinearRule::Linear, _) => String::new(),
            (LinearRule::Delta, None) => " delta".into(),
            (LinearRule::Delta, Some(heads)) => format!(" delta beta of {heads}"),
            (LinearRule::Momentum, _) => " momentum".into(),
        };
        let map = match feature_map {
            FeatureMap::Identity => String::new(),
            map => format!(" {map:?}"),
        };
        let of_states =
            if self.of_states == DType::F32 { String::new() } else { format!(", states {}", self.of_states) };
        format!(
            "B {batch} H {heads:?} {lengths} D {}/{}{rule}{map}{gate} {how} {} {qk}/{v}{of_states}",
            dims.0,
            dims.1,
            on.join(", ")
        )
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
