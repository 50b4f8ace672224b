//! Cases of flash attention.

use super::{Case, Outcome, Tolerance, normal, poisoned};
use crate::reference::{FlashProblem, FlashReference, flash};
use crate::{
    Caps, Causal, DType, FlashAttention, FlashInputs, FlashOutputs, FlashParams, FlashPlan, FlashShapes, Gpu, GpuTime,
    Layout, Result, Tensor, Window,
};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::OnceLock;

/// Where a case's values come from.
#[derive(Clone, Debug)]
pub enum Scores {
    /// q and k normal with this standard deviation, v with 1.
    Normal(f32),
    /// All scores around this one, which may be very low.
    Around(f32),
    /// As [`Scores::Normal`] 1, but every other query has one key that it prefers by far.
    Peaked,
    /// Given q, k, v, such as a real model's.
    Given([Vec<f32>; 3]),
}

/// One flash attention problem.
#[derive(Debug)]
pub struct FlashCase {
    /// What is special about it.
    pub label: &'static str,
    /// Batch entries.
    pub batch: usize,
    /// Query heads, key and value heads.
    pub heads: (usize, usize),
    /// Queries, keys.
    pub lengths: (usize, usize),
    /// Width of q and k, width of v.
    pub dims: (usize, usize),
    /// Types of q, of k and v, of the output.
    pub dtypes: [DType; 3],
    /// The params.
    pub params: FlashParams,
    /// Queries that count.
    pub seqlens_q: Option<Vec<usize>>,
    /// Keys that count.
    pub seqlens_k: Option<Vec<usize>>,
    /// Where the values come from.
    pub scores: Scores,
    /// [batch, sequence, heads, head_dim] in memory with an odd offset and gaps, instead of contiguous.
    pub strided: bool,
    /// Of the random values.
    pub seed: u64,
    /// Filled at first use: leave it empty.
    pub known: OnceLock<Known>,
}

/// Inputs and expected results of a case.
#[derive(Debug)]
pub struct Known {
    pub(super) inputs: [Vec<f32>; 3],
    pub(super) expected: FlashReference,
}

impl Default for FlashCase {
    fn default() -> Self {
        Self {
            label: "plain",
            batch: 1,
            heads: (2, 2),
            lengths: (64, 64),
            dims: (64, 64),
            dtypes: [DType::F32; 3],
            params: FlashParams::default(),
            seqlens_q: None,
            seqlens_k: None,
            scores: Scores::Normal(1.0),
            strided: false,
            seed: 1,
            known: OnceLock::new(),
        }
    }
}

impl FlashCase {
    /// The same case with a type for all tensors.
    pub fn of_type(self, dtype: DType) -> Self {
        Self { dtypes: [dtype; 3], ..self }
    }

    fn shapes(&self) -> [[usize; 4]; 3] {
        let (hq, hkv) = self.heads;
        let (nq, nk) = self.lengths;
        [[self.batch, hq, nq, self.dims.0], [self.batch, hkv, nk, self.dims.0], [self.batch, hkv, nk, self.dims.1]]
    }

    /// q, k, v as stored, and what must come out.
    pub fn known(&self) -> &Known {
        self.known.get_or_init(|| self.compute())
    }

    pub(super) fn compute(&self) -> Known {
        let inputs = self.inputs();
        let expected = flash(&self.params, &self.problem(&inputs));
        Known { inputs, expected }
    }

    fn problem<'a>(&'a self, [q, k, v]: &'a [Vec<f32>; 3]) -> FlashProblem<'a> {
        FlashProblem {
            q,
            k,
            v,
            batch: self.batch,
            heads_q: self.heads.0,
            heads_kv: self.heads.1,
            queries: self.lengths.0,
            keys: self.lengths.1,
            head_dim: self.dims.0,
            value_dim: self.dims.1,
            seqlens_q: self.seqlens_q.as_deref(),
            seqlens_k: self.seqlens_k.as_deref(),
        }
    }

    fn inputs(&self) -> [Vec<f32>; 3] {
        let [q, k, v] = self.shapes().map(|s| s.iter().product::<usize>());
        let [tq, tk, _] = self.dtypes;
        let d = self.dims.0;
        let amplitude = if let Scores::Normal(a) = self.scores { a } else { 1.0 };
        let mut values = [
            normal(self.seed, q, amplitude, tq),
            normal(self.seed + 1, k, amplitude, tk),
            normal(self.seed + 2, v, 1.0, tk),
        ];
        match &self.scores {
            Scores::Normal(_) => {}
            Scores::Given(given) => values = given.clone(),
            Scores::Around(score) => {
                // q = (√d, noise…), k = (score, noise…): the first products are the score, the rest varies it.
                values[0].chunks_exact_mut(d).for_each(|row| row[0] = tq.round((d as f32).sqrt()));
                values[1].chunks_exact_mut(d).for_each(|row| row[0] = tk.round(*score));
            }
            Scores::Peaked => {
                let (rows, peaks) = (self.lengths.0 * d, self.lengths.1 * d);
                let group = self.heads.0 / self.heads.1;
                for (i, query) in (0..values[0].len() / d).enumerate().filter(|(i, _)| i % 2 == 0) {
                    let head = query * d / rows / group;
                    let key = head * peaks + (i * 7 % self.lengths.1) * d;
                    for e in 0..d {
                        values[0][query * d + e] = tq.round(8.0 * values[1][key + e]);
                    }
                }
            }
        }
        values
    }

    /// Whether a row of q, or of k and v, is padding.
    fn poison(&self, values: &[f32], width: usize, heads: usize, length: usize, seqlens: Option<&[usize]>) -> Vec<f32> {
        let mut poisoned = values.to_vec();
        for (row, chunk) in poisoned.chunks_exact_mut(width).enumerate() {
            if seqlens.is_some_and(|s| row % length >= s[row / length / heads]) {
                chunk.fill(f32::NAN);
            }
        }
        poisoned
    }

    fn layout(&self, which: usize, dtype: DType, shape: [usize; 4]) -> Layout {
        let contiguous = Layout::heads_first(dtype, shape);
        if !self.strided {
            return contiguous;
        }
        let Layout { mut strides, .. } = Layout::heads_last(dtype, shape);
        let gap = 2 * which + 2;
        strides = [(strides[2] + gap) * shape[2] + 6, strides[1], strides[2] + gap];
        // Outputs of 16 bits need whole words; everything else may start anywhere.
        Layout { strides, ..contiguous }.at(if which < 3 { 2 * which + 1 } else { 2 })
    }

    /// The layouts of its tensors.
    fn plan_shapes(&self) -> FlashShapes {
        let [q, k, v] = self.shapes();
        let [tq, tk, to] = self.dtypes;
        let rows = [self.batch, self.heads.0, self.lengths.0, self.dims.1];
        FlashShapes {
            out: self.layout(3, to, rows),
            lse: self.layout(4, DType::F32, [rows[0], rows[1], rows[2], 1]),
            seqlens_q: self.seqlens_q.clone(),
            seqlens_k: self.seqlens_k.clone(),
            ..FlashShapes::new(self.layout(0, tq, q), self.layout(1, tk, k), self.layout(2, tk, v))
        }
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`FlashPlan::new`].
    pub fn plan(&self, caps: &Caps) -> Result<FlashPlan> {
        FlashPlan::new(caps, &self.params, &self.plan_shapes())
    }

    /// The tensors of the case, padding and gaps filled with NaN.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn upload(&self, gpu: &Gpu) -> Result<([Tensor; 3], [Tensor; 2])> {
        let FlashShapes { q, k, v, out, lse, .. } = self.plan_shapes();
        let known = self.known();
        let (sq, sk) = (self.seqlens_q.as_deref(), self.seqlens_k.as_deref());
        let tensor = async |i: usize, layout: Layout, seqlens| {
            let [_, heads, length, width] = layout.shape;
            let values = self.poison(&known.inputs[i], width, heads, length, seqlens);
            poisoned(gpu, layout, &values).await
        };
        let inputs = [tensor(0, q, sq).await?, tensor(1, k, sk).await?, tensor(2, v, sk).await?];
        Ok((inputs, [Tensor::empty(gpu, out).await?, Tensor::empty(gpu, lse).await?]))
    }

    /// The tensors as arguments.
    pub fn arguments<'a>(
        &'a self,
        [q, k, v]: &'a [Tensor; 3],
        outputs: &'a [Tensor; 2],
    ) -> (FlashInputs<'a>, FlashOutputs<'a>) {
        let (seqlens_q, seqlens_k) = (self.seqlens_q.as_deref(), self.seqlens_k.as_deref());
        let [out, lse] = outputs;
        (FlashInputs { q, k, v, seqlens_q, seqlens_k }, FlashOutputs { out, lse })
    }

    /// The output and its log-sum-exp, by the reference.
    pub fn expected(&self) -> (&[f64], &[f64]) {
        let expected = &self.known().expected;
        (&expected.out, &expected.lse)
    }

    /// How an output compares with the reference.
    pub fn compare_out(&self, out: &[f32]) -> Outcome {
        let expected = &self.known().expected;
        Tolerance { dtype: self.dtypes[2], unit: 2e-5, magnitude: expected.magnitude }.compare(out, &expected.out)
    }

    /// How an output and its log-sum-exp compare with the reference.
    pub fn compare(&self, out: &[f32], lse: &[f32]) -> Outcome {
        let expected = &self.known().expected;
        let of_lse = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: expected.magnitude };
        self.compare_out(out).and(of_lse.compare(lse, &expected.lse))
    }
}

impl Case for FlashCase {
    fn kernel(&self) -> &'static str {
        "flash"
    }

    fn name(&self) -> String {
        let (hq, hkv) = self.heads;
        let (nq, nk) = self.lengths;
        let (d, dv) = self.dims;
        let [q, k, out] = self.dtypes;
        let dim = if d == dv { format!("D {d}") } else { format!("D {d}/{dv}") };
        let dtype = if q == k && k == out { q.to_string() } else { format!("{q}/{k}/{out}") };
        let amplitude = match self.scores {
            Scores::Normal(a) if a != 1.0 => format!(" ×{a}"),
            _ => String::new(),
        };
        format!("{}: B {} H {hq}/{hkv} N {nq}/{nk} {dim} {dtype}{amplitude}", self.label, self.batch)
    }

    fn flops(&self) -> f64 {
        2.0 * self.known().expected.visible as f64 * (self.dims.0 + self.dims.1) as f64
    }

    fn warm_up(&self) {
        self.known();
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let attention = FlashAttention::new(gpu, self.params.clone())?;
            let (inputs, outputs) = self.upload(gpu).await?;
            let (inputs, to) = self.arguments(&inputs, &outputs);
            let prepared = attention.prepare(&FlashShapes::of(&inputs, &to)).await?;
            for slice in 0..prepared.plan().slices().len() {
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                prepared.encode_slice(&mut encoder, slice, &inputs, &to)?;
                gpu.queue().submit([encoder.finish()]);
            }
            Ok(self.compare(&to.out.read().await?, &to.lse.read().await?))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let attention = FlashAttention::new(gpu, self.params.clone())?;
            let (inputs, outputs) = self.upload(gpu).await?;
            let (inputs, to) = self.arguments(&inputs, &outputs);
            let prepared = attention.prepare(&FlashShapes::of(&inputs, &to)).await?;
            gpu.time(|pass| prepared.encode_in(pass, &inputs, &to)).await
        })
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const HEAD_DIMS: [usize; 12] = [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256];
const LENGTHS: [(usize, usize); 15] = [
    (1, 1),
    (1, 3),
    (2, 1),
    (1, 239),
    (239, 1),
    (3, 799),
    (799, 3),
    (127, 512),
    (127, 513),
    (113, 203),
    (108, 256),
    (256, 512),
    (512, 256),
    (1023, 1024),
    (1024, 1023),
];

/// The catalogue: the shapes that break kernels, every feature, every type, inputs that exercise the rescale.
pub fn flash_cases() -> Vec<FlashCase> {
    let mut cases = Vec::new();
    for (i, &d) in HEAD_DIMS.iter().enumerate() {
        let (heads, lengths) = ([(6, 6), (6, 2), (6, 1)][i % 3], (70 + i, 131));
        let scores = Scores::Normal([1.0, 3.0, 6.0][i % 3]);
        let params = FlashParams { causal: (i % 2 == 1).then_some(Causal::BottomRight), ..FlashParams::default() };
        let dtypes = [DTYPES[i % 3]; 3];
        cases.push(FlashCase { label: "head dim", heads, lengths, dims: (d, d), params, dtypes, scores, ..case(i) });
    }
    for (i, &lengths) in LENGTHS.iter().enumerate() {
        let heads = if lengths.0 * lengths.1 > 100_000 { (2, 1) } else { [(6, 6), (6, 2), (6, 1)][i % 3] };
        for (label, causal) in
            [("lengths", None), ("causal", Some(Causal::BottomRight)), ("causal top-left", Some(Causal::TopLeft))]
        {
            let params = FlashParams { causal, ..FlashParams::default() };
            let scores = Scores::Normal([3.0, 6.0, 1.0][i % 3]);
            cases.push(FlashCase { label, heads, lengths, params, scores, ..case(i) });
        }
    }
    cases.extend(masks());
    cases.extend(values());
    cases.extend(storage());
    cases
}

fn case(i: usize) -> FlashCase {
    FlashCase { seed: 1000 + 10 * i as u64, ..FlashCase::default() }
}

fn masks() -> Vec<FlashCase> {
    let window = |left, right, causal| FlashParams { window: Window { left, right }, causal, ..FlashParams::default() };
    let mut cases = Vec::new();
    for (i, (params, lengths)) in [
        (window(Some(20), Some(0), None), (150, 150)),
        (window(Some(0), Some(0), None), (130, 130)),
        (window(Some(3), Some(90), None), (100, 260)),
        (window(None, Some(5), None), (200, 90)),
        (window(Some(70), None, Some(Causal::BottomRight)), (90, 230)),
        (window(Some(70), None, Some(Causal::TopLeft)), (90, 130)),
        (window(Some(2), Some(2), Some(Causal::TopLeft)), (40, 200)),
        (window(Some(usize::MAX), Some(usize::MAX), None), (65, 129)),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(FlashCase { label: "window", lengths, params, scores: Scores::Normal(3.0), ..case(100 + i) });
    }
    for (i, causal) in [None, Some(Causal::BottomRight), Some(Causal::TopLeft)].into_iter().enumerate() {
        cases.push(FlashCase {
            label: "padding",
            batch: 4,
            lengths: (90, 140),
            seqlens_q: Some(vec![90, 1, 0, 65]),
            seqlens_k: Some(vec![140, 64, 3, 0]),
            params: FlashParams { causal, ..FlashParams::default() },
            scores: Scores::Normal(3.0),
            ..case(110 + i)
        });
    }
    cases.push(FlashCase { label: "no keys", lengths: (70, 0), ..case(120) });
    cases.push(FlashCase { label: "no queries", lengths: (0, 70), ..case(121) });
    cases.push(FlashCase { label: "no batch", batch: 0, ..case(122) });
    cases
}

fn values() -> Vec<FlashCase> {
    let lengths = (100, 200);
    let scaled = |scale| FlashParams { scale: Some(scale), ..FlashParams::default() };
    let causal = || FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let mut cases = vec![
        FlashCase { label: "peaked", lengths, scores: Scores::Peaked, params: causal(), ..case(200) },
        FlashCase { label: "scale 0", lengths, params: scaled(0.0), ..case(201) },
        FlashCase { label: "scale -0.3", lengths, params: scaled(-0.3), ..case(202) },
        FlashCase { label: "values wider", lengths, dims: (24, 72), scores: Scores::Normal(3.0), ..case(203) },
        FlashCase { label: "values narrower", lengths, dims: (192, 5), scores: Scores::Normal(3.0), ..case(204) },
        FlashCase { label: "width 1", lengths, dims: (1, 1), scores: Scores::Normal(6.0), ..case(205) },
    ];
    for (i, logit) in [-1e4, -2.5e5].into_iter().enumerate() {
        cases.push(FlashCase {
            label: "low logits",
            lengths,
            scores: Scores::Around(logit),
            params: causal(),
            ..case(210 + i)
        });
    }
    for (i, amplitude) in [1.0, 3.0, 6.0].into_iter().enumerate() {
        let scores = Scores::Normal(amplitude);
        cases.push(FlashCase { label: "amplitude", lengths: (130, 600), scores, params: causal(), ..case(220 + i) });
    }
    cases
}

fn storage() -> Vec<FlashCase> {
    let mut cases = Vec::new();
    let params = || FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let base = |j: usize| FlashCase {
            batch: 2,
            heads: (4, 2),
            lengths: (70, 90),
            params: params(),
            scores: Scores::Normal(3.0),
            ..case(300 + 10 * i + j).of_type(dtype)
        };
        cases.push(FlashCase { label: "strided", strided: true, ..base(0) });
        cases.push(FlashCase { label: "strided", strided: true, dims: (33, 17), ..base(1) });
        cases.push(FlashCase { label: "odd width", dims: (31, 59), ..base(2) });
        cases.push(FlashCase { label: "amplitude", dims: (64, 64), scores: Scores::Normal(6.0), ..base(3) });
    }
    let dtypes = [DType::F32, DType::F16, DType::Bf16];
    cases.push(FlashCase { label: "mixed types", dtypes, lengths: (70, 90), ..case(340) });
    let dtypes = [DType::Bf16, DType::F32, DType::F32];
    cases.push(FlashCase { label: "mixed types", dtypes, lengths: (70, 90), dims: (20, 21), ..case(341) });
    cases
}

/// Random shapes, params, types, lengths and layouts: at most 2·10⁷ multiply-adds each.
pub fn random_flash_cases(count: usize, seed: u64) -> Vec<FlashCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> FlashCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let mut pick = |most: usize| r.random_range(1..=most);
    let (group, heads_kv, batch) = (pick(4), pick(3), pick(3));
    let (d, dv) = (pick(256), pick(256));
    let dims = if pick(3) == 1 { (d, dv) } else { (d, d) };
    let heads = (group * heads_kv, heads_kv);
    let budget = 20_000_000 / (batch * heads.0 * (dims.0 + dims.1));
    let queries = pick((budget.isqrt() * 2).max(2));
    let keys = pick((budget / queries).clamp(1, 1500));
    let lengths = (queries, keys);
    let bound = |r: &mut SmallRng| (r.random_range(0..3) == 0).then(|| r.random_range(0..keys + 3));
    let some_lengths = |r: &mut SmallRng, most: usize| {
        (r.random_range(0..3) == 0).then(|| (0..batch).map(|_| r.random_range(0..=most)).collect::<Vec<_>>())
    };
    let causal = *[None, Some(Causal::BottomRight), Some(Causal::TopLeft)].choose(r).expect("three");
    let window = Window { left: bound(r), right: bound(r) };
    let scale = (r.random_range(0..4) == 0).then(|| r.random_range(-0.5f32..0.5));
    FlashCase {
        label: "random",
        batch,
        heads,
        lengths,
        dims,
        dtypes: [(); 3].map(|()| *DTYPES.choose(r).expect("three")),
        params: FlashParams { causal, window, scale },
        seqlens_q: some_lengths(r, queries),
        seqlens_k: some_lengths(r, keys),
        scores: Scores::Normal(*[1.0, 3.0, 6.0].choose(r).expect("three")),
        strided: r.random_range(0..2) == 0,
        seed,
        known: OnceLock::new(),
    }
}

/// The variants at head dim 128, in words.
pub(super) fn variants(caps: &Caps) -> Vec<(&'static str, Result<String>)> {
    let case = FlashCase { heads: (8, 8), lengths: (1024, 1024), dims: (128, 128), ..FlashCase::default() };
    vec![("portable", case.plan(caps).map(|plan| plan.to_string()))]
}

/// The distinct shaders of the catalogue, and of tensors that share a buffer with an output.
pub(super) fn shaders(caps: &Caps) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut add = |name: String, plan: Result<FlashPlan>| {
        let text = plan.expect("the catalogue has valid cases").wgsl();
        if found.iter().all(|(_, known)| *known != text) {
            found.push((name, text));
        }
    };
    for case in flash_cases() {
        let [q, k, out] = case.dtypes;
        let layout = if case.strided { "_strided" } else { "" };
        add(format!("flash_d{}_v{}_{q}_{k}_{out}{layout}", case.dims.0, case.dims.1), case.plan(caps));
    }
    for dtype in DTYPES {
        for (d, layout) in [(64, "wide"), (31, "narrow")] {
            let case = FlashCase { dims: (d, d), ..FlashCase::default() }.of_type(dtype);
            let shapes = FlashShapes { buffers: [0, 0, 1, 0, 0], ..case.plan_shapes() };
            add(format!("flash_d{d}_{dtype}_one_buffer_{layout}"), FlashPlan::new(caps, &case.params, &shapes));
        }
    }
    found
}
