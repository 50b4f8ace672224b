//! Block masks: their forms agree, their builders do what their formulas say, and bad ones are told by name.

mod common;

use common::{gpu, random, read, says, tensor};
use pollster::block_on;
use wgpu_attention::{
    AttentionInputs, BlockGrid, BlockList, BlockMask, BlockSparseAttention, BlockSparseParams, Causal, DType,
    FlashAttention, FlashParams, HeadBlocks, Hook, Layout, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams,
    Result, Tensor,
};

fn grid(batch: usize, heads: usize, queries: usize, keys: usize, block: [usize; 2]) -> BlockGrid {
    BlockGrid { batch, heads, queries, keys, block }
}

fn attention(params: BlockSparseParams) -> BlockSparseAttention {
    BlockSparseAttention::new(gpu(), params).expect("valid params")
}

/// Whether each block is chosen, row after row.
fn chosen(mask: Result<BlockMask>) -> Vec<bool> {
    block_on(mask.expect("a valid grid").read()).expect("a good mask")
}

/// The chosen blocks of each row.
fn rows(mask: Result<BlockMask>, cols: usize) -> Vec<Vec<usize>> {
    chosen(mask).chunks(cols).map(|row| (0..cols).filter(|&j| row[j]).collect()).collect()
}

fn numbers(values: &[u32]) -> Tensor {
    block_on(Tensor::upload_u32(gpu(), values)).expect("memory")
}

#[test]
fn forms_agree() {
    // More than one word of columns, and more rows than one workgroup takes at a time.
    for grid in [grid(2, 3, 70 * 64, 77 * 32, [64, 32]), grid(1, 1, 5, 9, [4, 2]), grid(1, 2, 100, 0, [1, 8])] {
        let mask = block_on(BlockMask::random(gpu(), grid, 0.3, false, 5)).unwrap();
        let expected = chosen(Ok(mask.clone()));
        let (partial, full) = block_on(mask.to_lists(expected.len())).unwrap();
        assert!(full.is_none());
        assert_eq!(chosen(block_on(BlockMask::from_lists(gpu(), grid, &partial, None))), expected);
        let [offsets, indices] = [&partial.offsets, &partial.indices];
        let (offsets, indices) = (block_on(offsets.read_u32()).unwrap(), block_on(indices.read_u32()).unwrap());
        let count = *offsets.last().unwrap() as usize;
        assert_eq!(count, expected.iter().filter(|&&chosen| chosen).count());
        let host = block_on(BlockMask::from_host_lists(gpu(), grid, (&offsets, &indices[..count]), None));
        assert_eq!(chosen(host), expected);
        let turned = block_on(mask.transpose()).unwrap();
        let ([m, n], found) = (grid.blocks(), chosen(Ok(turned.clone())));
        let at = |plane: usize, i: usize, j: usize| expected[(plane * m + i) * n + j];
        let planes =
            (0..grid.batch * grid.heads).flat_map(|p| (0..n).flat_map(move |j| (0..m).map(move |i| (p, i, j))));
        assert_eq!(found, planes.map(|(p, i, j)| at(p, i, j)).collect::<Vec<_>>());
        assert_eq!(chosen(block_on(turned.transpose())), expected);
    }
}

#[test]
fn full_blocks_are_chosen_and_listed_apart() {
    let grid = grid(1, 1, 128, 320, [64, 64]);
    let [partial, full] = [(vec![0, 2, 3], vec![0, 3, 1]), (vec![0, 1, 1], vec![2])];
    let of =
        |(offsets, indices): &(Vec<u32>, Vec<u32>)| BlockList { offsets: numbers(offsets), indices: numbers(indices) };
    let (some, all) = (of(&partial), of(&full));
    for mask in [
        block_on(BlockMask::from_lists(gpu(), grid, &some, Some(&all))).unwrap(),
        block_on(BlockMask::from_host_lists(gpu(), grid, (&partial.0, &partial.1), Some((&full.0, &full.1)))).unwrap(),
    ] {
        assert_eq!(rows(Ok(mask.clone()), 5), [vec![0, 2, 3], vec![1]]);
        assert_eq!(block_on(mask.full().unwrap().read_u32()).unwrap(), [0b100, 0]);
        let (some, all) = block_on(mask.to_lists(3)).unwrap();
        assert_eq!(block_on(some.indices.read_u32()).unwrap(), partial.1);
        assert_eq!(block_on(all.unwrap().indices.read_u32()).unwrap()[..1], full.1);
        let turned = block_on(mask.transpose()).unwrap();
        assert_eq!(block_on(turned.full().unwrap().read_u32()).unwrap(), [0, 0, 1, 0, 0]);
    }
}

/// In a full block the caller's mask is not asked: one that hides everything hides the rest only.
#[test]
fn full_blocks_are_not_asked() {
    let grid = grid(1, 1, 64, 128, [64, 64]);
    let bits = |bits: u32| numbers(&[bits]).view(Layout::heads_first(DType::U32, [1, 1, 1, 1])).unwrap();
    let mask = BlockMask::from_bits(gpu(), grid, &bits(0b11), Some(&bits(0b10))).unwrap();
    let nothing = Hook::new("nothing", "fn nothing(at: Position) -> bool { return at.key > at.keys; }");
    let params = BlockSparseParams { scale: Some(0.0), mask_mod: vec![nothing], ..Default::default() };
    let (q, k) = (tensor([1, 1, 64, 4], &[1.0; 256]), tensor([1, 1, 128, 4], &[1.0; 512]));
    let v: Vec<f32> = (0..128).map(|j| if j < 64 { 5.0 } else { 3.0 }).collect();
    let v = tensor([1, 1, 128, 1], &v);
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
    let (out, lse) = block_on(attention(params).forward_with_lse(&inputs)).unwrap();
    assert!(read(&out).iter().all(|&x| (x - 3.0).abs() < 1e-5));
    assert!(read(&lse).iter().all(|&x| (x - 64f32.ln()).abs() < 1e-5));
}

#[test]
fn builders_follow_their_formulas() {
    let square = grid(1, 1, 512, 512, [64, 64]);
    let all = |end: usize| (0..end).collect::<Vec<_>>();
    let expected: Vec<_> = (0..8).map(|i| all(i + 1)).collect();
    assert_eq!(rows(block_on(BlockMask::causal(gpu(), square)), 8), expected);
    // 100 queries at the end of 300 keys, in blocks of 64 × 32: the first stand at 200 to 263, the others at 264 to 299.
    let wide = grid(1, 1, 100, 300, [64, 32]);
    assert_eq!((wide.own(0), wide.own(1)), (6..9, 8..10));
    assert_eq!(rows(block_on(BlockMask::causal(gpu(), wide)), 10), [all(9), all(10)]);
    // 300 queries for 100 keys: the first 200 stand before the first key.
    let tall = grid(1, 1, 300, 100, [64, 64]);
    assert_eq!((0..5).map(|i| tall.own(i)).collect::<Vec<_>>(), [0..0, 0..0, 0..0, 0..1, 0..2]);

    let window = rows(block_on(BlockMask::sliding_window(gpu(), square, 1, 3)), 8);
    assert_eq!((&window[0], &window[2], &window[7]), (&vec![0], &all(3), &vec![0, 5, 6, 7]));
    let heads = BlockGrid { heads: 4, ..square };
    let long_gen = rows(block_on(BlockMask::long_gen(gpu(), heads, 1, 3)), 8);
    assert_eq!(
        (&long_gen[7], &long_gen[8 + 7], &long_gen[24 + 7]),
        (&vec![0, 1, 4, 7], &vec![0, 3, 6, 7], &vec![0, 1, 4, 7])
    );
    // Shards of every third block: head h has those where j + h + 1 is a multiple of 3.
    let s2 = rows(block_on(BlockMask::s2_attention(gpu(), heads, 2, 3)), 8);
    assert_eq!((&s2[7], &s2[8 + 7], &s2[16 + 7]), (&vec![2, 5, 6, 7], &vec![1, 4, 6, 7], &vec![0, 3, 6, 7]));

    let big_bird = rows(block_on(BlockMask::big_bird(gpu(), square, 1, 1, 2, 9)), 8);
    assert_eq!(big_bird[0], all(8));
    for (i, row) in big_bird.iter().enumerate().skip(1) {
        let known: Vec<usize> = (0usize..8).filter(|&j| j == 0 || j.abs_diff(i) <= 1).collect();
        assert!(known.iter().all(|j| row.contains(j)) && row.len() == (known.len() + 2).min(8), "{i}: {row:?}");
    }

    for (density, causal) in [(0.0, true), (0.05, true), (0.3, false), (0.7, true), (1.0, false)] {
        let heads = BlockGrid { batch: 2, heads: 2, ..square };
        let random = |seed| rows(block_on(BlockMask::random(gpu(), heads, density, causal, seed)), 8);
        let found = random(3);
        assert_eq!(found, random(3));
        assert!(found != random(4) || density == 0.0 || density == 1.0);
        for (i, row) in found.iter().enumerate() {
            let of = if causal { i % 8 + 1 } else { 8 };
            let count = ((f64::from(density) * of as f64) as usize).max(usize::from(density > 0.0));
            assert!(row.len() == count && row.iter().all(|&j| j < of), "{density} {causal} {i}: {row:?}");
        }
    }

    let retrieval = HeadBlocks::duo_attention(&[true, false], 2, 4, 64);
    let streaming = HeadBlocks::Streaming { sink: 4, local: 64 };
    assert_eq!(retrieval, [HeadBlocks::Dense, HeadBlocks::Dense, streaming, streaming]);
    assert_eq!(HeadBlocks::streaming_llm(2, 4, 64), [streaming; 2]);
    let windows = [64, 7].map(|local| HeadBlocks::Streaming { sink: 4, local });
    assert_eq!(HeadBlocks::moa(4, &[64, 7]), windows);
}

/// A mask that a kernel makes in the caller's encoder is used by attention in the same encoder, unread; the next one too.
#[test]
fn a_mask_made_on_the_gpu_is_used_unread() {
    let gpu = gpu();
    let (n, grid) = (256, grid(1, 1, 256, 256, [64, 64]));
    let mask = block_on(BlockMask::random(gpu, grid, 0.5, true, 1)).unwrap();
    let other = block_on(BlockMask::random(gpu, grid, 0.5, true, 2)).unwrap();
    assert_ne!(chosen(Ok(mask.clone())), chosen(Ok(other.clone())));
    let [q, k, v] = [1, 2, 3].map(|seed| tensor([1, 1, n, 16], &random(seed, n * 16)));
    let params = BlockSparseParams { causal: Some(Causal::BottomRight), ..Default::default() };
    let run = |mask: &BlockMask| {
        let inputs = AttentionInputs { block_mask: Some(mask), ..AttentionInputs::new(&q, &k, &v) };
        read(&block_on(attention(params.clone()).forward_with_lse(&inputs)).unwrap().0)
    };
    let expected = run(&other);
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &v) };
    let attention = attention(params.clone());
    let out = block_on(Tensor::empty(gpu, q.layout().clone())).unwrap();
    let lse = block_on(Tensor::empty(gpu, Layout::heads_first(DType::F32, [1, 1, n, 1]))).unwrap();
    let outputs = wgpu_attention::AttentionOutputs::new(&out, &lse);
    let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let [from, to] = [&other, &mask].map(|mask| mask.chosen().unwrap().buffer());
    encoder.copy_buffer_to_buffer(from, 0, to, 0, 16);
    prepared.encode(&mut encoder, (&inputs, &outputs)).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(read(&out), expected);
}

#[test]
fn wrong_lists() {
    let grid = grid(1, 1, 128, 192, [64, 64]);
    let host = |offsets: &[u32], indices: &[u32], words: &[&str]| {
        says(block_on(BlockMask::from_host_lists(gpu(), grid, (offsets, indices), None)), words);
    };
    host(&[0, 1], &[0], &["partial.offsets.len() is 2", "3, one more than the number of rows"]);
    host(&[1, 1, 1], &[0], &["partial.offsets[0] is 1", "0"]);
    host(&[0, 2, 1], &[0, 1], &["partial.offsets[2] is 1", "at least the offset before it, 2"]);
    host(&[0, 1, 3], &[0, 1], &["partial.offsets[2] is 3", "at most 2"]);
    host(&[0, 2, 2], &[1, 1], &["partial.indices[1] is 1", "above the index before it"]);
    host(&[0, 1, 2], &[1, 3], &["partial.indices[1] is 3", "below 3"]);
    // On the GPU they are clamped, and what is made with them cannot be read.
    let x = tensor([1, 1, 128, 4], &[1.0; 512]);
    let y = tensor([1, 1, 192, 4], &[1.0; 768]);
    let on_gpu = |offsets: &[u32], indices: &[u32], words: &[&str]| {
        let partial = BlockList { offsets: numbers(offsets), indices: numbers(indices) };
        let mask = block_on(BlockMask::from_lists(gpu(), grid, &partial, None)).unwrap();
        says(block_on(mask.read()), words);
        let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&x, &y, &y) };
        let (out, saved) = block_on(attention(BlockSparseParams::default()).forward_for_training(&inputs)).unwrap();
        says(block_on(out.read()), words);
        let gradients = block_on(attention(BlockSparseParams::default()).backward(&saved, &x)).unwrap();
        says(block_on(gradients.dk.read()), words);
        says(block_on(block_on(mask.transpose()).unwrap().read()), words);
    };
    on_gpu(&[1, 1, 1], &[0], &["partial.offsets[0] is 1", "0"]);
    on_gpu(&[0, 2, 1], &[0, 1], &["partial.offsets[2] is 1", "at least the offset before it, 2"]);
    on_gpu(&[0, 1, 9], &[0, 1], &["partial.offsets[2] is 9", "at most 2"]);
    on_gpu(&[0, 2, 2], &[2, 1], &["partial.indices[1] is 1", "above the index before it in its row, 2"]);
    on_gpu(&[0, 1, 2], &[1, 4_000_000_000], &["partial.indices[1] is 4000000000", "below 3"]);
    let short = BlockList { offsets: numbers(&[0, 1]), indices: numbers(&[0]) };
    says(block_on(BlockMask::from_lists(gpu(), grid, &short, None)), &["partial.offsets.shape", "[1, 1, 1, 3]"]);
    let mask = block_on(BlockMask::causal(gpu(), grid)).unwrap();
    let (lists, _) = block_on(mask.to_lists(4)).unwrap();
    says(block_on(lists.indices.read_u32()), &["capacity is 4", "at least 5"]);
}

#[test]
fn masks_that_do_not_fit() {
    let q = tensor([2, 4, 100, 8], &[0.5; 6400]);
    let k = tensor([2, 2, 200, 8], &[0.5; 6400]);
    let good = grid(2, 4, 100, 200, [64, 64]);
    let run = |mask: Option<&BlockMask>| {
        let inputs = AttentionInputs { block_mask: mask, ..AttentionInputs::new(&q, &k, &k) };
        block_on(attention(BlockSparseParams::default()).forward_with_lse(&inputs))
    };
    let causal = |grid| block_on(BlockMask::causal(gpu(), grid)).unwrap();
    common::read(&run(Some(&causal(good))).unwrap().0);
    says(run(None), &["block_mask is unset", "set"]);
    for (grid, words) in [
        (BlockGrid { queries: 129, ..good }, ["block_mask.blocks is [3, 4]", "[2, 4], to match q and k"]),
        (BlockGrid { keys: 64, ..good }, ["block_mask.blocks is [2, 1]", "[2, 4], to match q and k"]),
        (BlockGrid { batch: 3, ..good }, ["block_mask.chosen.shape is [3, 4, 2, 1]", "[2 or 1, 4, 2 or 1, 2, 1]"]),
        (BlockGrid { heads: 3, ..good }, ["block_mask.chosen.shape is [2, 3, 2, 1]", "[2 or 1, 4, 2 or 1, 2, 1]"]),
    ] {
        says(run(Some(&causal(grid))), &words);
    }
    for size in [0, 48, 1 << 31] {
        let grid = BlockGrid { block: [64, size], ..good };
        says(block_on(BlockMask::causal(gpu(), grid)), &["block[1] is", &size.to_string(), "a power of two"]);
    }
    let words = numbers(&[0; 16]).view(Layout::heads_first(DType::U32, [2, 4, 2, 1])).unwrap();
    let narrow = numbers(&[0; 16]).view(Layout::heads_first(DType::U32, [2, 4, 1, 2])).unwrap();
    says(BlockMask::from_bits(gpu(), good, &narrow, None), &["chosen.shape is [2, 4, 1, 2]", "[2, 4, 2, 1]"]);
    says(BlockMask::from_bits(gpu(), good, &words, Some(&narrow)), &["full.shape is [2, 4, 1, 2]"]);
    let floats = tensor([2, 4, 2, 1], &[0.0; 16]);
    says(BlockMask::from_bits(gpu(), good, &floats, None), &["chosen.dtype is f32", "u32"]);
    says(BlockMask::from_heads(gpu(), vec![]), &["heads.len() is 0", "at least 1"]);
    says(BlockMask::from_heads(gpu(), vec![HeadBlocks::Listed]), &["block_mask.heads[0] is Listed", "another kind"]);
    let three = BlockMask::from_heads(gpu(), vec![HeadBlocks::Dense; 3]).unwrap();
    says(run(Some(&three)), &["block_mask.heads.len() is 3", "4, one per query head"]);
    says(causal(good).with_heads(vec![HeadBlocks::Dense; 3]), &["block_mask.heads.len() is 3", "4"]);
    says(block_on(three.to_lists(9)), &["block_mask.chosen is unset"]);
    says(block_on(BlockMask::long_gen(gpu(), good, 1, 0)), &["stride is 0", "at least 1"]);
    says(block_on(BlockMask::s2_attention(gpu(), good, 1, 0)), &["stride is 0", "at least 1"]);
    for density in [-0.1, 1.5, f32::NAN] {
        let mask = block_on(BlockMask::random(gpu(), good, density, true, 1));
        says(mask, &["density is", &density.to_string(), "within 0..=1"]);
    }
    let score = Hook::new("s", "fn s(score: f32, at: Position) -> f32 { return score; }");
    says(block_on(BlockMask::from_hooks(gpu(), good, &[score])), &["mask_mod[0]", "s"]);
    // The other families take none.
    let mask = causal(good);
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &k, &k) };
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    says(block_on(flash.forward_with_lse(&inputs)), &["block_mask is set", "`BlockSparseAttention` takes one"]);
    let axes = vec![NeighborhoodAxis::new(100, 3)];
    let params = NeighborhoodParams { axes, ..Default::default() };
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&q, &q, &q) };
    let neighborhood = NeighborhoodAttention::new(gpu(), params).unwrap();
    says(block_on(neighborhood.forward_with_lse(&inputs)), &["block_mask is set", "unset"]);
    // Loops are bounded by the mask: nothing may write it meanwhile.
    let buffer = words.buffer();
    let out = Layout::heads_first(DType::F32, [1, 1, 1, 4]);
    let out = Tensor::wrap(gpu(), buffer, out).unwrap();
    let mask = Tensor::wrap(gpu(), buffer, Layout::heads_first(DType::U32, [1; 4]).at(8)).unwrap();
    let mask = BlockMask::from_bits(gpu(), grid(1, 1, 1, 1, [64, 64]), &mask, None).unwrap();
    let x = tensor([1, 1, 1, 4], &[1.0; 4]);
    let lse = tensor([1; 4], &[0.0]);
    let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&x, &x, &x) };
    let outputs = wgpu_attention::AttentionOutputs::new(&out, &lse);
    let prepared = block_on(attention(BlockSparseParams::default()).prepare((&inputs, &outputs)));
    says(prepared, &["block_mask is its blocks in the buffer of an output", "in a buffer that nothing writes to"]);
}
