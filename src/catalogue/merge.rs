//! Cases of merging partial results.

use super::{Case, Outcome, Tolerance, normal, poisoned};
use crate::reference::merge;
use crate::{AttentionOutputs, Caps, DType, Gpu, GpuTime, Layout, Merge, MergePrepared, MergeShapes, Result, Tensor};
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
    /// Of the random values.
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

struct Prepared {
    parts: Vec<(Tensor, Tensor)>,
    out: Tensor,
    lse: Tensor,
    merge: MergePrepared,
}

impl Prepared {
    fn arguments(&self) -> (Vec<AttentionOutputs<'_>>, AttentionOutputs<'_>) {
        let parts = self.parts.iter().map(|(out, lse)| AttentionOutputs { out, lse }).collect();
        (parts, AttentionOutputs { out: &self.out, lse: &self.lse })
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

    fn shapes(&self) -> MergeShapes {
        let [part_out, part_lse] = self.layouts(self.dtypes[0]);
        let [out, lse] = self.layouts(self.dtypes[1]);
        let parts = vec![(part_out, part_lse); self.parts];
        MergeShapes { parts, out, lse, buffers: (0..2 * self.parts + 2).collect() }
    }

    async fn prepare(&self, gpu: &Gpu) -> Result<Prepared> {
        let shapes = self.shapes();
        let mut parts = Vec::new();
        for ((out, lse), (values, sums)) in shapes.parts.iter().zip(self.values()) {
            parts.push((poisoned(gpu, out.clone(), &values).await?, poisoned(gpu, lse.clone(), &sums).await?));
        }
        let (out, lse) = (Tensor::empty(gpu, shapes.out.clone()).await?, Tensor::empty(gpu, shapes.lse.clone()).await?);
        let merge = Merge::new(gpu).prepare(&shapes).await?;
        Ok(Prepared { parts, out, lse, merge })
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

    fn flops(&self) -> f64 {
        2.0 * (self.parts * self.shape.iter().product::<usize>()) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let prepared = self.prepare(gpu).await?;
            let (parts, outputs) = prepared.arguments();
            let mut encoder = gpu.encoder();
            prepared.merge.encode(&mut encoder, &parts, &outputs)?;
            gpu.submit(encoder).await?;
            let (out, lse) = self.expected();
            let tolerance = |dtype| Tolerance { dtype, unit: 2e-5, magnitude: 0.0 };
            let found = tolerance(self.dtypes[1]).compare(&outputs.out.read().await?, out);
            Ok(found.and(tolerance(DType::F32).compare(&outputs.lse.read().await?, lse)))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let prepared = self.prepare(gpu).await?;
            let (parts, outputs) = prepared.arguments();
            gpu.time(|pass| prepared.merge.encode_in(pass, &parts, &outputs)).await
        })
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

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

/// The distinct shaders of the catalogue, on a device with WebGPU's default limits.
pub fn shaders() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for case in merge_cases() {
        let steps = case.shapes().steps(&Caps::core()).expect("the catalogue has valid cases");
        for (step, (kernel, _)) in steps.into_iter().enumerate() {
            let text = kernel.shader.source();
            if found.iter().all(|(_, known)| *known != text) {
                let [from, to] = case.dtypes;
                let strided = if case.strided { "_strided" } else { "" };
                found.push((format!("merge_{}_step{step}_v{}_{from}_{to}{strided}", case.parts, case.shape[3]), text));
            }
        }
    }
    found
}
