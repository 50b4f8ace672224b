//! Cases of score reduction.

use super::ready::{Owned, Ready};
use super::{AttentionCase, Case, KernelParams, Outcome, Problem, Tolerance};
use crate::program::Kernel;
use crate::reference::{self, FlashProblem};
use crate::{
    AttentionInputs, Caps, DType, FlashParams, Gpu, GpuTime, HeadGroups, KeyGroups, Layout, Program, QueryGroups,
    ReducedScores, Reduction, Result, ScoreReduction, ScoreReductionInputs, ScoreReductionParams, Tensor,
};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A reduction of the probabilities of an attention problem.
#[derive(Debug)]
pub struct ScoreReductionCase {
    /// The attention.
    pub attention: AttentionCase,
    /// How the probabilities are reduced.
    pub reduction: Reduction,
    /// How query heads are grouped.
    pub heads: HeadGroups,
    /// Queries that go together.
    pub queries: QueryGroups,
    /// Keys that go together.
    pub keys: KeyGroups,
    /// How many groups of keys come out.
    pub top_k: Option<usize>,
}

impl ScoreReductionCase {
    fn params(&self, attention: FlashParams) -> ScoreReductionParams {
        let Self { reduction, heads, queries, keys, top_k, .. } = *self;
        ScoreReductionParams { attention, reduction, heads, queries, keys, top_k }
    }

    /// The segment of each key, [batch or sequences, longest keys].
    fn segments(&self) -> Vec<u32> {
        let KeyGroups::Segments(count) = self.keys else { return vec![] };
        let [batch, _, _, keys] = self.attention.pair_shape();
        let mut random = SmallRng::seed_from_u64(self.attention.seed + 50);
        // In runs of about twenty, one number more than once.
        let mut number = 0;
        let next = |_| {
            if random.random_range(0..20) == 0 {
                number = random.random_range(0..count as u32);
            }
            number
        };
        (0..batch * keys).map(next).collect()
    }

    fn lse(&self) -> Vec<f32> {
        self.attention.expected().1.iter().map(|&x| x as f32).collect()
    }

    fn known(&self, change: impl Fn(ScoreReductionParams) -> ScoreReductionParams) -> Vec<f64> {
        let params = change(self.params(self.attention.params.clone()));
        let (lse, segments) = (self.lse(), self.segments());
        self.attention
            .with_problem(|problem: &FlashProblem, _| reference::score_reduction(&params, problem, &lse, &segments))
    }

    /// What would run on a device, except for hooks that read buffers.
    ///
    /// # Errors
    /// Those of [`ScoreReductionParams::plan`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        let params = self.params(self.attention.params_without_buffers());
        let [batch, _, _, keys] = self.attention.pair_shape();
        let segments =
            matches!(self.keys, KeyGroups::Segments(_)).then(|| Layout::heads_first(DType::U32, [batch, 1, 1, keys]));
        params.plan(caps, &self.attention.plan_shapes().tensor_if("segments", segments))
    }

    async fn upload(&self, gpu: &Gpu) -> Result<Uploaded> {
        let tensors = self.attention.upload(gpu).await?;
        tensors.get("lse").expect("a tensor of each case").write(&self.lse()).await?;
        let [batch, _, _, keys] = self.attention.pair_shape();
        let segments = match self.keys {
            KeyGroups::Segments(_) => {
                let layout = Layout::heads_first(DType::U32, [batch, 1, 1, keys]);
                Some(Tensor::upload_u32(gpu, &self.segments()).await?.view(layout)?)
            }
            _ => None,
        };
        let reduction = ScoreReduction::new(gpu, self.params(self.attention.params_on(gpu).await?))?;
        Ok(Uploaded { tensors, segments, reduction })
    }

    fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> ScoreReductionInputs<'a> {
        let (attention, _) = self.attention.arguments(&uploaded.tensors);
        let lse = uploaded.tensors.get("lse").expect("a tensor of each case");
        let attention = AttentionInputs { additional_k: None, additional_v: None, ..attention };
        ScoreReductionInputs { attention, lse, segments: uploaded.segments.as_ref() }
    }

    /// How results compare with the reference.
    fn compare(&self, values: &[f32], indices: Option<&[u32]>) -> Outcome {
        let magnitude = self.attention.reference().magnitude;
        let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude };
        let wrong = Outcome { error: f64::INFINITY, over_tolerance: f64::INFINITY };
        let expected = self.known(|params| params);
        if let Reduction::Count { above } = self.reduction {
            // What is as good as at the bound may count or not.
            let near = |factor: f32| {
                let reduction = Reduction::Count { above: above * factor };
                self.known(|params| ScoreReductionParams { reduction, ..params })
            };
            let (most, least) = (near(1.0 - 1e-4), near(1.0 + 1e-4));
            let fits = values
                .iter()
                .zip(most.iter().zip(&least))
                .all(|(&x, (most, least))| (*least..=*most).contains(&f64::from(x)));
            return if fits && values.len() == most.len() {
                Outcome { error: 0.0, over_tolerance: 0.0 }
            } else {
                wrong
            };
        }
        let Some(indices) = indices else { return tolerance.compare(values, &expected) };
        match self.top_k {
            Some(k) => self.compare_top_k(values, indices, &expected, k, tolerance),
            None => {
                let keys = self.attention.pair_shape()[3];
                let each = |params| ScoreReductionParams { keys: KeyGroups::Blocks(1), ..params };
                let of_keys = self.known(each);
                let cols = expected.len() / (of_keys.len() / keys.max(1)).max(1);
                // What the key that was named has, where one is seen.
                let named = indices.iter().enumerate().map(|(cell, &key)| match key {
                    u32::MAX => 0.0,
                    key => of_keys[cell / cols * keys + key as usize],
                });
                let named: Vec<f64> = named.collect();
                let named = named.iter().map(|&x| x as f32).collect::<Vec<_>>();
                tolerance.compare(values, &expected).and(tolerance.compare(&named, &expected))
            }
        }
    }

    /// The values are those of the groups that are named, which ascend, and as large as the largest there are.
    fn compare_top_k(&self, values: &[f32], indices: &[u32], all: &[f64], k: usize, tolerance: Tolerance) -> Outcome {
        let rows = values.len() / k.max(1);
        let cols = all.len() / rows.max(1);
        let (mut named, mut largest, mut found, mut ascending) = (vec![], vec![], vec![], true);
        for row in 0..rows {
            let (values, indices) = (&values[row * k..][..k], &indices[row * k..][..k]);
            let all = &all[row * cols..][..cols];
            ascending &= indices.windows(2).all(|pair| pair[0] < pair[1] || pair[1] == u32::MAX);
            named.extend(indices.iter().map(|&i| all.get(i as usize).copied().unwrap_or(0.0)));
            found.extend(values);
            let mut sorted = all.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            largest.extend((0..k).map(|i| sorted.get(i).copied().unwrap_or(0.0)));
        }
        let mut in_order: Vec<f32> = found.clone();
        in_order.chunks_mut(k.max(1)).for_each(|row| row.sort_by(|a, b| b.total_cmp(a)));
        let outcome = tolerance.compare(&found, &named).and(tolerance.compare(&in_order, &largest));
        if ascending { outcome } else { Outcome { over_tolerance: f64::INFINITY, ..outcome } }
    }
}

#[derive(Debug)]
struct Uploaded {
    tensors: super::AttentionTensors,
    segments: Option<Tensor>,
    reduction: ScoreReduction,
}

impl Case for ScoreReductionCase {
    fn kernel(&self) -> &'static str {
        "score-reduction"
    }

    fn name(&self) -> String {
        let Self { reduction, heads, queries, keys, top_k, .. } = self;
        let top_k = top_k.map_or(String::new(), |k| format!(" top {k}"));
        format!("{reduction:?} of {heads:?}, {queries:?}, {keys:?}{top_k}; {}", self.attention.name())
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        2.0 * self.attention.reference().visible as f64 * self.attention.dims.0 as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let uploaded = self.upload(gpu).await?;
            let ReducedScores { values, indices } = uploaded.reduction.forward(&self.inputs(&uploaded)).await?;
            let indices = match indices {
                Some(indices) => Some(indices.read_u32().await?),
                None => None,
            };
            Ok(self.compare(&values.read().await?, indices.as_deref()))
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let uploaded = self.upload(gpu).await?;
            let inputs = self.inputs(&uploaded);
            let to = uploaded.reduction.forward(&inputs).await?;
            let mut call = Owned::of((&inputs, &to));
            let prepared = uploaded.reduction.prepare(&call).await?;
            call.tensors.extend(self.attention.buffers_on(gpu).await?);
            // Of groups that are equally large either may come, and what is near a bound may count or not.
            let decided = self.top_k.is_none() && !matches!(self.reduction, Reduction::Count { .. });
            Ok(Some(Problem {
                params: KernelParams::ScoreReduction(uploaded.reduction.params().clone()),
                backward: false,
                ready: Ready::new(call, prepared),
                expected: decided.then(|| ("values", self.known(|params| params))).into_iter().collect(),
            }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let uploaded = self.upload(gpu).await?;
            let inputs = self.inputs(&uploaded);
            let to = uploaded.reduction.forward(&inputs).await?;
            let prepared = uploaded.reduction.prepare((&inputs, &to)).await?;
            gpu.time(|pass| prepared.encode_in(pass, (&inputs, &to))).await
        })
    }
}
