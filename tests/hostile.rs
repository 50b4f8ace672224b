//! Input that nobody means: no panic, no hang, no allocation beyond bounds, no silence. What might end the process or never end runs in
//! a process of its own.

mod common;

use common::{bits, gpu, named, program_on_driver, random, read, says, tensor};
use pollster::block_on;
use std::time::{Duration, Instant};
use wgpu_attention::gate::SeerGateParams;
use wgpu_attention::plan::{AttentionParams, Caps, Program, Shapes};
use wgpu_attention::score_reduction::{KeyGroups, ScoreReduction, ScoreReductionInputs, ScoreReductionParams};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, BlockGrid, BlockMask, BlockSparseParams, DType, Error, FlashAttention,
    FlashParams, HeadBlocks, Hook, Layout, LinearAttention, LinearInputs, LinearParams, NeighborhoodAxis,
    NeighborhoodParams, Result, RotaryParams, Seqlens, Tensor,
};

/// How long planning may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

type Attempt = (&'static str, fn());

fn quick<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < PATIENCE, "{what} took {:?}", start.elapsed());
    result
}

/// Plans by every family, of tensors with this batch and so many heads and rows.
fn plans([batch, heads, rows]: [usize; 3], caps: &Caps) -> Vec<(&'static str, Result<Program>)> {
    let layout = |shape: [usize; 4]| Layout { strides: [0, 0, shape[3]], ..Layout::heads_first(DType::F32, shape) };
    let x = || layout([batch, heads, rows, 8]);
    let qkv = || Shapes::new([("q", x()), ("k", x()), ("v", x())]);
    let lse = || Layout::heads_first(DType::F32, [batch, heads, rows, 1]);
    let training = || qkv().tensor("out", x()).tensor("lse", lse()).tensor("dout", x());
    let segments = ScoreReductionParams { keys: KeyGroups::Segments(4), ..ScoreReductionParams::default() };
    let of_keys = Layout::heads_first(DType::U32, [1, 1, 1, rows]);
    let axes = vec![NeighborhoodAxis { length: rows, window: 3.min(rows), stride: 1, dilation: 1, causal: false }];
    vec![
        ("flash", FlashParams::default().plan(caps, &qkv())),
        ("flash backward", FlashParams::default().plan_backward(caps, &training())),
        ("block-sparse", BlockSparseParams::default().plan(caps, &qkv().heads(&vec![HeadBlocks::Dense; heads.min(4)]))),
        ("neighborhood", NeighborhoodParams { axes, ..Default::default() }.plan(caps, &qkv())),
        ("linear", LinearParams::default().plan(caps, &qkv())),
        ("linear backward", LinearParams::default().plan_backward(caps, &qkv().tensor("dout", x()))),
        ("rotary", RotaryParams::default().plan(caps, &Shapes::new([("x", x())]))),
        ("merge", Shapes::new([("parts[0].out", x()), ("parts[0].lse", lse())]).plan_merge(caps)),
        (
            "score reduction",
            ScoreReductionParams::default().plan(caps, &Shapes::new([("q", x()), ("k", x()), ("lse", lse())])),
        ),
        (
            "segments",
            segments.plan(caps, &Shapes::new([("q", x()), ("k", x()), ("lse", lse()), ("segments", of_keys)])),
        ),
        (
            "gate",
            SeerGateParams::default()
                .plan(caps, &Shapes::new([("q", x()), ("k", x()), ("wk", layout([1, heads, 24, 8]))])),
        ),
    ]
}

const HUGE: [usize; 5] = [1 << 20, 1 << 31, 1 << 40, 1 << 62, usize::MAX];

/// What ended the process, or went on for minutes.
const ATTEMPTS: &[Attempt] = &[
    ("huge shapes", || {
        let mut count = 0;
        for caps in [Caps::core(), Caps::unlimited()] {
            for n in HUGE {
                for shape in [[n, 1, 1], [1, n, 1], [1, 1, n], [n, 1, 0], [1, n, 0], [n, n, 0], [n, n, n]] {
                    let start = Instant::now();
                    for (name, plan) in plans(shape, &caps) {
                        if let Err(Error::Internal { what, message }) = &plan {
                            panic!("{name} of {shape:?}: {what}: {message}");
                        }
                        count += 1;
                        assert!(start.elapsed() < 4 * PATIENCE, "{name} of {shape:?}");
                    }
                }
            }
        }
        assert_eq!(count, 2 * 5 * 7 * 11);
    }),
    ("batch of linear attention", || {
        for batch in [1usize << 31, 1 << 40] {
            let x = Layout::heads_first(DType::F32, [batch, 1, 0, 8]);
            let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, x.clone())));
            says(
                quick("linear", || LinearParams::default().plan(&Caps::core(), &shapes)),
                &["q.shape[0]", "at most 4194304"],
            );
        }
    }),
    ("heads", || {
        let x = Layout::heads_first(DType::F32, [1, 1 << 40, 1, 8]);
        let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, x.clone())));
        says(
            quick("flash", || FlashParams::default().plan(&Caps::unlimited(), &shapes)),
            &["q.shape[1]", "at most 1048576"],
        );
        says(quick("linear", || LinearParams::default().plan(&Caps::unlimited(), &shapes)), &["q.shape[1]", "1048576"]);
        let lse = Layout { shape: [1, 1 << 40, 1, 1], ..x.clone() };
        let parts = Shapes::new([("parts[0].out", x), ("parts[0].lse", lse)]);
        says(quick("merge", || parts.plan_merge(&Caps::unlimited())), &["parts[0].out.shape[1]", "1048576"]);
    }),
    ("slices", || {
        let x = Layout::heads_first(DType::F32, [1, 64, 1 << 22, 128]);
        let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, x.clone())));
        let caps = Caps::unlimited().with(|caps| caps.kind = wgpu_attention::plan::AdapterKind::Software);
        says(quick("flash", || FlashParams::default().plan(&caps, &shapes)), &["dispatches of one kernel", "262144"]);
    }),
    ("block masks", || {
        let grid = |queries, keys, batch| BlockGrid { batch, heads: 1, queries, keys, block: [1, 1] };
        for grid in [grid(1 << 30, 1 << 30, 1), grid(64, 64, 1 << 40), grid(1 << 30, 1 << 30, 1 << 22)] {
            let made = [
                quick("from_fn", || block_on(BlockMask::from_fn(gpu(), grid, |_, _, _, _| true))),
                quick("random", || block_on(BlockMask::random(gpu(), grid, 0.5, false, 1))),
                quick("causal", || block_on(BlockMask::causal(gpu(), grid))),
                quick("from_host_lists", || block_on(BlockMask::from_host_lists(gpu(), grid, (&[0], &[]), None))),
            ];
            for made in made {
                assert!(matches!(made, Err(Error::Limit { .. } | Error::Argument { .. })), "{grid:?}: {made:?}");
            }
            if grid.batch > 1 << 22 {
                says(grid.check(), &["grid.batch", "at most 4194304"]);
            }
        }
    }),
    ("masks by name", || {
        let grid = BlockGrid { batch: 1, heads: 2, queries: 4096, keys: 4096, block: [4, 4] };
        let most = usize::MAX;
        quick("big_bird", || block_on(BlockMask::big_bird(gpu(), grid, most, most, most, 1))).unwrap();
        quick("s2", || block_on(BlockMask::s2_attention(gpu(), grid, most, most))).unwrap();
        quick("window", || block_on(BlockMask::sliding_window(gpu(), grid, most, most))).unwrap();
        quick("long_gen", || block_on(BlockMask::long_gen(gpu(), grid, most, most))).unwrap();
    }),
    ("heads by name", || {
        let refused = |heads: Vec<HeadBlocks>| {
            let x = Layout::heads_first(DType::F32, [1, 4, 8, 8]);
            let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, x.clone()))).heads(&heads);
            says(BlockSparseParams::default().plan(&Caps::core(), &shapes), &["block_mask.heads.len()", "4"]);
        };
        refused(HeadBlocks::streaming_llm(usize::MAX, 1, 1));
        refused(HeadBlocks::duo_attention(&[true, false], usize::MAX, 1, 1));
        says(LinearParams::lightning_slopes(usize::MAX, 0, 2), &["heads", "at most"]);
        says(LinearParams::lightning_linear_slopes(usize::MAX, 0, 2), &["heads", "at most"]);
        assert!(LinearParams::retnet_slopes(usize::MAX).len() > 1 << 20);
    }),
    ("hooks that nest", || {
        let sources = [
            format!("let x = {}score{};", "(".repeat(10_000), ")".repeat(10_000)),
            format!("let x = {}score;", "- ".repeat(200)),
            format!("let x = {}score;", "-".repeat(4_000)),
            format!("let x = {}score;", "!".repeat(60_000)),
            format!("let x = score{};", " + 1.0".repeat(100)),
            format!("let x = score{};", " + max(1.0, 2.0)".repeat(3_000)),
            format!("let x = vec2f(score){};", ".xy".repeat(100)),
            format!("let x = {}score{};", "(1.0 + 2.0 * 3.0 - 4.0 +".repeat(40), ")".repeat(40)),
            format!("let x = score{};", " + 1.0".repeat(9_000)),
            "{".repeat(5_000) + &"}".repeat(5_000),
            format!("if score > 0.0 {{}} {}", "else if score > 1.0 {}".repeat(60)),
            format!("if score > 0.0 {{}} {}", "else if score > 1.0 {}".repeat(2_900)),
            format!("var a: {}f32{};", "array<".repeat(4_000), ", 1>".repeat(4_000)),
            "return score;".repeat(500),
            "return f0(score);".into(),
            "var a = array(score, 1.0); var b = array(a, a, a, a, a, a, a, a); var c = array(b, b, b, b, b, b, b, b); \
             var d = array(c, c, c, c, c, c, c, c); var e = array(d, d, d, d, d, d, d, d); var f = array(e, e, e, e, e, e, e, e); \
             var g = array(f, f, f, f, f, f, f, f); return g[u32(score)][0][0][0][0][0][0];"
                .into(),
            format!("var a: array<f32, 4000>; a[u32(score)] = score; {}", "{ var b = a; a[1] = b[at.key]; }".repeat(500)),
            format!(
                "var a: array<f32, 4000>; a[u32(score)] = score; {}",
                "{ var<function> b = a; a[1] = b[at.key]; }".repeat(500)
            ),
            format!("let a = array<f32, 4000>(); var sum = 0.0; {}", "sum += a[at.key];".repeat(500)),
        ];
        // Each calls the next one twice.
        let doubling: String = (0..22)
            .map(|n| format!("fn f{n}(x: f32) -> f32 {{ return f{}(f{}(x) + 1.0); }}\n", n + 1, n + 1))
            .collect();
        let doubling = doubling + "fn f22(x: f32) -> f32 { return sin(x); }";
        let x = tensor([1, 1, 4, 8], &random(1, 32));
        for body in sources {
            let source = format!("fn deep(score: f32, at: Position) -> f32 {{ {body} return score; }}\n");
            let source = if body.contains("f0(") { source + &doubling } else { source };
            let params = FlashParams { score_mod: vec![Hook::new("deep", source)], ..FlashParams::default() };
            let result = FlashAttention::new(gpu(), params);
            let result =
                result.and_then(|attention| block_on(attention.prepare(AttentionInputs::new(&x, &x, &x))).map(|_| ()));
            let start: String = body.chars().take(30).collect();
            assert!(matches!(result, Ok(()) | Err(Error::Hook { .. } | Error::Argument { .. })), "{start}: {result:?}");
        }
    }),
    ("reading what is repeated", || {
        let x = tensor([1, 1, 1, 4], &[1.0; 4]);
        let view = |batch| x.view(Layout { strides: [0; 3], shape: [batch, 1, 1, 4], ..x.layout().clone() }).unwrap();
        says(quick("read", || block_on(view(1 << 58).read())), &["tensor.shape", "repeats", "268435456"]);
        assert_eq!(read(&view(3)), [1.0; 12]);
    }),
];

/// One attempt, in the process that [`nothing_ends_the_process_or_hangs`] starts for it.
#[test]
#[ignore = "the parent runs it"]
fn attempt() {
    let name = std::env::var("WGPU_ATTENTION_ATTEMPT").expect("an attempt's name");
    ATTEMPTS.iter().find(|(other, _)| *other == name).expect("a known attempt").1();
}

#[test]
fn nothing_ends_the_process_or_hangs() {
    // Its own loader is what the system takes for this program, where it has one.
    let program = std::env::args().next().expect("this program");
    for (name, _) in ATTEMPTS {
        let mut command = program_on_driver(&program);
        command.args(["--exact", "attempt", "--ignored", "--nocapture"]).env("WGPU_ATTENTION_ATTEMPT", name);
        let mut child = command.spawn().expect("this program again");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            if start.elapsed() > Duration::from_secs(120) {
                let _ = child.kill();
                panic!("{name} hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{name}: {status}");
    }
}

#[test]
fn a_grid_of_blocks_without_size_is_refused() {
    let grid = BlockGrid { batch: 1, heads: 1, queries: 64, keys: 64, block: [0, 64] };
    assert_eq!((grid.blocks(), grid.shape(), grid.own(0)), ([0, 1], [1, 1, 0, 1], 0..0));
    says(grid.check(), &["block[0]", "0", "power of two"]);
    says(block_on(BlockMask::big_bird(gpu(), grid, 1, 1, 1, 1)), &["block[0]"]);
    let whole = BlockGrid { block: [64, 64], ..grid };
    assert_eq!((whole.own(0), whole.own(1), whole.own(usize::MAX)), (0..1, 0..0, 0..0));
    assert_eq!(BlockGrid { queries: 0, ..whole }.own(0), 0..0);
}

/// Offsets and lengths on the GPU are looked at where there is no work to do, too.
#[test]
fn wrong_offsets_are_told_without_any_work() {
    let wrong = block_on(Tensor::upload_u32(gpu(), &[0, 8])).unwrap();
    let right = block_on(Tensor::upload_u32(gpu(), &[0, 0])).unwrap();
    let x = |rows| tensor([1, 1, rows, 8], &random(1, 8 * rows));
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    for (rows, longest, words) in
        [(8, Some(0), ["cu_seqlens_q[1]", "at most 0"]), (0, None, ["cu_seqlens_q[1]", "at most 0"])]
    {
        let x = x(rows);
        let packed = |offsets| AttentionInputs {
            cu_seqlens_q: Some(Seqlens::Gpu(offsets)),
            cu_seqlens_k: Some(Seqlens::Gpu(offsets)),
            max_seqlen_q: longest,
            max_seqlen_k: longest,
            ..AttentionInputs::new(&x, &x, &x)
        };
        let (out, saved) = block_on(attention.forward_for_training(&packed(&wrong))).unwrap();
        if rows > 0 {
            says(block_on(out.read()), &words);
        }
        let prepared = block_on(attention.prepare(packed(&wrong))).unwrap();
        let (lse, fresh) = (tensor([1, 1, rows, 1], &vec![0.0; rows]), tensor([1, 1, rows, 8], &vec![0.0; 8 * rows]));
        let outputs = AttentionOutputs::new(&fresh, &lse);
        block_on(prepared.submit((&packed(&wrong), &outputs))).unwrap();
        says(block_on(prepared.check()), &words);
        block_on(prepared.submit((&packed(&right), &outputs))).unwrap();
        block_on(prepared.check()).unwrap();
        assert!(bits(&read(&fresh)).iter().all(|&word| word == 0));
        // Gradients and reductions look at them as well.
        let dout = x.clone();
        let backward = block_on(attention.backward(&saved, &dout));
        if rows > 0 {
            says(backward.and_then(|found| block_on(found.dq.read())), &words);
            for top_k in [None, Some(1)] {
                let params = ScoreReductionParams { top_k, ..ScoreReductionParams::default() };
                let reduction = ScoreReduction::new(gpu(), params).unwrap();
                let inputs =
                    ScoreReductionInputs { attention: packed(&wrong), lse: named(&saved, "lse"), segments: None };
                let prepared = block_on(reduction.prepare(inputs)).unwrap();
                let values = prepared.plan().tensors.iter().filter(|tensor| tensor.written);
                let results: Vec<_> = values
                    .map(|spec| (spec.name.clone(), block_on(Tensor::empty(gpu(), spec.layout.clone())).unwrap()))
                    .collect();
                let results: Vec<_> = results.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
                block_on(prepared.submit((&inputs, results))).unwrap();
                says(block_on(prepared.check()), &words);
            }
        }
    }
}

#[test]
fn offsets_of_linear_attention_that_do_not_ascend_are_refused() {
    let x = tensor([1, 1, 5, 4], &random(1, 20));
    let attention = LinearAttention::new(gpu(), LinearParams::default()).unwrap();
    let inputs = LinearInputs { cu_seqlens: Some((&[0, 5, 3]).into()), ..LinearInputs::new(&x, &x, &x) };
    says(block_on(attention.forward_with_snapshots(&inputs)), &["cu_seqlens[2]", "3", "at least"]);
    says(block_on(attention.forward_with_state(&inputs)), &["cu_seqlens[2]", "3", "at least"]);
    says(block_on(attention.backward(&inputs, &x, None)), &["cu_seqlens[2]", "3", "at least"]);
}

#[test]
fn slopes_that_overflow_are_refused_and_the_largest_are_no_nan() {
    let x = tensor([1, 1, 300, 8], &random(1, 2400));
    for slope in [1e29f32, -1e29, f32::NAN, f32::INFINITY] {
        let params = FlashParams { alibi_slopes: Some(vec![slope]), ..FlashParams::default() };
        says(FlashAttention::new(gpu(), params).map(|_| ()), &["alibi_slopes[0]", "1e28"]);
        let params = LinearParams { slopes: Some(vec![slope]), ..LinearParams::default() };
        says(LinearAttention::new(gpu(), params).map(|_| ()), &["slopes[0]", "1e28"]);
    }
    let params = FlashParams { alibi_slopes: Some(vec![1e28]), ..FlashParams::default() };
    let out = block_on(FlashAttention::new(gpu(), params).unwrap().forward(&x, &x, &x)).unwrap();
    assert!(read(&out).iter().all(|x| x.is_finite()));
    let params = LinearParams { slopes: Some(vec![1e28]), ..LinearParams::default() };
    let out = block_on(LinearAttention::new(gpu(), params).unwrap().forward(&LinearInputs::new(&x, &x, &x))).unwrap();
    assert!(read(&out).iter().all(|x| x.is_finite()));
}

#[test]
fn so_many_pipelines_are_kept_as_was_said() {
    let gpu = block_on(wgpu_attention::Gpu::request_with(&common::options())).expect("a GPU driver");
    gpu.keep_pipelines(2);
    let x = block_on(Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[0.5; 8])).unwrap();
    let mut first = None;
    for i in 0..4 {
        let source = format!("fn plus(score: f32, at: Position) -> f32 {{ return score + {i}.0; }}");
        let params = FlashParams { score_mod: vec![Hook::new("plus", source)], ..FlashParams::default() };
        let attention = FlashAttention::new(&gpu, params).unwrap();
        let out = block_on(attention.forward(&x, &x, &x)).unwrap();
        assert_eq!(read(&out), [0.5; 8]);
        assert!(gpu.pipelines() <= 2);
        first.get_or_insert(attention);
    }
    // What is dropped is still there for those that hold it.
    assert_eq!(read(&block_on(first.unwrap().forward(&x, &x, &x)).unwrap()), [0.5; 8]);
    gpu.keep_pipelines(0);
    assert_eq!(gpu.pipelines(), 0);
    let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
    assert_eq!(read(&block_on(attention.forward(&x, &x, &x)).unwrap()), [0.5; 8]);
}

#[test]
fn widths_of_rotary_embeddings_have_a_bound() {
    for (dim, word) in [(3, "3"), (0, "0")] {
        let params = RotaryParams { dim: Some(dim), ..RotaryParams::default() };
        says(wgpu_attention::Rotary::new(gpu(), params).map(|_| ()), &["dim", word, "even"]);
    }
    for width in [20_000, 100_000] {
        let shapes = Shapes::new([("x", Layout::heads_first(DType::F32, [1, 1, 1, width]))]);
        let plan = quick("rotary", || RotaryParams::default().plan(&Caps::core(), &shapes));
        says(plan, &["a table of rotary", "maxStorageBufferBindingSize", &(width * 24_576).to_string()]);
        let dim = RotaryParams { dim: Some(64), ..RotaryParams::default() };
        assert!(dim.plan(&Caps::core(), &shapes).is_ok());
    }
}

/// llvmpipe ends long loops: what counts is what a tile visits, not all keys.
#[test]
fn a_window_over_many_keys_is_planned_on_llvmpipe() {
    let caps = Caps::unlimited().with(|caps| caps.driver = "llvmpipe".into());
    let x = Layout::heads_first(DType::F32, [1, 1, 4_300_000, 8]);
    let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, x.clone())));
    let window = wgpu_attention::Window { left: Some(4), right: Some(4) };
    assert!(FlashParams { window, ..FlashParams::default() }.plan(&caps, &shapes).is_ok());
    let causal = Some(wgpu_attention::Causal::BottomRight);
    let left = wgpu_attention::Window { left: Some(4), right: None };
    assert!(FlashParams { window: left, causal, ..FlashParams::default() }.plan(&caps, &shapes).is_ok());
    says(FlashParams { window: left, ..FlashParams::default() }.plan(&caps, &shapes), &["rounds of llvmpipe's loops"]);
}
