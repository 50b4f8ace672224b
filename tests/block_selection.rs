//! Block masks from scores: the catalogue, an independent implementation, the gate's own scores, and what is refused.

mod common;

use common::golden::{file, floats};
use common::{gpu, random, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{block_selection_cases, random_block_selection_cases};
use wgpu_attention::gate::*;
use wgpu_attention::plan::{Caps, Shapes};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&block_selection_cases());
}

#[test]
fn random_cases() {
    run_all(&random_block_selection_cases(40, 1));
}

fn chosen(grid: BlockGrid, selection: &BlockSelection, scores: &BlockScores) -> Vec<bool> {
    block_on(async { BlockMask::from_scores(gpu(), grid, selection, scores).await?.read().await }).unwrap()
}

/// `tests/data/blocks_from_scores.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("blocks_from_scores");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let grid = BlockGrid { batch: 2, heads: 2, queries: 100, keys: 140, block: [16, 16] };
    let scores = tensor([2, 2, 7, 9], &floats(&file, "scores"));
    for (name, selector) in
        [("threshold", Selector::Threshold(0.1)), ("top_p", Selector::TopP(0.8)), ("count", Selector::Budget(48))]
    {
        let selection = BlockSelection { causal: Some(Causal::BottomRight), ..BlockSelection::new(selector) };
        let known: Vec<bool> = file.tensor(name).expect(name).data().iter().map(|&x| x != 0).collect();
        assert_eq!(chosen(grid, &selection, &BlockScores::new(&scores)), known, "{name}");
    }
}

/// A gate's own scores choose the gate's own mask.
#[test]
fn scores_of_the_gate_choose_its_mask() {
    let (heads, n, d) = (2, 150, 8);
    let [q, k] = [1, 2].map(|seed| tensor([2, heads, n, d], &random(seed, 2 * heads * n * d)));
    let wk = tensor([1, heads, d, d], &random(3, heads * d * d));
    for selector in [Selector::Threshold(0.08), Selector::Density(0.4), Selector::TopP(0.5), Selector::Budget(64)] {
        let params = SeerGateParams {
            block: [32, 16],
            pool_k: vec![Pool::Avg],
            diagonal: true,
            ..SeerGateParams::default().with_selector(selector)
        };
        let SeerGateParams { causal, diagonal, last_rows_dense, .. } = params;
        let gate = SeerGate::new(gpu(), params).unwrap();
        let lengths = [150, 90];
        let inputs = SeerGateInputs {
            seqlens_q: Some(Seqlens::Host(&lengths)),
            seqlens_k: Some(Seqlens::Host(&lengths)),
            ..SeerGateInputs::new(&q, &k, &wk)
        };
        let (mask, logits, _) = block_on(gate.forward_with_scores(&inputs)).unwrap();
        let grid = BlockGrid { batch: 2, heads, queries: n, keys: n, block: [32, 16] };
        let selection = BlockSelection { causal, diagonal, last_rows_dense, ..BlockSelection::new(selector) };
        let scores = BlockScores {
            seqlens_q: Some(Seqlens::Host(&lengths)),
            seqlens_k: Some(Seqlens::Host(&lengths)),
            ..BlockScores::new(&logits)
        };
        assert_eq!(chosen(grid, &selection, &scores), block_on(mask.read()).unwrap(), "{selector:?}");
    }
}

/// Equal scores: the first. A row with a NaN: all that it sees.
#[test]
fn equal_scores_and_scores_that_are_no_numbers() {
    let grid = BlockGrid { batch: 1, heads: 1, queries: 3, keys: 4, block: [1, 1] };
    let mut values = vec![1.0; 12];
    values[6] = f32::NAN;
    let scores = tensor([1, 1, 3, 4], &values);
    let found = chosen(grid, &BlockSelection::new(Selector::Budget(2)), &BlockScores::new(&scores));
    let first = [true, true, false, false];
    assert_eq!(found, [first, [true; 4], first].concat());
    // So does one with +∞, and one with nothing but −∞.
    for bad in [[0.0, f32::INFINITY, 0.0, 0.0], [f32::NEG_INFINITY; 4]] {
        let scores = tensor([1, 1, 3, 4], &[bad, [1.0; 4], [1.0; 4]].concat());
        let found = chosen(grid, &BlockSelection::new(Selector::Budget(2)), &BlockScores::new(&scores));
        assert_eq!(found, [[true; 4], first, first].concat());
    }
    // What a row does not see does not count.
    let causal = BlockSelection { causal: Some(Causal::TopLeft), ..BlockSelection::new(Selector::Budget(1)) };
    assert_eq!(chosen(grid, &causal, &BlockScores::new(&scores))[4..8], [true, false, false, false]);
}

/// In an encoder of one's own.
#[test]
fn prepared() {
    let grid = BlockGrid { batch: 1, heads: 1, queries: 2, keys: 3, block: [1, 1] };
    let scores = tensor([1, 1, 2, 3], &[1.0, 2.0, 3.0, 3.0, 2.0, 1.0]);
    let bits = block_on(Tensor::upload_u32(gpu(), &[0; 2])).unwrap();
    let bits = bits.view(Layout::heads_first(DType::U32, grid.shape())).unwrap();
    let selection = BlockSelection::new(Selector::Budget(1));
    let call = (BlockScores::new(&scores), [("chosen", &bits)]);
    let prepared = block_on(BlockMask::prepare_from_scores(gpu(), grid, &selection, &call)).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    prepared.encode(&mut encoder, call).unwrap();
    gpu().queue().submit([encoder.finish()]);
    assert_eq!(block_on(bits.read_u32()).unwrap(), [0b100, 0b001]);
}

#[test]
fn bad_input() {
    let grid = BlockGrid { batch: 1, heads: 2, queries: 8, keys: 16, block: [4, 8] };
    let scores = tensor([1, 2, 2, 2], &[0.0; 8]);
    let run = |grid, selection: &BlockSelection, scores: &BlockScores| {
        block_on(BlockMask::from_scores(gpu(), grid, selection, scores))
    };
    let good = BlockSelection::new(Selector::Budget(8));
    assert!(run(grid, &good, &BlockScores::new(&scores)).is_ok());
    says(
        run(BlockGrid { keys: 17, ..grid }, &good, &BlockScores::new(&scores)),
        &["scores.shape is [1, 2, 2, 2]", "[1, 2, 2, 3]"],
    );
    says(run(BlockGrid { block: [3, 8], ..grid }, &good, &BlockScores::new(&scores)), &["is 3", "a power of two"]);
    let small = BlockSelection::new(Selector::Budget(7));
    says(run(grid, &small, &BlockScores::new(&scores)), &["selector: Budget is 7", "at least 8"]);
    let high = BlockSelection::new(Selector::TopP(1.5));
    says(run(grid, &high, &BlockScores::new(&scores)), &["selector: TopP is 1.5", "within 0..=1"]);
    let long = BlockScores { seqlens_k: Some(Seqlens::Host(&[17])), ..BlockScores::new(&scores) };
    says(run(grid, &good, &long), &["seqlens_k[0] is 17", "at most 16"]);
    let on_gpu = block_on(Tensor::upload_u32(gpu(), &[16])).unwrap();
    let on_gpu = BlockScores { seqlens_k: Some(Seqlens::Gpu(&on_gpu)), ..BlockScores::new(&scores) };
    says(run(grid, &good, &on_gpu), &["seqlens_k is on the GPU", "on the host"]);
    let half = block_on(Tensor::upload(gpu(), [1, 2, 2, 2], DType::F16, &[0.0; 8])).unwrap();
    says(run(grid, &good, &BlockScores::new(&half)), &["scores.dtype is f16", "f32"]);
    // As llvmpipe, which ends loops without a word.
    let mut caps = Caps::unlimited();
    caps.driver = "llvmpipe".into();
    let many = BlockGrid { batch: 1, heads: 1, queries: 1, keys: 200_000, block: [1, 1] };
    let shapes = Shapes::new([("scores", Layout::heads_first(DType::F32, [1, 1, 1, 200_000]))]);
    says(good.plan(&many, &caps, &shapes), &["a choice among 200000 blocks", "rounds of llvmpipe's loops"]);
}
