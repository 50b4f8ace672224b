//! One test for each promise that the README makes about results; `embedding.rs` has those about buffers and encoders.

mod common;

use common::{BOTTOM_RIGHT, bits, gpu, random, read, tensor};
use pollster::block_on;
use wgpu_attention::catalogue::normal;
use wgpu_attention::plan::{AttentionParams, Caps, Shapes};
use wgpu_attention::score_reduction::{ScoreReduction, ScoreReductionInputs, ScoreReductionParams};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, BlockGrid, BlockMask, Causal, DType, FlashAttention, FlashParams, Gpu, Layout,
    Tensor, Window,
};

/// One head: queries, keys, head dim, values in [sequence, head_dim].
fn attend(params: &FlashParams, [nq, nk, d]: [usize; 3], q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let [q, k, v] = [tensor([1, 1, nq, d], q), tensor([1, 1, nk, d], k), tensor([1, 1, nk, d], v)];
    let attention = FlashAttention::new(gpu(), params.clone()).expect("valid params");
    let (out, lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).expect("valid shapes");
    (read(&out), read(&lse))
}

#[test]
fn a_fully_masked_row_is_zero_and_its_lse_minus_infinity() {
    let (nq, nk, d) = (100, 70, 16);
    let (out, lse) = attend(&BOTTOM_RIGHT, [nq, nk, d], &random(1, nq * d), &random(2, nk * d), &random(3, nk * d));
    for i in 0..nq {
        let row = &out[i * d..(i + 1) * d];
        if i < nq - nk {
            assert!(row.iter().all(|x| x.to_bits() == 0), "row {i}: {row:?}");
            assert_eq!(lse[i], f32::NEG_INFINITY, "row {i}");
        } else {
            assert!(row.iter().all(|x| x.is_finite() && *x != 0.0), "row {i}: {row:?}");
            assert!(lse[i].is_finite(), "row {i}");
        }
    }
    let (out, lse) = attend(&FlashParams::default(), [3, 0, d], &random(1, 3 * d), &[], &[]);
    assert_eq!((bits(&out), bits(&lse)), (vec![0; 3 * d], vec![f32::NEG_INFINITY.to_bits(); 3]), "no keys at all");
}

#[test]
fn what_a_mask_or_a_bias_hides_does_not_leak_in() {
    let (n, d) = (100, 8);
    let (q, k, v) = (random(61, n * d), random(62, n * d), random(63, n * d));
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let upload = |dtype, shape, values: &[f32]| block_on(Tensor::upload(gpu(), shape, dtype, values)).unwrap();
    // Key 70 is hidden from even rows; row 33 sees nothing at all.
    let hidden = |i: usize, j: usize| (j == 70 && i.is_multiple_of(2)) || i == 33;
    let pairs = |hide: f32, show: f32| -> Vec<f32> {
        (0..n * n).map(|at| if hidden(at / n, at % n) { hide } else { show }).collect()
    };
    let mask = upload(DType::U8, [1, 1, n, n], &pairs(0.0, 1.0));
    let bias = upload(DType::F32, [1, 1, n, n], &pairs(f32::NEG_INFINITY, 0.25));
    for (bias, mask) in [(None, Some(&mask)), (Some(&bias), None), (Some(&bias), Some(&mask))] {
        let run = |k: &[f32], v: &[f32]| {
            let [q, k, v] = [&q[..], k, v].map(|values| tensor([1, 1, n, d], values));
            let inputs = AttentionInputs { bias, mask, ..AttentionInputs::new(&q, &k, &v) };
            let (out, lse) = block_on(attention.forward_with_lse(&inputs)).unwrap();
            (read(&out), read(&lse))
        };
        let (clean, clean_lse) = run(&k, &v);
        assert!(clean[33 * d..34 * d].iter().all(|x| x.to_bits() == 0) && clean_lse[33] == f32::NEG_INFINITY);
        for in_values in [false, true] {
            let (mut k, mut v) = (k.clone(), v.clone());
            let poisoned = if in_values { &mut v } else { &mut k };
            poisoned[70 * d..71 * d].fill(f32::NAN);
            let (out, _) = run(&k, &v);
            for i in 0..n {
                let row = i * d..(i + 1) * d;
                // A bias of −∞ is added to the NaN of the key itself: only the mask keeps that out.
                let kept = i == 33 || i.is_multiple_of(2);
                if kept && (in_values || mask.is_some()) {
                    assert_eq!(bits(&out[row.clone()]), bits(&clean[row]), "row {i}");
                } else if !kept {
                    assert!(out[row].iter().all(|x| x.is_nan()), "row {i}");
                }
            }
        }
    }
}

#[test]
fn what_a_row_cannot_see_does_not_leak_in() {
    let (n, d) = (150, 12);
    let (q, k, v) = (random(4, n * d), random(5, n * d), random(6, n * d));
    let params = FlashParams { window: Window { left: Some(20), right: Some(0) }, ..BOTTOM_RIGHT };
    let (clean, clean_lse) = attend(&params, [n, n, d], &q, &k, &v);
    // One key inside a border tile, one in a tile that most rows skip; NaN and infinity; in keys and in values.
    for (key, poison) in [(100, f32::NAN), (3, f32::INFINITY), (149, f32::NEG_INFINITY)] {
        for in_values in [false, true] {
            let (mut k, mut v) = (k.clone(), v.clone());
            let poisoned = if in_values { &mut v } else { &mut k };
            poisoned[key * d..(key + 1) * d].fill(poison);
            let (out, lse) = attend(&params, [n, n, d], &q, &k, &v);
            for i in (0..n).filter(|&i| !(key..=key + 20).contains(&i)) {
                let row = i * d..(i + 1) * d;
                assert_eq!(bits(&out[row.clone()]), bits(&clean[row]), "row {i} under {poison} at {key}");
                assert_eq!(lse[i].to_bits(), clean_lse[i].to_bits(), "row {i} under {poison} at {key}");
            }
        }
    }
}

#[test]
fn a_visible_nan_reaches_the_rows_that_see_it_and_no_other() {
    let (n, d) = (130, 8);
    let (q, k, v) = (random(7, n * d), random(8, n * d), random(9, n * d));
    let (clean, clean_lse) = attend(&BOTTOM_RIGHT, [n, n, d], &q, &k, &v);
    for at in [0, 63, 64, 129] {
        let mut poisoned = [q.clone(), k.clone(), v.clone()];
        for (which, values) in poisoned.iter_mut().enumerate() {
            values[at * d + 3] = f32::NAN;
            let [q, k, v] = if which == 0 {
                [values.as_slice(), &k, &v]
            } else if which == 1 {
                [&q, values.as_slice(), &v]
            } else {
                [&q, &k, values.as_slice()]
            };
            let (out, lse) = attend(&BOTTOM_RIGHT, [n, n, d], q, k, v);
            for i in 0..n {
                let sees = if which == 0 { i == at } else { i >= at };
                for e in 0..d {
                    let (x, clean) = (out[i * d + e], clean[i * d + e]);
                    // A NaN in one value column stays in that column.
                    let spoiled = sees && (which < 2 || e == 3);
                    assert!(
                        if spoiled { x.is_nan() } else { x.to_bits() == clean.to_bits() },
                        "{which} {at} {i} {e}: {x}"
                    );
                }
                let spoiled = sees && which < 2;
                assert!(if spoiled { lse[i].is_nan() } else { lse[i] == clean_lse[i] }, "{which} {at} {i}: {}", lse[i]);
            }
        }
    }
}

#[test]
fn a_visible_nan_counts_even_where_its_weight_underflows() {
    // Key 40 scores 1000 below the others; its value is NaN. Rows 40 and later see it.
    let n = 100;
    let mut k = vec![0.0; n];
    k[40] = -1000.0;
    let mut v = vec![1.0; n];
    v[40] = f32::NAN;
    for params in [BOTTOM_RIGHT, FlashParams { window: Window { left: None, right: Some(0) }, ..BOTTOM_RIGHT }] {
        let (out, lse) = attend(&params, [n, n, 1], &vec![1.0; n], &k, &v);
        for i in 0..n {
            assert_eq!(out[i].is_nan(), i >= 40, "row {i}: {}", out[i]);
            assert!(lse[i].is_finite(), "row {i}: {}", lse[i]);
        }
    }
}

#[test]
fn results_are_the_same_bits_every_time_and_whatever_stands_beside_a_row() {
    let (n, d, heads) = (140, 40, 3);
    let attention = FlashAttention::new(gpu(), BOTTOM_RIGHT).expect("valid params");
    let values: Vec<Vec<f32>> = (0..3).map(|i| random(20 + i, 2 * heads * n * d)).collect();
    let whole: Vec<Tensor> = values.iter().map(|v| tensor([2, heads, n, d], v)).collect();
    let (out, lse) =
        block_on(attention.forward_with_lse(&AttentionInputs::new(&whole[0], &whole[1], &whole[2]))).unwrap();
    let (out, lse) = (read(&out), read(&lse));
    for _ in 0..3 {
        let again = block_on(attention.forward(&whole[0], &whole[1], &whole[2])).unwrap();
        assert_eq!(bits(&read(&again)), bits(&out));
    }
    // Each head alone; then its last 30 queries alone, which fall into other places of other tiles.
    for head in 0..2 * heads {
        let [q, k, v] = [0, 1, 2].map(|i| &values[i][head * n * d..(head + 1) * n * d]);
        let (alone, alone_lse) = attend(&BOTTOM_RIGHT, [n, n, d], q, k, v);
        assert_eq!(bits(&alone), bits(&out[head * n * d..(head + 1) * n * d]));
        assert_eq!(bits(&alone_lse), bits(&lse[head * n..(head + 1) * n]));
        let (last, _) = attend(&BOTTOM_RIGHT, [30, n, d], &q[(n - 30) * d..], k, v);
        assert_eq!(bits(&last), bits(&alone[(n - 30) * d..]));
    }
}

#[test]
fn lse_is_natural_f32_by_batch_head_and_row_in_any_layout() {
    let (b, h, n, d) = (2, 3, 5, 4);
    let values = random(30, b * h * n * d);
    let shape = [b, h, n, d];
    for layout in [Layout::heads_first(DType::F16, shape), Layout::heads_last(DType::F16, shape)] {
        let q = block_on(Tensor::empty(gpu(), layout)).unwrap();
        block_on(q.write(&values)).unwrap();
        let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
        let (_, lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&q, &q, &q))).unwrap();
        assert_eq!((lse.shape(), lse.layout().dtype), ([b, h, n, 1], DType::F32));
        let q = read(&q);
        for (row, lse) in read(&lse).into_iter().enumerate() {
            let head = row / n * n;
            let dot =
                |i: usize, j: usize| (0..d).map(|e| f64::from(q[i * d + e]) * f64::from(q[j * d + e])).sum::<f64>();
            let sum: f64 = (head..head + n).map(|j| (dot(row, j) / 2.0).exp()).sum();
            assert!((f64::from(lse) - sum.ln()).abs() < 1e-5, "row {row}: {lse} is not {}", sum.ln());
        }
    }
}

#[test]
fn causal_masks_follow_the_diagonal_that_they_name() {
    // With all scores equal, a row's output is the mean of the values that it sees: the value of key j is j.
    let (nq, nk) = (3, 5);
    let values: Vec<f32> = (0..nk).map(|j| j as f32).collect();
    let mean = |causal| {
        let params = FlashParams { causal: Some(causal), ..FlashParams::default() };
        attend(&params, [nq, nk, 1], &vec![0.0; nq], &vec![0.0; nk], &values).0
    };
    let close = |found: Vec<f32>, expected: [f32; 3]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
    };
    close(mean(Causal::BottomRight), [1.0, 1.5, 2.0]);
    close(mean(Causal::TopLeft), [0.0, 0.5, 1.0]);
}

#[test]
fn the_plan_says_what_runs_and_what_cannot_run_is_an_error() {
    let layout = |d| Layout::heads_first(DType::F32, [1, 1, 9, d]);
    let plan = |caps: &Caps, d| {
        let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, layout(d))));
        FlashParams::default().plan(caps, &shapes)
    };
    let core = Caps::core();
    let words = plan(&core, 64).unwrap().to_string();
    assert!(words.contains("portable: 64 × 64 tiles"), "{words}");
    assert!(!words.contains("one element at a time"), "{words}");
    let words = plan(&core, 59).unwrap().to_string();
    assert!(words.contains("q moves one element at a time: width 59"), "{words}");
    for d in 1..=256 {
        let memory = plan(&core, d).unwrap_or_else(|e| panic!("core WebGPU runs every head dim, not {d}: {e}"));
        assert!(memory.wgsl()[0].1.contains("fn main"));
    }
    // Few queries: heads of a key head as rows where they see the same keys, and keys in parts.
    let tokens = |heads, n| Layout::heads_first(DType::F32, [1, heads, n, 64]);
    let words = |params: FlashParams, queries| {
        let shapes = Shapes::new([("q", tokens(8, queries)), ("k", tokens(2, 5000)), ("v", tokens(2, 5000))]);
        params.plan(&core, &shapes).unwrap().to_string()
    };
    let [rows, parts] = ["query heads that share a key head are rows of one tile", "keys in 5 parts, merged"];
    for (params, queries, grouped) in [
        (FlashParams::default(), 1, true),
        (common::BOTTOM_RIGHT, 1, true),
        (common::BOTTOM_RIGHT, 8, false),
        (FlashParams { window: Window { left: Some(9), right: None }, ..FlashParams::default() }, 1, false),
        (FlashParams { alibi_slopes: Some(vec![0.5; 8]), ..FlashParams::default() }, 1, false),
    ] {
        let words = words(params, queries);
        assert_eq!(words.contains(rows), grouped, "{words}");
        assert!(words.contains(parts) && words.contains("portable: 8 × 64 tiles"), "{words}");
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn native_futures_are_send() {
    let q = tensor([1, 1, 2, 4], &random(1, 8));
    let attention = is_send(FlashAttention::new(gpu(), FlashParams::default()).unwrap());
    let shapes = Shapes::of(AttentionInputs::new(&q, &q, &q));
    let prepared = is_send(block_on(is_send(attention.prepare(&shapes))).unwrap());
    let out = block_on(is_send(attention.forward(&q, &q, &q))).unwrap();
    block_on(is_send(out.read())).unwrap();
    drop(is_send(Gpu::request()));
    drop(is_send(Tensor::upload(gpu(), [1, 1, 1, 1], DType::F32, &[0.0])));
    let grid = BlockGrid { batch: 1, heads: 1, queries: 2, keys: 2, block: [1, 1] };
    let mask = is_send(block_on(is_send(BlockMask::causal(gpu(), grid))).unwrap());
    let (partial, _) = is_send(block_on(is_send(mask.to_lists(3))).unwrap());
    block_on(is_send(BlockMask::from_lists(gpu(), grid, &partial, None))).unwrap();
    let reduction = is_send(ScoreReduction::new(gpu(), ScoreReductionParams::default()).unwrap());
    let (_, lse) = block_on(is_send(attention.forward_with_lse(&AttentionInputs::new(&q, &q, &q)))).unwrap();
    let inputs = ScoreReductionInputs { attention: AttentionInputs::new(&q, &q, &q), lse: &lse, segments: None };
    let reduced = is_send(block_on(is_send(reduction.forward(&inputs))).unwrap());
    block_on(reduced.values.read()).unwrap();
    std::thread::spawn(move || drop((attention, prepared, out, mask, reduction))).join().unwrap();
}

#[test]
fn stores_round_to_nearest_even_and_overflow_to_infinity() {
    // One key: the output is its value, stored in another type.
    let mut values = vec![0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 70000.0, -70000.0, 1e30, f32::INFINITY, f32::NAN];
    values.extend([1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.39e38, -3.4e38]);
    values.extend([6.1e-5, 6.0e-5, 5.96e-8, 2.98e-8, 2.99e-8, 8.9e-8, 1e-9, -3.3e-6]);
    values.extend(normal(90, 200, 1e-5, DType::F32));
    values.extend(normal(91, 231, 300.0, DType::F32));
    let (rows, width) = (values.len() / 8, 8);
    values.truncate(rows * width);
    let v = tensor([1, rows, 1, width], &values);
    let q = tensor([1, rows, 1, 1], &vec![1.0; rows]);
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let lse = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::F32, [1, rows, 1, 1]))).unwrap();
    for dtype in [DType::F16, DType::Bf16] {
        let out = block_on(Tensor::empty(gpu(), Layout::heads_first(dtype, [1, rows, 1, width]))).unwrap();
        let (inputs, outputs) = (AttentionInputs::new(&q, &q, &v), AttentionOutputs::new(&out, &lse));
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, (&inputs, &outputs)).unwrap();
        gpu().queue().submit([encoder.finish()]);
        for (found, &value) in read(&out).into_iter().zip(&values) {
            let expected = dtype.round(value);
            let same = found == expected || (found.is_nan() && expected.is_nan());
            assert!(same, "{value:e} in {dtype} is {expected:e}, not {found:e}");
        }
    }
}
