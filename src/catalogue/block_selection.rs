//! Cases of block masks from scores.

use super::{Case, Outcome, normal, poisoned};
use crate::gate::{BlockScores, BlockSelection};
use crate::program::Kernel;
use crate::reference::block_selection;
use crate::{
    BlockGrid, BlockMask, Caps, Causal, DType, Gpu, GpuTime, Layout, Program, Result, Selector, Shapes, Tensor,
};
use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Random scores, and what chooses among them.
#[derive(Clone, Debug)]
pub struct BlockSelectionCase {
    /// The grid of the mask.
    pub grid: BlockGrid,
    /// The params.
    pub selection: BlockSelection,
    /// Queries and keys of each batch entry; empty: all.
    pub sequences: Vec<[usize; 2]>,
    /// Seed of the random values.
    pub seed: u64,
}

impl BlockSelectionCase {
    fn lengths(&self) -> Vec<[usize; 2]> {
        match self.sequences.is_empty() {
            true => vec![[self.grid.queries, self.grid.keys]; self.grid.batch],
            false => self.sequences.clone(),
        }
    }

    fn sides(&self) -> [Option<Vec<usize>>; 2] {
        [0, 1].map(|i| (!self.sequences.is_empty()).then(|| self.sequences.iter().map(|lengths| lengths[i]).collect()))
    }

    fn layout(&self) -> Layout {
        let [rows, cols] = self.grid.blocks();
        Layout::heads_first(DType::F32, [self.grid.batch, self.grid.heads, rows, cols])
    }

    fn scores(&self) -> Vec<f32> {
        normal(self.seed, self.layout().shape.iter().product(), 1.5, DType::F32)
    }

    fn plan(&self, caps: &Caps) -> Result<Program> {
        let [q, k] = self.sides();
        let shapes = Shapes::new([("scores", self.layout())]).numbers_if("seqlens_q", q).numbers_if("seqlens_k", k);
        self.selection.plan(&self.grid, caps, &shapes)
    }

    async fn choose(&self, gpu: &Gpu) -> Result<Vec<bool>> {
        let scores = poisoned(gpu, self.layout(), &self.scores()).await?;
        let [q, k] = self.sides();
        let scores = scores_of(&scores, [&q, &k]);
        BlockMask::from_scores(gpu, self.grid, &self.selection, &scores).await?.read().await
    }
}

fn scores_of<'a>(scores: &'a Tensor, [q, k]: [&'a Option<Vec<usize>>; 2]) -> BlockScores<'a> {
    BlockScores { scores, seqlens_q: q.as_deref().map(Into::into), seqlens_k: k.as_deref().map(Into::into) }
}

impl Case for BlockSelectionCase {
    fn kernel(&self) -> &'static str {
        "gate"
    }

    fn name(&self) -> String {
        let BlockGrid { batch, heads, queries, keys, block } = self.grid;
        let BlockSelection { selector, causal, sink, diagonal, last_rows_dense } = &self.selection;
        let lengths = match self.sequences.is_empty() {
            true => format!("N {queries}/{keys}"),
            false => format!("N {:?}", self.sequences),
        };
        let switches = [(sink, "sink"), (diagonal, "diagonal"), (last_rows_dense, "last rows")];
        let on: Vec<&str> = switches.into_iter().filter(|(on, _)| **on).map(|(_, name)| name).collect();
        format!(
            "from scores: B {batch} H {heads} {lengths} blocks {block:?} causal {causal:?} {selector:?} {}",
            on.join(", ")
        )
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        5.0 * self.layout().shape.iter().product::<usize>() as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let known = block_selection(&self.selection, &self.grid, &self.lengths(), &self.scores());
            let found = self.choose(gpu).await?;
            let same = |(found, (known, open)): (&bool, &(bool, bool))| found == known || *open;
            let right = found.len() == known.len() && found.iter().zip(&known).all(same);
            let error = if right { 0.0 } else { f64::INFINITY };
            Ok(Outcome { error, over_tolerance: error })
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let chosen = self.plan(gpu.caps())?.tensor("chosen").expect("an output").layout.clone();
            let scores = poisoned(gpu, self.layout(), &self.scores()).await?;
            let chosen = Tensor::empty(gpu, chosen).await?;
            let [q, k] = self.sides();
            let scores = scores_of(&scores, [&q, &k]);
            let call = (scores, [("chosen", &chosen)]);
            let prepared = BlockMask::prepare_from_scores(gpu, self.grid, &self.selection, &call).await?;
            gpu.time(|pass| prepared.encode_in(pass, call)).await
        })
    }
}

/// Every selector with every causal mask, what is forced, tokens as blocks, lengths.
pub fn block_selection_cases() -> Vec<BlockSelectionCase> {
    let selectors = [Selector::Threshold(0.1), Selector::Density(0.3), Selector::TopP(0.7), Selector::Budget(48)];
    let causal = [None, Some(Causal::BottomRight), Some(Causal::TopLeft)];
    let mut cases = vec![];
    for (i, selector) in selectors.into_iter().enumerate() {
        for (j, causal) in causal.into_iter().enumerate() {
            let n = 3 * i + j;
            let grid = BlockGrid { batch: 1 + n % 2, heads: 2, queries: 100, keys: 140, block: [16, 16] };
            let (sink, diagonal, last_rows_dense) = (n % 3 == 1, n % 4 == 2, n % 5 == 3);
            let selection = BlockSelection { causal, sink, diagonal, last_rows_dense, ..BlockSelection::new(selector) };
            let sequences = if n % 4 == 1 { vec![[70, 100], [0, 33]] } else { vec![] };
            let grid = BlockGrid { batch: if sequences.is_empty() { grid.batch } else { 2 }, ..grid };
            cases.push(BlockSelectionCase { grid, selection, sequences, seed: 21_000 + n as u64 });
        }
    }
    // Tokens, more than a word and more than a workgroup of them.
    for (n, selector) in [Selector::Budget(20), Selector::TopP(0.4)].into_iter().enumerate() {
        let grid = BlockGrid { batch: 1, heads: 3, queries: 5, keys: 300, block: [1, 1] };
        let selection = BlockSelection { causal: Some(Causal::BottomRight), ..BlockSelection::new(selector) };
        cases.push(BlockSelectionCase { grid, selection, sequences: vec![], seed: 21_100 + n as u64 });
    }
    cases
}

/// Random grids, selectors and lengths.
pub fn random_block_selection_cases(count: usize, seed: u64) -> Vec<BlockSelectionCase> {
    (0..count as u64).map(|i| random_case(seed.wrapping_mul(0x9e37_79b9).wrapping_add(i))).collect()
}

fn random_case(seed: u64) -> BlockSelectionCase {
    let mut random = SmallRng::seed_from_u64(seed);
    let r = &mut random;
    let block = [(); 2].map(|()| 1 << r.random_range(0..6));
    let [queries, keys] = [r.random_range(1..200), r.random_range(1..400)];
    let grid = BlockGrid { batch: r.random_range(1..3), heads: r.random_range(1..4), queries, keys, block };
    let selector = match r.random_range(0..4) {
        0 => Selector::Threshold(r.random_range(0.0..0.3)),
        1 => Selector::Density(r.random_range(0.01..1.0)),
        2 => Selector::TopP(r.random_range(0.0..1.0)),
        _ => Selector::Budget(block[1] * r.random_range(1..8)),
    };
    let selection = BlockSelection {
        selector,
        causal: *[None, Some(Causal::BottomRight), Some(Causal::TopLeft)].choose(r).expect("three"),
        sink: r.random_range(0..3) == 0,
        diagonal: r.random_range(0..3) == 0,
        last_rows_dense: r.random_range(0..3) == 0,
    };
    let with_lengths = r.random_range(0..2) == 0;
    let entries = if with_lengths { grid.batch } else { 0 };
    let sequences = (0..entries).map(|_| [r.random_range(0..=queries), r.random_range(0..=keys)]).collect();
    BlockSelectionCase { grid, selection, sequences, seed }
}
