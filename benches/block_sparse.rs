//! Block-sparse attention on the GPU beside this crate's own dense kernel, causal, forward and backward: random masks of a
//! certain sparsity, max(1, ⌊density · (i + 1)⌋) of the i + 1 causal blocks of row i.
//! `cargo bench --features catalogue --bench block_sparse`; the lines with ratios say how many times faster it is than dense,
//! beside the number of pairs over that of the chosen ones. `-- blocks` for these alone, `-- lists` for attention over lists of tokens: decoding over a
//! long cache, and prompts whose blocks of queries have a list each.

mod common;

use common::{Gradients, Timed, ratios, testing, wanted};
use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_attention::catalogue::{AttentionCase, BlockCase, Case, ScoreReductionCase, TokenListCase};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::score_reduction::{HeadGroups, KeyGroups, QueryGroups, Reduction};
use wgpu_attention::{Causal, DType, FlashParams, Gpu};

/// Heads, tokens, head_dim, type, sizes of blocks.
struct Size {
    heads: usize,
    n: usize,
    d: usize,
    dtype: DType,
    block: [usize; 2],
    backward: bool,
}

fn sizes(kind: AdapterKind) -> Vec<Size> {
    let size = |heads, n, d, dtype, block| Size { heads, n, d, dtype, block, backward: n <= 2048 };
    match kind {
        _ if testing() => vec![size(1, 200, 16, DType::F32, [64, 64])],
        AdapterKind::Software => vec![
            size(1, 8192, 64, DType::F32, [64, 64]),
            size(1, 2048, 64, DType::F32, [64, 64]),
            size(1, 2048, 64, DType::F32, [128, 64]),
            size(1, 2048, 64, DType::F32, [32, 32]),
            size(1, 2048, 64, DType::F32, [16, 16]),
        ],
        _ => vec![
            size(32, 8192, 128, DType::F16, [64, 64]),
            size(32, 32768, 128, DType::F16, [64, 64]),
            size(16, 2048, 64, DType::F32, [64, 64]),
        ],
    }
}

/// Pairs that a mask leaves of causal attention: of the diagonal blocks half.
fn pairs(n: usize, block: [usize; 2], density: f64) -> f64 {
    let row = |i: usize| {
        let causal = ((i + 1) * block[0]).div_ceil(block[1]) as f64;
        (density * causal).max(1.0).floor() * (block[0] * block[1]) as f64
    };
    (0..n / block[0]).map(row).sum()
}

fn bench(criterion: &mut Criterion) {
    let gpu = pollster::block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}\nan element is a floating-point operation: thrpt is in FLOP/s and bytes/s", gpu.caps());
    if wanted("lists") {
        lists(criterion, &gpu);
    }
    if wanted("blocks") {
        blocks(criterion, &gpu);
    }
}

fn blocks(criterion: &mut Criterion, gpu: &Gpu) {
    for Size { heads, n, d, dtype, block, backward } in sizes(gpu.caps().kind) {
        let dense = || AttentionCase {
            heads: (heads, heads),
            lengths: (n, n),
            dims: (d, d),
            params: FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() },
            ..AttentionCase::default().of_type(dtype)
        };
        let sparse = |density: f32| AttentionCase {
            blocks: Some(BlockCase { block, density, by_row: true, repeated: [true, false], ..BlockCase::default() }),
            ..dense()
        };
        let name = format!("H {heads} N {n} D {d} {dtype} blocks {}×{}", block[0], block[1]);
        let sparsities: &[f32] = if testing() { &[0.5] } else { &[0.0, 0.1, 0.5, 0.7, 0.9] };
        let dense_forward = Timed::new(gpu, &format!("dense/{name}"), dense(), (n * (n + 1) / 2) as f64);
        let forward: Vec<Timed> = sparsities
            .iter()
            .map(|sparsity| {
                let density = 1.0 - sparsity;
                let name = format!("{name} sparsity {sparsity}");
                Timed::new(gpu, &name, sparse(density), pairs(n, block, f64::from(density)))
            })
            .collect();
        for timed in forward.iter().chain([&dense_forward]) {
            timed.measure(criterion);
        }
        println!("  {}", forward[0].plan());
        report(
            &name,
            sparsities,
            &|| dense_forward.seconds(),
            &forward.iter().map(|t| || t.seconds()).collect::<Vec<_>>(),
        );
        if backward {
            let dense = Gradients::new(gpu, dense());
            let sparse: Vec<_> =
                sparsities.iter().map(|sparsity| Gradients::new(gpu, sparse(1.0 - sparsity))).collect();
            let runs: Vec<_> = sparse.iter().map(|gradients| || gradients.seconds()).collect();
            report(&format!("{name}, backward"), sparsities, &|| dense.seconds(), &runs);
            reductions(gpu, &name, &dense_forward);
        }
    }
}

/// Query and key heads, queries, keys, head_dim, queries to a list, tokens of a list.
struct Listed {
    heads: (usize, usize),
    lengths: (usize, usize),
    d: usize,
    block: usize,
    capacity: usize,
}

/// Attention over lists beside dense attention on the same keys.
fn lists(criterion: &mut Criterion, gpu: &Gpu) {
    let size = |heads, lengths, d, block, capacity| Listed { heads, lengths, d, block, capacity };
    let sizes = match gpu.caps().kind {
        _ if testing() => [size((2, 1), (1, 300), 16, 1, 40), size((1, 1), (100, 100), 16, 16, 30)],
        AdapterKind::Software => [size((32, 8), (1, 16384), 128, 1, 1024), size((2, 2), (2048, 2048), 64, 64, 256)],
        _ => [size((32, 8), (1, 16384), 128, 1, 1024), size((16, 16), (8192, 8192), 64, 64, 1024)],
    };
    for Listed { heads, lengths, d, block, capacity } in sizes {
        let dense = || AttentionCase { heads, lengths, dims: (d, d), ..AttentionCase::default() };
        let sparse = || AttentionCase {
            token_lists: Some(TokenListCase { block, capacity, whole: true, by_key_head: true, ..Default::default() }),
            ..dense()
        };
        let name = format!("H {}/{} N {}/{} D {d}", heads.0, heads.1, lengths.0, lengths.1);
        let of_lists = format!("{name}, lists of {capacity} for {block} queries each");
        let all = Timed::new(gpu, &format!("dense/{name}"), dense(), (lengths.0 * lengths.1) as f64);
        let listed = Timed::new(gpu, &of_lists, sparse(), (lengths.0 * capacity) as f64);
        for timed in [&all, &listed] {
            timed.measure(criterion);
            println!("  {}", timed.plan());
        }
        let what = format!("{of_lists}, {:.3} of the keys", capacity as f64 / lengths.1 as f64);
        ratios(&what, &[("dense", &|| all.seconds()), ("lists", &|| listed.seconds())]);
        if lengths.0 > 1 {
            let [all, listed] = [dense(), sparse()].map(|case| Gradients::new(gpu, case));
            let runs: [(&str, &dyn Fn() -> f64); 2] = [("dense", &|| all.seconds()), ("lists", &|| listed.seconds())];
            ratios(&format!("{what}, backward"), &runs);
        }
    }
}

/// Score reductions of causal attention beside its forward pass.
fn reductions(gpu: &Gpu, name: &str, forward: &Timed) {
    let AttentionCase { heads, lengths, dims, dtypes, params, .. } = &forward.case;
    let case = |reduction, queries, keys, top_k| {
        let (heads, lengths, dims, dtypes, params) = (*heads, *lengths, *dims, *dtypes, params.clone());
        let attention = AttentionCase { heads, lengths, dims, dtypes, params, ..AttentionCase::default() };
        ScoreReductionCase { attention, reduction, heads: HeadGroups::Each, queries, keys, top_k }
    };
    let (blocks, tokens) = (QueryGroups::Blocks(64), KeyGroups::Blocks(1));
    let cases = [
        ("max of 64 × 64", case(Reduction::Max, blocks, KeyGroups::Blocks(64), None)),
        ("argmax of each query", case(Reduction::ArgMax, QueryGroups::Blocks(1), KeyGroups::All, None)),
        ("sum of 8 segments", case(Reduction::Sum, blocks, KeyGroups::Segments(8), None)),
        ("top 64 tokens of 64 queries", case(Reduction::Max, blocks, tokens, Some(64))),
    ];
    let time = |case: &ScoreReductionCase| pollster::block_on(case.time(gpu)).expect("a GPU that works").seconds;
    let runs: Vec<_> = cases.iter().map(|(name, case)| (*name, || time(case))).collect();
    let seconds = || forward.seconds();
    let mut all: Vec<(&str, &dyn Fn() -> f64)> = vec![("forward", &seconds)];
    all.extend(runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> f64)));
    ratios(&format!("{name}, score reductions"), &all);
}

/// Dense over sparse, by sparsity.
fn report(name: &str, sparsities: &[f32], dense: &dyn Fn() -> f64, sparse: &[impl Fn() -> f64]) {
    let names: Vec<String> = sparsities.iter().map(|sparsity| format!("sparsity {sparsity}")).collect();
    let mut runs: Vec<(&str, &dyn Fn() -> f64)> = vec![("dense", dense)];
    runs.extend(names.iter().zip(sparse).map(|(name, run)| (name.as_str(), run as &dyn Fn() -> f64)));
    let medians = ratios(name, &runs);
    for (sparsity, median) in sparsities.iter().zip(&medians[1..]) {
        println!(
            "ratio    dense over sparsity {sparsity}: {:.2} of {:.2}",
            medians[0] / median,
            1.0 / (1.0 - sparsity)
        );
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
