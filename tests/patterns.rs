//! Systems of the literature as recipes, against an independent implementation: decoding and merged parts. `tests/data/`.

mod common;

use common::golden::{file, floats};
use common::patterns::{integers, near, of_file};
use common::{gpu, read, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::backward::{AttentionGradients, OutputGradients};
use wgpu_attention::score_reduction::*;
use wgpu_attention::token_lists::{TokenListAttention, TokenListParams, TokenLists};
use wgpu_attention::*;

/// One layer chooses the tokens with the most probability of all heads; the next attends to these (TidalDecode, arXiv 2410.05076).
#[test]
fn tidal_decode() {
    let bytes = file("tidal_decode");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v] = ["select_q", "select_k", "select_v"].map(|name| of_file(&file, name));
    let attention = AttentionInputs::new(&q, &k, &v);
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (out, lse) = block_on(flash.forward_with_lse(&attention)).unwrap();
    near("select_out", &read(&out), &floats(&file, "select_out"));
    let params = ScoreReductionParams {
        reduction: Reduction::Sum,
        heads: HeadGroups::All,
        queries: QueryGroups::Blocks(1),
        keys: KeyGroups::Blocks(1),
        top_k: Some(24),
        ..Default::default()
    };
    let inputs = ScoreReductionInputs { attention, lse: &lse, segments: None };
    let found = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
    let indices = found.indices.expect("top_k is set");
    assert_eq!(indices.shape(), [2, 1, 1, 24]);
    assert_eq!(block_on(indices.read_u32()).unwrap(), integers(&file, "tokens"));
    let [q, k, v] = ["q", "k", "v"].map(|name| of_file(&file, name));
    let sparse = TokenListAttention::new(gpu(), TokenListParams::default()).unwrap();
    let inputs = AttentionInputs::new(&q, &k, &v).with_token_lists(TokenLists { tokens: &indices, block: 1 });
    let (out, lse) = block_on(sparse.forward_with_lse(&inputs)).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    near("lse", &read(&lse), &floats(&file, "lse"));
}

/// Heads that do not retrieve see the first and the last keys, and the mean of those between, counted as often as it stands for
/// (RazorAttention, arXiv 2407.15891).
#[test]
fn razor_attention() {
    let bytes = file("razor_attention");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v, mean_k, mean_v] = ["q", "k", "v", "mean_k", "mean_v"].map(|name| of_file(&file, name));
    let log_count = tensor([1, 1, 1, 4], &floats(&file, "log_count"));
    let mask = BlockMask::from_heads(gpu(), HeadBlocks::duo_attention(&[true, false], 2, 4, 24)).unwrap();
    let sparse = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    let sparse = BlockSparseAttention::new(gpu(), sparse).unwrap();
    let inputs = AttentionInputs::new(&q, &k, &v).with_block_mask(&mask);
    let (out, lse) = block_on(sparse.forward_with_lse(&inputs)).unwrap();
    let own = AttentionOutputs { out, lse };
    // −∞ for heads that retrieve: they see nothing here.
    let count = Hook::new("count", "fn count(score: f32, at: Position) -> f32 { return score + log_count[at.head]; }");
    let params = FlashParams { score_mod: vec![count.with_buffer("log_count", &log_count)], ..Default::default() };
    let flash = FlashAttention::new(gpu(), params).unwrap();
    let (out, lse) = block_on(flash.forward_with_lse(&AttentionInputs::new(&q, &mean_k, &mean_v))).unwrap();
    let (out, lse) = block_on(Merge::new(gpu()).forward(&[own, AttentionOutputs { out, lse }])).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    near("lse", &read(&lse), &floats(&file, "lse"));
}

/// Means of whole segments: [1, heads, segments, width].
fn means(values: &[f32], [heads, n, width]: [usize; 3], segment: usize) -> Vec<f32> {
    let whole = n / segment;
    let mean = |h: usize, m: usize, d: usize| {
        let rows = (0..segment).map(|i| values[(h * n + m * segment + i) * width + d]);
        rows.sum::<f32>() / segment as f32
    };
    let (heads, rows) = (0..heads, 0..whole);
    heads
        .flat_map(|h| rows.clone().flat_map(move |m| (0..width).map(move |d| (h, m, d))))
        .map(|(h, m, d)| mean(h, m, d))
        .collect()
}

/// What each token of a segment has of its mean's gradient.
fn spread(values: &[f32], [heads, n, width]: [usize; 3], segment: usize) -> Vec<f32> {
    let whole = n / segment;
    let at = |h: usize, i: usize, d: usize| match i / segment {
        m if m < whole => values[(h * whole + m) * width + d] / segment as f32,
        _ => 0.0,
    };
    (0..heads * n * width).map(|at_| at(at_ / width / n, at_ / width % n, at_ % width)).collect()
}

/// The own segment's tokens, and a summary of each earlier segment, in one softmax (Combiner, arXiv 2107.05768), with gradients.
#[test]
fn combiner() {
    let bytes = file("combiner_fixed");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (shape, segment) = ([2, 60, 16], 16);
    let [heads, n, width] = shape;
    let m = n / segment;
    let [q, k, v, dout] = ["q", "k", "v", "dout"].map(|name| of_file(&file, name));
    let [pooled_q, pooled_k] =
        ["q", "k"].map(|name| tensor([1, heads, m, width], &means(&floats(&file, name), shape, segment)));
    let grid = |queries, keys, block| BlockGrid { batch: 1, heads: 1, queries, keys, block };
    let mask =
        |grid, f: fn(usize, usize) -> bool| block_on(BlockMask::from_fn(gpu(), grid, |_, _, i, j| f(i, j))).unwrap();
    let own = mask(grid(n, n, [segment, segment]), |i, j| i == j);
    let within = mask(grid(m, n, [1, segment]), |i, j| i == j);
    let earlier = mask(grid(n, m, [segment, 1]), |i, j| j < i);
    let part = |causal, mask, [q, k, v]: [&Tensor; 3]| {
        let attention = BlockSparseAttention::new(gpu(), BlockSparseParams { causal, ..Default::default() }).unwrap();
        let inputs = AttentionInputs::new(q, k, v).with_block_mask(mask);
        let (out, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
        let lse = common::named(&saved, "lse").clone();
        (attention, saved, AttentionOutputs { out, lse })
    };
    let (summaries, of_summaries, summary) = part(None, &within, [&pooled_q, &k, &v]);
    let (tokens, of_tokens, a) = part(Some(Causal::TopLeft), &own, [&q, &k, &v]);
    let (behind, of_behind, b) = part(None, &earlier, [&q, &pooled_k, &summary.out]);
    let (out, lse) = block_on(Merge::new(gpu()).forward(&[a, b])).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    near("lse", &read(&lse), &floats(&file, "lse"));
    let gradient = |attention: &BlockSparseAttention, saved, dout: &Tensor| {
        let AttentionGradients { dq, dk, dv, .. } =
            block_on(attention.backward_with_lse(saved, &OutputGradients::new(dout))).unwrap();
        (dv.clone(), [dq, dk, dv].map(|x| read(&x)))
    };
    let [of_tokens, of_behind] = [of_tokens, of_behind].map(|saved| saved.merged(&out, &lse));
    let (_, [dq, dk, dv]) = gradient(&tokens, &of_tokens, &dout);
    let (dsummary, [dq_behind, dpooled_k, _]) = gradient(&behind, &of_behind, &dout);
    let (_, [dpooled_q, dk_within, dv_within]) = gradient(&summaries, &of_summaries, &dsummary);
    let sum = |parts: &[&[f32]]| -> Vec<f32> {
        (0..parts[0].len()).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
    };
    let [dpooled_q, dpooled_k] = [dpooled_q, dpooled_k].map(|x| spread(&x, shape, segment));
    near("dq", &sum(&[&dq, &dq_behind, &dpooled_q]), &floats(&file, "dq"));
    near("dk", &sum(&[&dk, &dk_within, &dpooled_k]), &floats(&file, "dk"));
    near("dv", &sum(&[&dv, &dv_within]), &floats(&file, "dv"));
}

/// What sinks of an image have too much goes to its other tokens: the mass of each class of keys, then factors as a bias
/// (visual attention redistribution, arXiv 2503.03321).
#[test]
fn visual_sink_redistribution() {
    let bytes = file("visual_sink_redistribution");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v] = ["q", "k", "v"].map(|name| of_file(&file, name));
    let classes = integers(&file, "key_class");
    let segments = block_on(Tensor::upload_u32(gpu(), &classes)).unwrap();
    let segments = segments.view(Layout::heads_first(DType::U32, [2, 1, 1, 48])).unwrap();
    let attention = AttentionInputs::new(&q, &k, &v);
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let (_, lse) = block_on(flash.forward_with_lse(&attention)).unwrap();
    let params = ScoreReductionParams {
        attention: common::BOTTOM_RIGHT,
        reduction: Reduction::Sum,
        queries: QueryGroups::Blocks(1),
        keys: KeyGroups::Segments(3),
        ..Default::default()
    };
    let inputs = ScoreReductionInputs { attention, lse: &lse, segments: Some(&segments) };
    let mass = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
    assert_eq!(mass.values.shape(), [2, 4, 5, 3]);
    let mass = read(&mass.values);
    // The file has sinks first, then other tokens of the image.
    let of_image: Vec<f32> = mass.chunks(3).flat_map(|row| [row[2], row[1]]).collect();
    near("mass", &of_image, &floats(&file, "mass"));
    let factors = mass.chunks(3).flat_map(|row| {
        let (sinks, others) = (row[2], row[1]);
        let moves = sinks <= 0.5 * (sinks + others) && sinks + others >= 0.2;
        if moves { [1.0, 1.0 + 0.4 * sinks / others, 0.6] } else { [1.0; 3] }
    });
    let factors: Vec<f32> = factors.collect();
    near("factor", &factors, &floats(&file, "factor"));
    let factor = tensor([1, 1, 1, factors.len()], &factors);
    let class_of = block_on(Tensor::upload_u32(gpu(), &classes)).unwrap();
    let redistribute = Hook::new(
        "redistribute",
        "fn redistribute(score: f32, at: Position) -> f32 {
            let row = (at.batch * 4u + at.head) * at.queries + at.query; // 4 heads
            return score + log(factor[row * 3u + class_of[at.batch * at.keys + at.key]]); // 3 classes
        }",
    );
    let redistribute = redistribute.with_buffer("factor", &factor).with_buffer("class_of", &class_of);
    let flash =
        FlashAttention::new(gpu(), FlashParams { score_mod: vec![redistribute], ..common::BOTTOM_RIGHT }).unwrap();
    near("out", &read(&block_on(flash.forward(&q, &k, &v)).unwrap()), &floats(&file, "out"));
}
