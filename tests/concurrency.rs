//! Threads that share a device, a kernel and what was prepared; devices at work side by side; handles that go before others.

mod common;

use common::{bits, gpu, options, random};
use pollster::block_on;
use std::thread::scope;
use wgpu_attention::plan::{AttentionParams, Shapes};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Gpu, Layout, LinearAttention, LinearInputs,
    LinearParams, Prepared, Tensor,
};

const THREADS: u64 = 6;

fn input(gpu: &Gpu, seed: u64, rows: usize) -> Tensor {
    let shape = [1, 2, rows, 16];
    block_on(Tensor::upload(gpu, shape, DType::F32, &random(seed, 32 * rows))).unwrap()
}

fn forward(attention: &FlashAttention, x: &Tensor) -> Vec<u32> {
    bits(&block_on(async { attention.forward(x, x, x).await?.read().await }).unwrap())
}

/// Every thread has lengths of its own, more in all than are kept.
#[test]
fn threads_share_a_kernel() {
    let gpu = gpu();
    let attention = FlashAttention::new(gpu, FlashParams::default()).unwrap();
    let lengths = |seed: u64| (0..8).map(move |i| 1 + 8 * seed as usize + i);
    let alone: Vec<Vec<Vec<u32>>> = (0..THREADS)
        .map(|seed| lengths(seed).map(|rows| forward(&attention, &input(gpu, seed, rows))).collect())
        .collect();
    scope(|scope| {
        for (seed, expected) in (0..THREADS).zip(&alone) {
            let attention = &attention;
            scope.spawn(move || {
                for _ in 0..4 {
                    for (rows, expected) in lengths(seed).zip(expected) {
                        assert_eq!(forward(attention, &input(gpu, seed, rows)), *expected);
                    }
                }
            });
        }
    });
}

fn outputs(gpu: &Gpu, rows: usize) -> [Tensor; 2] {
    [16, 1].map(|width| block_on(Tensor::empty(gpu, Layout::heads_first(DType::F32, [1, 2, rows, width]))).unwrap())
}

fn submit(prepared: &Prepared, x: &Tensor, [out, lse]: &[Tensor; 2]) {
    block_on(prepared.submit((&AttentionInputs::new(x, x, x), &AttentionOutputs::new(out, lse)))).unwrap();
}

/// Keys in parts and gradients have buffers of their own between their kernels: calls must not mix there.
#[test]
fn threads_share_what_was_prepared() {
    let gpu = gpu();
    let attention = FlashAttention::new(gpu, FlashParams::default()).unwrap();
    let [x, other] = [input(gpu, 0, 200), input(gpu, 1, 200)];
    let gradient = |of: &Tensor| {
        let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(of, of, of))).unwrap();
        bits(&block_on(async { attention.backward(&saved, &x).await?.dq.read().await }).unwrap())
    };
    let [of_x, of_other] = [gradient(&x), gradient(&other)];
    let [out, lse] = &outputs(gpu, 200);
    let shapes = Shapes::of((&AttentionInputs::new(&x, &x, &x), &AttentionOutputs::new(out, lse)));
    let prepared = block_on(attention.prepare(&shapes)).unwrap();
    let alone: Vec<Vec<u32>> = (0..THREADS).map(|seed| forward(&attention, &input(gpu, seed, 200))).collect();
    scope(|scope| {
        for (seed, expected) in (0..THREADS).zip(&alone) {
            let prepared = &prepared;
            scope.spawn(move || {
                let (x, to) = (input(gpu, seed, 200), outputs(gpu, 200));
                for _ in 0..5 {
                    submit(prepared, &x, &to);
                    assert_eq!(bits(&block_on(to[0].read()).unwrap()), *expected);
                }
            });
        }
        for (of, expected) in [(&x, &of_x), (&other, &of_other)] {
            let gradient = &gradient;
            scope.spawn(move || (0..5).for_each(|_| assert_eq!(gradient(of), *expected)));
        }
    });
}

/// Two devices of one adapter, and kernels of two kinds.
#[test]
fn devices_work_side_by_side() {
    let alone = forward(&FlashAttention::new(gpu(), FlashParams::default()).unwrap(), &input(gpu(), 3, 90));
    let linear = |gpu: &Gpu| {
        let x = input(gpu, 4, 90);
        let attention = LinearAttention::new(gpu, LinearParams::default()).unwrap();
        bits(&block_on(async { attention.forward(&LinearInputs::new(&x, &x, &x)).await?.read().await }).unwrap())
    };
    let of_linear = linear(gpu());
    scope(|scope| {
        for _ in 0..2 {
            let (alone, of_linear) = (&alone, &of_linear);
            scope.spawn(move || {
                let gpu = block_on(Gpu::request_with(&options())).unwrap();
                for _ in 0..3 {
                    let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
                    assert_eq!(forward(&attention, &input(&gpu, 3, 90)), *alone);
                    assert_eq!(linear(&gpu), *of_linear);
                }
            });
        }
    });
}

/// A result outlives the kernel, its inputs and every other handle of its device; work goes on for futures that are dropped.
#[test]
fn handles_go_in_any_order() {
    let expected = forward(&FlashAttention::new(gpu(), FlashParams::default()).unwrap(), &input(gpu(), 5, 70));
    let out = {
        let gpu = block_on(Gpu::request_with(&options())).unwrap();
        let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
        let x = input(&gpu, 5, 70);
        // Never polled, or not to its end.
        drop(attention.forward(&x, &x, &x));
        block_on(async {
            let mut begun = Box::pin(attention.forward(&x, &x, &x));
            let _ = futures::poll!(begun.as_mut());
        });
        block_on(attention.forward(&x, &x, &x)).unwrap()
    };
    assert_eq!(bits(&block_on(out.read()).unwrap()), expected);
    let params = FlashParams::default();
    let shapes = Shapes::of([("q", &out), ("k", &out), ("v", &out)]);
    assert!(params.plan(out.gpu().caps(), &shapes).is_ok());
}
