//! Cases of merging partial results.

use super::data::DTYPES;
use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem, Tolerance, normal, poisoned};
use crate::program::Kernel;
use crate::reference::merge;
use crate::{Caps, DType, Gpu, GpuTime, Layout, Merge, Result, Shapes, Tensor};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::OnceLock;

/// One merge of partial results.
#[derive(Debug)]
pub struct MergeCase {
    /// What is special about it.
    pub label: &'static str,
    /// How many parts.
    pub parts: usize,
    /// [batch, heads, rows, value_dim].
    pub shape: [usize; 4],
    /// Types of the parts and of the output.
    pub dtypes: [DType; 2],
    /// Standard deviation of the parts' LSE.
    pub spread: f32,
    /// [batch, rows, heads, value_dim] in memory with gaps, instead of contiguous.
    pub strided: bool,
    /// Seed of the random values.
    pub seed: u64,
    /// Filled at first use: leave it empty.
    pub expected: OnceLock<(Vec<f64>, Vec<f64>)>,
}

impl Default for MergeCase {
    fn default() -> Self {
        Self {
            label: "plain",
            parts: 2,
            shape: [2, 3, 70, 64],
            dtypes: [DType::F32; 2],
            spread: 3.0,
            strided: false,
            seed: 1,
            expected: OnceLock::new(),
        }
    }
}

impl MergeCase {
    /// (out, lse) of each part. One row in seven of a part has seen nothing, and every eleventh row of all parts.
    fn values(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        let rows = self.shape[..3].iter().product::<usize>();
        let part = |i: usize| {
            let seed = self.seed + 2 * i as u64;
            let empty = |row: usize| row % 11 == 7 || (row + 3 * i) % 7 == 2;
            let lse = normal(seed + 1, rows, self.spread, DType::F32);
            let lse =
                lse.into_iter().enumerate().map(|(row, x)| if empty(row) { f32::NEG_INFINITY } else { x }).collect();
            (normal(seed, rows * self.shape[3], 1.0, self.dtypes[0]), lse)
        };
        (0..self.parts).map(part).collect()
    }

    fn expected(&self) -> &(Vec<f64>, Vec<f64>) {
        self.expected.get_or_init(|| {
            let values = self.values();
            let parts: Vec<(&[f32], &[f32])> =
                values.iter().map(|(out, lse)| (out.as_slice(), lse.as_slice())).collect();
            merge(&parts, self.shape[3])
        })
    }

    fn layouts(&self, dtype: DType) -> [Layout; 2] {
        let [b, h, n, _] = self.shape;
        [(dtype, self.shape), (DType::F32, [b, h, n, 1])].map(|(dtype, shape)| {
            let contiguous = Layout::heads_first(dtype, shape);
            if !self.strided {
                return contiguous;
            }
            let head = contiguous.strides[2] + 2;
            Layout { strides: [head * h * n + 6, head, head * h], ..contiguous }.at(2)
        })
    }

    pub(super) fn shapes(&self) -> Shapes {
        let [of_out, of_lse] = self.layouts(self.dtypes[0]);
        let [out, lse] = self.layouts(self.dtypes[1]);
        let shapes = Shapes::new([("out", out), ("lse", lse)]);
        (0..self.parts).fold(shapes, |all, i| {
            all.tensor(format!("parts[{i}].out"), of_out.clone()).tensor(format!("parts[{i}].lse"), of_lse.clone())
        })
    }

    async fn prepare(&self, gpu: &Gpu) -> Result<Ready> {
        let ([of_out, of_lse], [out, lse]) = (self.layouts(self.dtypes[0]), self.layouts(self.dtypes[1]));
        let mut call = Owned::default();
        for (i, (values, sums)) in self.values().iter().enumerate() {
            call.push(format!("parts[{i}].out"), poisoned(gpu, of_out.clone(), values).await?);
            call.push(format!("parts[{i}].lse"), poisoned(gpu, of_lse.clone(), sums).await?);
        }
        call.push("out", Tensor::empty(gpu, out).await?);
        call.push("lse", Tensor::empty(gpu, lse).await?);
        let prepared = Merge::new(gpu).prepare(&call).await?;
        Ok(Ready::new(call, prepared))
    }
}

impl Case for MergeCase {
    fn kernel(&self) -> &'static str {
        "merge"
    }

    fn name(&self) -> String {
        let [b, h, n, d] = self.shape;
        let [from, to] = self.dtypes;
        let strided = if self.strided { " strided" } else { "" };
        format!("{}: {} parts B {b} H {h} N {n} D {d} {from} to {to}{strided}", self.label, self.parts)
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.shapes().plan_merge(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        2.0 * (self.parts * self.shape.iter().product::<usize>()) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.prepare(gpu).await?;
            ready.run().await?;
            let (out, lse) = self.expected();
            let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
            for (name, dtype, expected) in [("out", self.dtypes[1], out), ("lse", DType::F32, lse)] {
                let found = ready.tensor(name).expect("a result").read().await?;
                outcome = outcome.and(Tolerance { dtype, unit: 2e-5, magnitude: 0.0 }.compare(&found, expected));
            }
            Ok(outcome)
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let (ready, (out, lse)) = (self.prepare(gpu).await?, self.expected());
            let expected = vec![("out", out.clone()), ("lse", lse.clone())];
            Ok(Some(Problem { params: KernelParams::Merge {}, backward: false, ready, expected }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.prepare(gpu).await?.time(gpu).await })
    }
}

/// The catalogue: one part to five, every type, odd widths, rows that some or all parts have not seen.
pub fn merge_cases() -> Vec<MergeCase> {
    let mut cases = Vec::new();
    for (i, parts) in [1, 2, 3, 5].into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            let shape = [1 + i % 2, 2, 37 + i, [64, 33, 8, 1][(i + j) % 4]];
            let seed = 100 * i as u64 + 20 * j as u64;
            cases.push(MergeCase {
                parts,
                shape,
                dtypes: [dtype, DTYPES[(i + j) % 3]],
                strided: j == 1,
                seed,
                ..MergeCase::default()
            });
        }
    }
    cases.push(MergeCase { label: "far apart", parts: 3, spread: 200.0, seed: 900, ..MergeCase::default() });
    cases.push(MergeCase { label: "no rows", shape: [1, 2, 0, 8], ..MergeCase::default() });
    cases
}

/// Random numbers of parts, shapes, types and layouts.
pub fn random_merge_cases(count: usize, seed: u64) -> Vec<MergeCase> {
    let case = |i: u64| {
        let seed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(i);
        let r = &mut SmallRng::seed_from_u64(seed);
        MergeCase {
            label: "random",
            parts: r.random_range(1..7),
            shape: [r.random_range(1..4), r.random_range(1..4), r.random_range(1..150), r.random_range(1..200)],
            dtypes: [(); 2].map(|()| *DTYPES.choose(r).expect("three")),
            spread: *[0.5, 3.0, 30.0].choose(r).expect("three"),
            strided: r.random_range(0..2) == 0,
            seed,
            expected: OnceLock::new(),
        }
    };
    (0..count as u64).map(case).collect()
}

/// The only variant, in words.
pub fn variants(_: &Caps) -> Vec<Result<String>> {
    vec![Ok("merge: two parts at a time, four elements a thread".into())]
}
