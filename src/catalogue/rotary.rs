//! Cases of rotary embeddings.

use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem, Tolerance, normal, poisoned};
use crate::program::Kernel;
use crate::{
    Caps, DType, Gpu, GpuTime, Layout, Positions, Program, Result, Rotary, RotaryParams, Shapes, Tensor, reference,
};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// One embedding, or the gradient of one.
#[derive(Debug)]
pub struct RotaryCase {
    /// [batch, heads, rows, head_dim].
    pub shape: [usize; 4],
    /// The params.
    pub params: RotaryParams,
    /// Whether it is the gradient.
    pub backward: bool,
    /// Start and step of counted positions, or random ones up to this: one row of them for all batch entries where true.
    pub positions: CasePositions,
    /// Type of x, of the result.
    pub dtypes: [DType; 2],
    /// [batch, rows, heads, head_dim] in memory with an odd offset, instead of contiguous.
    pub strided: bool,
    /// Seed of the random values.
    pub seed: u64,
}

/// Where positions come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CasePositions {
    /// Start and step.
    Counted(u32, u32),
    /// Random ones up to the first, the same for all batch entries or not.
    Given(u32, bool),
    /// Random ones up to this, for each head of each batch entry.
    ByHead(u32),
}

impl RotaryCase {
    fn layout(&self, which: usize) -> Layout {
        let layout = Layout::heads_first(self.dtypes[which], self.shape);
        if !self.strided {
            return layout;
        }
        let last = Layout::heads_last(self.dtypes[which], self.shape);
        Layout { strides: [last.strides[0] + 2, last.strides[1], last.strides[2]], ..last }.at(3 - which)
    }

    fn given(&self) -> Option<(Layout, Vec<u32>)> {
        let [batch, heads, rows, _] = self.shape;
        let (most, [entries, own]) = match self.positions {
            CasePositions::Counted(..) => return None,
            CasePositions::Given(most, same) => (most, [if same { batch.min(1) } else { batch }, 1]),
            CasePositions::ByHead(most) => (most, [batch, heads]),
        };
        let mut random = SmallRng::seed_from_u64(self.seed + 1);
        let values = (0..entries * own * rows).map(|_| random.random_range(0..=most)).collect();
        Some((Layout::heads_first(DType::U32, [entries, own, 1, rows]), values))
    }

    fn x(&self) -> Vec<f32> {
        normal(self.seed, self.shape.iter().product(), 1.0, self.dtypes[0])
    }

    fn expected(&self) -> Vec<f64> {
        let [_, heads, rows, width] = self.shape;
        let given = self.given();
        let position = |row: usize| match (&given, self.positions) {
            (Some((Layout { shape: [entries, own, ..], .. }, values)), _) => {
                values[(row / rows / heads % entries * own + row / rows % own) * rows + row % rows]
            }
            (None, CasePositions::Counted(start, step)) => start + (row % rows) as u32 * step,
            _ => unreachable!("positions that are given have values"),
        };
        let positions: Vec<u32> = (0..self.shape[..3].iter().product()).map(position).collect();
        reference::rotary(&self.params, &self.x(), width, &positions, self.backward)
    }

    fn shapes(&self) -> Shapes {
        let shapes = Shapes::new([("x", self.layout(0)), ("out", self.layout(1))]);
        match (self.given(), self.positions) {
            (Some((layout, _)), _) => shapes.tensor("positions", layout),
            (None, CasePositions::Counted(start, step)) => {
                shapes.numbers("positions", [start, step].map(|n| n as usize))
            }
            _ => unreachable!("positions that are given have values"),
        }
    }

    pub(super) fn plan(&self, caps: &Caps) -> Result<Program> {
        let shapes = self.shapes();
        if self.backward { self.params.plan_backward(caps, &shapes) } else { self.params.plan(caps, &shapes) }
    }

    async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let given = match self.given() {
            Some((layout, values)) => Some(Tensor::upload_u32(gpu, &values).await?.view(layout)?),
            None => None,
        };
        let mut call = Owned::of(match (&given, self.positions) {
            (Some(tensor), _) => Positions::Given(tensor),
            (None, CasePositions::Counted(start, step)) => Positions::Counted { start, step },
            _ => unreachable!("positions that are given have a tensor"),
        });
        call.push("x", poisoned(gpu, self.layout(0), &self.x()).await?);
        call.push("out", Tensor::empty(gpu, self.layout(1)).await?);
        let (rotary, shapes) = (Rotary::new(gpu, self.params.clone())?, Shapes::of(&call));
        let prepared = match self.backward {
            true => rotary.prepare_backward(&shapes).await?,
            false => rotary.prepare(&shapes).await?,
        };
        Ok(Ready::new(call, prepared))
    }
}

impl Case for RotaryCase {
    fn kernel(&self) -> &'static str {
        "rotary"
    }

    fn name(&self) -> String {
        let Self { shape: [b, h, n, d], params, backward, positions, dtypes: [x, out], .. } = self;
        let RotaryParams { theta, interleaved, dim } = params;
        let direction = if *backward { "backward" } else { "forward" };
        let pairs = if *interleaved { "interleaved" } else { "half-split" };
        let dim = dim.map_or(String::new(), |dim| format!(" of {dim}"));
        format!("{direction} {pairs} theta {theta}: B {b} H {h} N {n} D {d}{dim} {positions:?} {x}/{out}")
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        3.0 * self.shape.iter().product::<usize>() as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.ready(gpu).await?;
            ready.run().await?;
            let tolerance = Tolerance { dtype: self.dtypes[1], unit: 2e-6, magnitude: 0.0 };
            Ok(tolerance.compare(&ready.tensor("out").expect("a result").read().await?, &self.expected()))
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            Ok(Some(Problem {
                params: KernelParams::Rotary(self.params.clone()),
                backward: self.backward,
                ready: self.ready(gpu).await?,
                expected: vec![("out", self.expected())],
            }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Both kinds of pairs, both ways, widths that do and do not divide by four, every type, positions near and far.
pub fn rotary_cases() -> Vec<RotaryCase> {
    use CasePositions::{ByHead, Counted, Given};
    let mut cases = Vec::new();
    for (i, (shape, dim, positions)) in [
        ([2, 3, 50, 64], None, Counted(0, 1)),
        ([1, 2, 70, 20], None, Counted(1_000_000, 1)),
        ([2, 1, 33, 18], Some(10), Given(5000, false)),
        ([3, 2, 9, 128], Some(64), Given(u32::MAX, true)),
        ([1, 1, 40, 96], None, Counted(0, 64)),
        ([2, 2, 7, 7], Some(2), Given(100, true)),
        ([1, 0, 7, 8], None, Counted(0, 1)),
        ([2, 1, 0, 8], None, Given(9, false)),
        ([2, 3, 20, 16], None, ByHead(9000)),
    ]
    .into_iter()
    .enumerate()
    {
        for interleaved in [false, true] {
            for backward in [false, true] {
                let types = [DType::F32, DType::F16, DType::Bf16];
                let dtypes = if i < 2 { [DType::F32; 2] } else { [types[i % 3], types[(i + 1) % 3]] };
                let theta = [10_000.0, 500_000.0, 100.0][i % 3];
                let params = RotaryParams { theta, interleaved, dim };
                let (strided, seed) = (i % 2 == 1, 8000 + cases.len() as u64);
                cases.push(RotaryCase { shape, params, backward, positions, dtypes, strided, seed });
            }
        }
    }
    cases
}

/// Random shapes, params, types and positions.
pub fn random_rotary_cases(count: usize, seed: u64) -> Vec<RotaryCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> RotaryCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let shape = [r.random_range(1..3), r.random_range(1..4), r.random_range(1..200), r.random_range(2..140)];
    let half = r.random_range(0..2) == 0 || shape[3] % 2 == 1;
    let types = [DType::F32, DType::F16, DType::Bf16];
    RotaryCase {
        shape,
        params: RotaryParams {
            theta: r.random_range(2.0..1e6),
            interleaved: *[false, true].choose(r).expect("two"),
            dim: half.then(|| 2 * r.random_range(1..=shape[3] / 2)),
        },
        backward: *[false, true].choose(r).expect("two"),
        positions: match r.random_range(0..3) {
            0 => CasePositions::Counted(r.random_range(0..200_000), r.random_range(0..130)),
            1 => CasePositions::ByHead(r.random_range(0..2_000_000)),
            _ => CasePositions::Given(r.random_range(0..2_000_000), r.random_range(0..2) == 0),
        },
        dtypes: [(); 2].map(|()| *types.choose(r).expect("three")),
        strided: r.random_range(0..2) == 0 && shape[3] % 2 == 0,
        seed,
    }
}

pub(super) fn variants(_: &Caps) -> Vec<Result<String>> {
    vec![Ok("rotary, four elements a thread, angles from a table made in float64".into())]
}
