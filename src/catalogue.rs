//! The cases that tests, benches and `wgpu-attention check` run: shapes, params, types, seeds and amplitudes as data, each
//! with its float64 reference and its tolerance.

mod activations;
mod attention;
mod backward;
mod block_selection;
mod block_sparse_cases;
mod blocks;
mod case;
mod data;
mod family;
mod flash_cases;
mod flash_few;
mod flash_random;
mod hooks;
mod inputs;
mod linear;
mod linear_backward;
mod linear_cases;
mod linear_gate;
mod linear_momentum;
mod linear_summary;
mod linear_values;
mod merge;
mod neighborhood_cases;
mod problem;
mod ready;
mod rotary;
mod rows;
mod sample;
mod score_reduction;
mod score_reduction_cases;
mod seer_decode;
mod seer_decode_cases;
mod seer_gate;
mod seer_gate_cases;
mod shaders;
mod tensors;
mod token_lists;

pub use activations::activations;
pub use backward::{BackwardCase, flash_backward_cases, random_flash_backward_cases};
pub use block_selection::{BlockSelectionCase, block_selection_cases, random_block_selection_cases};
pub use block_sparse_cases::{
    block_sparse_backward_cases, block_sparse_cases, random_block_sparse_backward_cases, random_block_sparse_cases,
};
pub use case::{AttentionCase, BlockCase, Known, KnownHook, MaskSource, Scores, TokenListCase};
use data::upload_numbers;
pub use data::{Tolerance, normal, poisoned, poisoned_bytes};
pub use family::CaseParams;
pub use flash_cases::flash_cases;
pub use flash_random::random_flash_cases;
pub use linear::LinearCase;
pub use linear_backward::{LinearBackwardCase, linear_backward_cases, random_linear_backward_cases};
pub use linear_cases::{linear_cases, random_linear_cases};
pub use linear_gate::{LinearGateCase, linear_gate_cases};
pub use linear_momentum::{LinearMomentumCase, linear_momentum_cases, random_linear_momentum_cases};
pub use linear_summary::{LinearSummaryCase, linear_summary_cases};
pub use merge::{MergeCase, merge_cases, random_merge_cases};
pub use neighborhood_cases::{
    neighborhood_backward_cases, neighborhood_cases, random_neighborhood_backward_cases, random_neighborhood_cases,
};
pub use problem::{KernelParams, Problem};
pub use ready::Ready;
pub use rotary::{CasePositions, RotaryCase, random_rotary_cases, rotary_cases};
pub use rows::{RowsCase, random_rows_cases, rows_cases};
pub use sample::sample;
pub use score_reduction::ScoreReductionCase;
pub use score_reduction_cases::{random_score_reduction_cases, score_reduction_cases};
pub use seer_decode::SeerDecodeCase;
pub use seer_decode_cases::{random_seer_decode_cases, seer_decode_cases};
pub use seer_gate::SeerGateCase;
pub use seer_gate_cases::{random_seer_gate_cases, seer_gate_cases};
pub use tensors::AttentionTensors;
pub use token_lists::{
    random_token_list_backward_cases, random_token_list_cases, token_list_backward_cases, token_list_cases,
};

use crate::gpu::call::WasmNotSendSync;
use crate::program::Kernel;
use crate::{Caps, Gpu, GpuTime, Result};
use futures::future::LocalBoxFuture;

/// A problem whose right answer is known.
pub trait Case: WasmNotSendSync {
    /// The kernel family.
    fn kernel(&self) -> &'static str;
    /// What is special about it: shape, type, masks.
    fn name(&self) -> String;
    /// Every kernel that it runs on a device with these limits.
    ///
    /// # Errors
    /// Those of planning it.
    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>>;
    /// Floating-point operations that have to be done: masked pairs do not count.
    fn flops(&self) -> f64;
    /// Runs the kernel and compares with the reference, which is computed once for all adapters.
    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>>;
    /// Runs the kernel once more and measures it.
    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>>;
    /// The case as one call, for a file that repeats it; `None` for a case that is several calls.
    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        let _ = gpu;
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// How well a case came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Largest absolute difference from the reference.
    pub error: f64,
    /// Largest difference over what is allowed: 1 or less passes. Infinite for a NaN where there should be none, or no NaN where there
    /// should be one.
    pub over_tolerance: f64,
}

impl Outcome {
    /// Whether every value lies within the tolerance.
    pub fn passed(&self) -> bool {
        self.over_tolerance <= 1.0
    }

    fn and(self, other: Self) -> Self {
        let over_tolerance = self.over_tolerance.max(other.over_tolerance);
        Self { error: self.error.max(other.error), over_tolerance }
    }
}

/// Each variant's plan in words, or why it does not run.
type Variants = fn(&Caps) -> Vec<Result<String>>;

/// Makes a number of random cases from a seed.
type RandomCases = fn(usize, u64) -> Vec<Box<dyn Case>>;

/// A kernel family and where its cases come from.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As on the command line.
    pub name: &'static str,
    /// The catalogue.
    pub cases: fn() -> Vec<Box<dyn Case>>,
    /// A number of random ones, from a seed.
    pub random: RandomCases,
    /// The variants at a typical shape.
    pub variants: Variants,
    /// Every distinct shader text that the catalogue and a few more layouts lead to, by name.
    pub shaders: fn() -> Vec<(String, String)>,
}

fn boxed<C: Case + 'static>(cases: Vec<C>) -> impl Iterator<Item = Box<dyn Case>> {
    cases.into_iter().map(|case| Box::new(case) as _)
}

/// Every kernel family.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "flash",
        cases: || boxed(flash_cases()).chain(boxed(flash_backward_cases())).collect(),
        random: |count, seed| {
            boxed(random_flash_cases(count, seed)).chain(boxed(random_flash_backward_cases(count, seed))).collect()
        },
        variants: |caps| vec![shaders::flash().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_flash,
    },
    Family {
        name: "neighborhood",
        cases: || boxed(neighborhood_cases()).chain(boxed(neighborhood_backward_cases())).collect(),
        random: |count, seed| {
            let backward = random_neighborhood_backward_cases(count, seed);
            boxed(random_neighborhood_cases(count, seed)).chain(boxed(backward)).collect()
        },
        variants: |caps| vec![neighborhood_cases::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_neighborhood,
    },
    Family {
        name: "block-sparse",
        cases: || boxed(block_sparse_cases()).chain(boxed(block_sparse_backward_cases())).collect(),
        random: |count, seed| {
            let backward = random_block_sparse_backward_cases(count, seed);
            boxed(random_block_sparse_cases(count, seed)).chain(boxed(backward)).collect()
        },
        variants: |caps| vec![block_sparse_cases::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_block_sparse,
    },
    Family {
        name: "token-lists",
        cases: || boxed(token_list_cases()).chain(boxed(token_list_backward_cases())).collect(),
        random: |count, seed| {
            let backward = random_token_list_backward_cases(count, seed);
            boxed(random_token_list_cases(count, seed)).chain(boxed(backward)).collect()
        },
        variants: |caps| vec![token_lists::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_token_lists,
    },
    Family {
        name: "score-reduction",
        cases: || boxed(score_reduction_cases()).collect(),
        random: |count, seed| boxed(random_score_reduction_cases(count, seed)).collect(),
        variants: |caps| vec![score_reduction_cases::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_score_reduction,
    },
    Family {
        name: "gate",
        cases: || {
            let gates = boxed(seer_gate_cases()).chain(boxed(seer_decode_cases()));
            gates.chain(boxed(block_selection_cases())).collect()
        },
        random: |count, seed| {
            let gates = boxed(random_seer_gate_cases(count, seed)).chain(boxed(random_seer_decode_cases(count, seed)));
            gates.chain(boxed(random_block_selection_cases(count, seed))).collect()
        },
        variants: |caps| vec![seer_gate_cases::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_gate,
    },
    Family {
        name: "linear",
        cases: || {
            let around = boxed(linear_summary_cases()).chain(boxed(linear_gate_cases()));
            let around = around.chain(boxed(linear_momentum_cases()));
            boxed(linear_cases()).chain(boxed(linear_backward_cases())).chain(around).collect()
        },
        random: |count, seed| {
            let momentum = boxed(random_linear_momentum_cases(count, seed));
            let all = boxed(random_linear_cases(count, seed)).chain(boxed(random_linear_backward_cases(count, seed)));
            all.chain(momentum).collect()
        },
        variants: |caps| vec![linear_cases::typical().plan(caps).map(|plan| plan.to_string())],
        shaders: shaders::of_linear,
    },
    Family {
        name: "merge",
        cases: || boxed(merge_cases()).collect(),
        random: |count, seed| boxed(random_merge_cases(count, seed)).collect(),
        variants: merge::variants,
        shaders: shaders::of_merge,
    },
    Family {
        name: "rows",
        cases: || boxed(rows_cases()).collect(),
        random: |count, seed| boxed(random_rows_cases(count, seed)).collect(),
        variants: rows::variants,
        shaders: shaders::of_rows,
    },
    Family {
        name: "rotary",
        cases: || boxed(rotary_cases()).collect(),
        random: |count, seed| boxed(random_rotary_cases(count, seed)).collect(),
        variants: rotary::variants,
        shaders: shaders::of_rotary,
    },
];
