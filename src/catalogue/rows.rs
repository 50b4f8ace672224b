//! Cases of rows by index.

use super::data::DTYPES;
use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem, Tolerance, normal, poisoned};
use crate::program::Kernel;
use crate::reference::{RowsProblem, rows_gathered, rows_scattered};
use crate::{Caps, DType, Gpu, GpuTime, Layout, Program, Result, RowReduction, RowsParams, Shapes, Tensor};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Rows that are gathered, or scattered.
#[derive(Debug)]
pub struct RowsCase {
    /// Of x: [batch, heads, rows, width].
    pub shape: [usize; 4],
    /// Rows of y.
    pub count: usize,
    /// Whether batch entries, and heads, share an index.
    pub shared: [bool; 2],
    /// The params.
    pub params: RowsParams,
    /// Whether how often rows are named goes in, and divides them, or comes out.
    pub counted: bool,
    /// Type of what is read, and of what is written.
    pub dtypes: [DType; 2],
    /// [batch, rows, heads, width] in memory with an odd offset, instead of contiguous.
    pub strided: bool,
    /// Only so many rows are named, if fewer than there are: often.
    pub named: usize,
    /// Seed of the random values.
    pub seed: u64,
}

impl RowsCase {
    fn heads_of_index(&self) -> [usize; 2] {
        let [batch, heads, ..] = self.shape;
        let [a, b] = self.shared;
        [if a { batch.min(1) } else { batch }, if b { heads.min(1) } else { heads }]
    }

    /// The index; one in nine is none.
    fn index(&self) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(self.seed + 1);
        let named = self.named.min(self.shape[2]) as u32;
        let one = |_| match named {
            0 => u32::MAX,
            _ if random.random_range(0..9) == 0 => u32::MAX,
            _ => random.random_range(0..named),
        };
        (0..self.heads_of_index().iter().product::<usize>() * self.count).map(one).collect()
    }

    fn gathers(&self) -> bool {
        self.params.reduce.is_none()
    }

    /// Of x and of y.
    fn layouts(&self) -> [Layout; 2] {
        let [batch, heads, rows, width] = self.shape;
        let [from, to] = self.dtypes;
        let types = if self.gathers() { [from, to] } else { [to, from] };
        std::array::from_fn(|i| {
            let shape = [batch, heads, [rows, self.count][i], width];
            match self.strided {
                true => Layout::heads_last(types[i], shape).at(2 + 2 * i),
                false => Layout::heads_first(types[i], shape),
            }
        })
    }

    fn of_index(&self, width: usize) -> Layout {
        let [batch, heads] = self.heads_of_index();
        Layout::heads_first(DType::U32, [batch, heads, 1, width])
    }

    fn shapes(&self) -> Shapes {
        let [x, y] = self.layouts();
        let count = self.counted.then(|| self.of_index(self.shape[2]));
        Shapes::new([("x", x), ("y", y), ("index", self.of_index(self.count))]).tensor_if("count", count)
    }

    fn plan(&self, caps: &Caps) -> Result<Program> {
        self.params.plan(caps, &self.shapes())
    }

    /// What is read.
    fn values(&self) -> Vec<f32> {
        let read = &self.layouts()[usize::from(!self.gathers())];
        normal(self.seed, read.shape.iter().product(), 1.0, self.dtypes[0])
    }

    /// What is written, and how often each row is named by each head of the index.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let ([batch, heads, rows, width], count, index) = (self.shape, self.count, self.index());
        let of_index = self.heads_of_index();
        let problem = RowsProblem { index: &index, of_index, heads: [batch, heads], rows, count, width };
        let found = match self.params.reduce {
            None => rows_gathered(&problem, &self.values(), self.counted),
            Some(reduce) => rows_scattered(&problem, &self.values(), reduce).0,
        };
        let counts = RowsProblem { heads: of_index, width: 0, ..problem };
        (found, rows_scattered(&counts, &[], RowReduction::Sum).1)
    }

    async fn ready(&self, gpu: &Gpu) -> Result<Ready> {
        let [x, y] = self.layouts();
        let (read, written, [from, to]) = if self.gathers() { (x, y, ["x", "y"]) } else { (y, x, ["y", "x"]) };
        let mut call = Owned::default();
        call.push(from, poisoned(gpu, read, &self.values()).await?);
        call.push("index", Tensor::upload_u32(gpu, &self.index()).await?.view(self.of_index(self.count))?);
        call.push(to, Tensor::empty(gpu, written).await?);
        if self.counted {
            let layout = self.of_index(self.shape[2]);
            let counts: Vec<u32> = self.expected().1.into_iter().map(|n| n as u32).collect();
            call.push(
                "count",
                match self.gathers() {
                    true => Tensor::upload_u32(gpu, &counts).await?.view(layout)?,
                    false => Tensor::empty(gpu, layout).await?,
                },
            );
        }
        let prepared = crate::Rows::new(gpu).prepare(&self.params, &call).await?;
        Ok(Ready::new(call, prepared))
    }

    fn results(&self) -> Vec<(&'static str, Vec<f64>)> {
        vec![(if self.gathers() { "y" } else { "x" }, self.expected().0)]
    }
}

impl Case for RowsCase {
    fn kernel(&self) -> &'static str {
        "rows"
    }

    fn name(&self) -> String {
        let Self { shape: [b, h, n, d], count, shared, params, counted, dtypes: [from, to], named, .. } = self;
        let what = match params.reduce {
            None if *counted => "gathered, divided".into(),
            None => "gathered".into(),
            Some(reduce) => format!("scattered {reduce:?}{}", if *counted { ", counted" } else { "" }),
        };
        let strided = if self.strided { " strided" } else { "" };
        let named = if named < n { format!(", {named} of them named") } else { String::new() };
        format!("{what}: B {b} H {h} N {n} of {count}{named} D {d} shared {shared:?} {from} to {to}{strided}")
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        let [batch, heads, _, width] = self.shape;
        (batch * heads * self.count * width) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.ready(gpu).await?;
            // Sums of as many numbers as are in a row's chain.
            let compare = |_: &str, dtype, found: &[f32], expected: &[f64]| {
                Tolerance { dtype, unit: 2e-6, magnitude: 0.0 }.compare(found, expected)
            };
            let outcome = ready.compared(self.results(), compare).await?;
            if !self.counted || self.gathers() {
                return Ok(outcome);
            }
            let found = ready.tensor("count").expect("a result").read_u32().await?;
            let same = found.iter().zip(self.expected().1).all(|(&a, b)| f64::from(a) == b);
            Ok(if same { outcome } else { Outcome { error: f64::INFINITY, over_tolerance: f64::INFINITY } })
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let (params, ready) = (KernelParams::Rows(self.params.clone()), self.ready(gpu).await?);
            Ok(Some(Problem { params, backward: false, ready, expected: self.results() }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.ready(gpu).await?.time(gpu).await })
    }
}

/// Gathered, and scattered by each rule: shared indices, few rows that are named often, more than a tile and more than a dispatch, none, widths
/// that do and do not divide by four, types, strides.
pub fn rows_cases() -> Vec<RowsCase> {
    let reduce = [None, Some(RowReduction::Sum), Some(RowReduction::Mean)];
    let mut cases = vec![];
    for (i, (shape, count, shared, named)) in [
        ([2, 3, 37, 9], 50, [false, false], 37),
        ([2, 2, 300, 64], 700, [true, false], 300),
        ([1, 4, 20, 33], 600, [false, true], 3),
        ([2, 3, 5, 128], 40, [true, true], 5),
        ([1, 1, 40, 4], 17_000, [false, false], 40),
        ([1, 2, 0, 8], 12, [false, false], 0),
        ([2, 1, 12, 8], 0, [false, false], 12),
        ([0, 2, 12, 8], 9, [false, false], 12),
    ]
    .into_iter()
    .enumerate()
    {
        for (j, reduce) in reduce.into_iter().enumerate() {
            let exact = i % 3 == 0;
            let dtypes = if exact { [DType::F32; 2] } else { [DTYPES[(i + j) % 3], DTYPES[i % 3]] };
            let (params, counted, strided) = (RowsParams { reduce }, (i + j) % 2 == 0, i % 2 == 1);
            let seed = 20_000 + 10 * cases.len() as u64;
            cases.push(RowsCase { shape, count, shared, params, counted, dtypes, strided, named, seed });
        }
    }
    cases
}

/// What plans say.
pub fn variants(caps: &Caps) -> Vec<Result<String>> {
    let of_rule = |case: &RowsCase| case.plan(caps).map(|plan| plan.to_string());
    rows_cases().iter().take(2).map(of_rule).collect()
}

/// Random shapes, indices and types.
pub fn random_rows_cases(count: usize, seed: u64) -> Vec<RowsCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> RowsCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let shape = [r.random_range(1..3), r.random_range(1..4), r.random_range(1..400), r.random_range(1..140)];
    let reduce = *[None, Some(RowReduction::Sum), Some(RowReduction::Mean)].choose(r).expect("three");
    RowsCase {
        shape,
        count: r.random_range(0..900),
        shared: [r.random_range(0..2) == 0, r.random_range(0..2) == 0],
        params: RowsParams { reduce },
        counted: r.random_range(0..2) == 0,
        dtypes: [(); 2].map(|()| *DTYPES.choose(r).expect("three")),
        strided: r.random_range(0..2) == 0,
        named: r.random_range(1..=shape[2]),
        seed,
    }
}
