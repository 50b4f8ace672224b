//! Rows by index: the catalogue, an independent implementation, bits that repeat, and what is refused.

mod common;

use common::golden::{file, floats};
use common::{bits, gpu, random, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::catalogue::{random_rows_cases, rows_cases};
use wgpu_attention::plan::{Caps, Shapes};
use wgpu_attention::*;

#[test]
fn catalogue() {
    run_all(&rows_cases());
}

#[test]
fn random_cases() {
    run_all(&random_rows_cases(20, 1));
}

fn index(values: &[u32], [batch, heads]: [usize; 2]) -> Tensor {
    let layout = Layout::heads_first(DType::U32, [batch, heads, 1, values.len() / batch / heads]);
    block_on(Tensor::upload_u32(gpu(), values)).unwrap().view(layout).unwrap()
}

/// `tests/data/rows_by_index.safetensors`.
#[test]
fn an_independent_implementation_agrees() {
    let bytes = file("rows_by_index");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let indices: Vec<u32> = bytemuck::pod_collect_to_vec(file.tensor("index").unwrap().data());
    let (rows, index) = (Rows::new(gpu()), index(&indices, [2, 3]));
    let (x, y) = (tensor([2, 3, 37, 9], &floats(&file, "x")), tensor([2, 3, 50, 9], &floats(&file, "y")));
    assert_eq!(read(&block_on(rows.gather(&x, &index)).unwrap()), floats(&file, "gathered"));
    for (name, reduce) in [("scattered_sum", RowReduction::Sum), ("scattered_mean", RowReduction::Mean)] {
        let found = read(&block_on(rows.scatter(&y, &index, 37, reduce)).unwrap());
        assert!(found.iter().zip(floats(&file, name)).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
    }
}

/// ⟨gather(x), dy⟩ = ⟨x, scatter(dy)⟩, and the same of the mean.
#[test]
fn each_is_the_gradient_of_the_other() {
    let (n, count, width) = (30, 70, 6);
    let rows = Rows::new(gpu());
    let indices: Vec<u32> = random(1, count).iter().map(|x| (x.abs() * 12.0) as u32 % 31).collect();
    let indices: Vec<u32> = indices.into_iter().map(|i| if i == 30 { u32::MAX } else { i }).collect();
    let index = index(&indices, [1, 1]);
    let (x, y) =
        (tensor([1, 1, n, width], &random(2, n * width)), tensor([1, 1, count, width], &random(3, count * width)));
    let dot = |a: &Tensor, b: &Tensor| -> f64 {
        read(a).iter().zip(read(b)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    };
    let gathered = block_on(rows.gather(&x, &index)).unwrap();
    let scattered = block_on(rows.scatter(&y, &index, n, RowReduction::Sum)).unwrap();
    assert!((dot(&gathered, &y) - dot(&x, &scattered)).abs() < 1e-4);
    let (mean, counts) = block_on(rows.scatter_with_count(&y, &index, n, RowReduction::Mean)).unwrap();
    let back = block_on(rows.gather_divided(&x, &index, &counts)).unwrap();
    assert!((dot(&back, &y) - dot(&x, &mean)).abs() < 1e-4);
    let named = |n: u32| indices.iter().filter(|&&i| i == n).count() as u32;
    assert_eq!(block_on(counts.read_u32()).unwrap(), (0..n as u32).map(named).collect::<Vec<_>>());
}

/// Sums of many rows, in the same order every time.
#[test]
fn a_scatter_has_the_same_bits_250_times() {
    let (count, width) = (900, 20);
    let indices: Vec<u32> = random(5, count).iter().map(|x| (x.abs() * 3.0) as u32 % 7).collect();
    let (rows, index) = (Rows::new(gpu()), index(&indices, [1, 1]));
    let y = tensor([1, 1, count, width], &random(6, count * width));
    let once = || bits(&read(&block_on(rows.scatter(&y, &index, 7, RowReduction::Mean)).unwrap()));
    let first = once();
    assert!((0..250).all(|_| once() == first));
}

/// In ascending order, over more than one dispatch of the kernel that finds it: 1e8 swallows what is added to it.
#[test]
fn sums_are_in_ascending_order() {
    let (heads, count) = (2, 40_000);
    let mut values = vec![0.0; heads * count];
    for head in values.chunks_mut(count) {
        (head[10], head[20_000], head[39_000]) = (1e8, 1.0, -1e8);
        head[39_999] = 3.0;
    }
    let y = tensor([1, heads, count, 1], &values);
    let index = index(&vec![1; count], [1, 1]);
    let found = read(&block_on(Rows::new(gpu()).scatter(&y, &index, 3, RowReduction::Sum)).unwrap());
    assert_eq!(found, [0.0, 3.0, 0.0, 0.0, 3.0, 0.0]);
}

/// Rows that no index names may be NaN.
#[test]
fn what_is_not_named_is_not_read() {
    let rows = Rows::new(gpu());
    let mut values = random(7, 5 * 4);
    values[8..12].fill(f32::NAN);
    let x = tensor([1, 1, 5, 4], &values);
    let found = read(&block_on(rows.gather(&x, &index(&[0, 1, u32::MAX, 4, 3], [1, 1]))).unwrap());
    assert!(found.iter().all(|x| x.is_finite()));
    let found =
        read(&block_on(rows.scatter(&x, &index(&[0, 1, u32::MAX, 2, 1], [1, 1]), 3, RowReduction::Sum)).unwrap());
    assert!(found.iter().all(|x| x.is_finite()));
}

#[test]
fn indices_out_of_range_are_told_when_a_result_is_read() {
    let rows = Rows::new(gpu());
    let x = tensor([1, 2, 4, 3], &random(8, 24));
    let wrong = index(&[0, 1, 2, 3, 1, 7], [1, 2]);
    let words = ["index[0][1][2] is 7", "below 4, the number of rows, or u32::MAX for none"];
    says(block_on(async { rows.gather(&x, &wrong).await?.read().await }), &words);
    let y = tensor([1, 2, 3, 3], &random(9, 18));
    says(block_on(async { rows.scatter(&y, &wrong, 4, RowReduction::Sum).await?.read().await }), &words);
    // It counts as none.
    let right = index(&[0, 1, 2, 3, 1, u32::MAX], [1, 2]);
    let known = read(&block_on(rows.scatter(&y, &right, 4, RowReduction::Sum)).unwrap());
    let to = tensor([1, 2, 4, 3], &[0.0; 24]);
    let call = [("y", &y), ("index", &wrong), ("x", &to)];
    let prepared = block_on(rows.prepare(&RowsParams { reduce: Some(RowReduction::Sum) }, Shapes::of(call))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    prepared.encode(&mut encoder, call).unwrap();
    gpu().queue().submit([encoder.finish()]);
    assert_eq!(read(&to), known);
}

#[test]
fn bad_input() {
    let rows = Rows::new(gpu());
    let x = tensor([2, 2, 4, 3], &[0.0; 48]);
    let good = index(&[0, 1, 2], [1, 1]);
    assert!(block_on(rows.gather(&x, &good)).is_ok());
    says(block_on(rows.gather(&x, &x)), &["index.shape is [2, 2, 4, 3]", "[2 or 1, 2 or 1, 1, as many"]);
    let floats = tensor([1, 1, 1, 3], &[0.0; 3]);
    says(block_on(rows.gather(&x, &floats)), &["index.dtype is f32", "u32"]);
    let three = index(&[0; 9], [1, 3]);
    says(block_on(rows.gather(&x, &three)), &["index.shape is [1, 3, 1, 3]", "2 or 1"]);
    says(
        block_on(rows.scatter(&x, &good, 9, RowReduction::Sum)),
        &["y.shape[2] (rows) is 4", "3, as many as the index"],
    );
    says(block_on(rows.scatter(&x, &good, 1 << 40, RowReduction::Sum)), &["y.shape[2] (rows) is 4"]);
    let y = tensor([2, 2, 3, 3], &[0.0; 36]);
    says(
        block_on(rows.scatter(&y, &good, 1 << 40, RowReduction::Sum)),
        &["rows is 1099511627776", "at most 1073741824"],
    );
    let counts = index(&[1; 3], [1, 1]);
    says(block_on(rows.gather_divided(&x, &good, &counts)), &["count.shape is [1, 1, 1, 3]", "[1, 1, 1, 4]"]);
    let shapes = Shapes::of([("y", &y), ("index", &good)]);
    let sum = RowsParams { reduce: Some(RowReduction::Sum) };
    says(sum.plan(&Caps::core(), &shapes), &["rows is unset", "set, or x given"]);
    says(RowsParams { reduce: None }.plan(&Caps::core(), &shapes), &["x is unset", "set"]);
    let wide = Layout::heads_first(DType::F32, [1, 1, 4, 70_000]);
    let shapes = Shapes::new([("x", wide), ("index", Layout::heads_first(DType::U32, [1, 1, 1, 3]))]);
    says(
        RowsParams { reduce: None }.plan(&Caps::core(), &shapes),
        &["x.shape[3] (width) is 70000", "within 1..=65536"],
    );
}
