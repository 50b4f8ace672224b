//! In a caller's own program: borrowed devices, any buffers, any encoder, work cut to the device's limits.

mod common;

use common::{BOTTOM_RIGHT, bits, gpu, random, read, tensor};
use pollster::block_on;
use wgpu_attention::catalogue::{Tolerance, normal};
use wgpu_attention::gate::{SeerGate, SeerGateInputs, SeerGateParams, Selector};
use wgpu_attention::plan::Shapes;
use wgpu_attention::reference::{FlashProblem, flash};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, BlockGrid, BlockMask, BlockSparseAttention, BlockSparseParams, DType,
    FlashAttention, FlashParams, Gpu, Layout, Tensor,
};

/// A device of the same adapter with other limits, borrowed as from a program that made it.
fn device(change: impl FnOnce(&mut wgpu::Limits)) -> Gpu {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).expect("a GPU driver");
    let mut required_limits = wgpu::Limits::default();
    change(&mut required_limits);
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    let (device, queue) = block_on(adapter.request_device(&descriptor)).expect("a device with these limits");
    Gpu::from_device(&device, &queue)
}

#[test]
fn work_is_cut_to_every_device_limit_and_comes_out_the_same() {
    let (b, h, nq, nk, d) = (3, 4, 200, 90, 32);
    let values = [random(40, b * h * nq * d), random(41, b * 2 * nk * d), random(42, b * 2 * nk * d)];
    let run = |gpu: &Gpu| {
        let up = |shape, i: usize| block_on(Tensor::upload(gpu, shape, DType::F32, &values[i])).unwrap();
        let [q, k, v] = [up([b, h, nq, d], 0), up([b, 2, nk, d], 1), up([b, 2, nk, d], 2)];
        let attention = FlashAttention::new(gpu, BOTTOM_RIGHT).unwrap();
        let [ql, kl, vl] = [&q, &k, &v].map(|t| t.layout().clone());
        let slices = attention.plan(&Shapes::new([("q", ql), ("k", kl), ("v", vl)])).unwrap().slices.len();
        let (out, lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).unwrap();
        (slices, block_on(out.read()).unwrap(), block_on(lse.read()).unwrap())
    };
    let whole = run(&device(|_| {}));
    assert_eq!(whole.0, 1);
    let problem =
        FlashProblem::new([&values[0], &values[1], &values[2]], [[b, h, nq, d], [b, 2, nk, d], [b, 2, nk, d]]);
    let expected = flash(&BOTTOM_RIGHT, &problem);
    let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: expected.magnitude };
    assert!(tolerance.compare(&whole.1, &expected.out).passed());
    for (slices, gpu) in [
        (3, device(|l| l.max_storage_buffer_binding_size = (h * nq * d * 4) as u64)),
        (12, device(|l| l.max_storage_buffer_binding_size = (nq * d * 4) as u64)),
        (8, device(|l| l.max_compute_workgroups_per_dimension = 2)),
    ] {
        let cut = run(&gpu);
        assert!(cut.0 >= slices, "{} slices, expected {slices} or more", cut.0);
        assert_eq!((bits(&cut.1), bits(&cut.2)), (bits(&whole.1), bits(&whole.2)));
    }
}

/// Parts of a head's keys in different dispatches.
#[test]
fn parts_of_keys_are_cut_to_device_limits() {
    let run = |gpu: &Gpu| {
        let up = |shape: [usize; 4], seed| {
            block_on(Tensor::upload(gpu, shape, DType::F32, &random(seed, shape.iter().product()))).unwrap()
        };
        let (q, k) = (up([2, 6, 1, 16], 47), up([2, 2, 2500, 16], 48));
        let attention = FlashAttention::new(gpu, BOTTOM_RIGHT).unwrap();
        let inputs = AttentionInputs::new(&q, &k, &k);
        let slices = attention.plan(&Shapes::of(inputs)).unwrap().slices.len();
        let (out, lse) = block_on(attention.forward_with_lse(&inputs)).unwrap();
        (slices, [out, lse].map(|tensor| bits(&block_on(tensor.read()).unwrap())))
    };
    let (slices, whole) = run(&device(|_| {}));
    assert_eq!(slices, 2, "the parts, and the merge");
    // Six parts of two key heads, one and two at a time; a dispatch has one batch entry then.
    for most in [1, 2] {
        let (slices, cut) = run(&device(|l| l.max_compute_workgroups_per_dimension = most));
        assert!(slices > 6 / most as usize, "{slices}");
        assert!(cut == whole, "{most} workgroups along a dimension");
    }
}

/// The same for a gate, its training, and attention of one query over what a gate for decoding chose.
#[test]
fn a_gate_is_cut_to_device_limits_and_chooses_the_same() {
    let (h, n, d, block) = (4, 256, 16, 4);
    let values = [random(43, h * n * d), random(44, 2 * n * d), random(45, h * 3 * d * d), random(46, h * d * d)];
    let run = |gpu: &Gpu| {
        let up = |shape, i: usize| block_on(Tensor::upload(gpu, shape, DType::F32, &values[i])).unwrap();
        let (q, k) = (up([1, h, n, d], 0), up([1, 2, n, d], 1));
        let (wk, wq) = (up([1, h, 3 * d, d], 2), up([1, h, d, d], 3));
        // The table of angles would not fit the smallest binding.
        let (rope_theta, selector) = (None, Selector::TopP(0.6));
        let params = SeerGateParams { block: [block; 2], rope_theta, selector, ..Default::default() };
        let gate = SeerGate::new(gpu, params).unwrap();
        let inputs = SeerGateInputs { wq: Some(&wq), ..SeerGateInputs::new(&q, &k, &wk) };
        let (chosen, logits, scores) = block_on(gate.forward_with_scores(&inputs)).unwrap();
        let saved = block_on(gate.forward_for_training(&inputs)).unwrap();
        let (loss, dlogits) = block_on(gate.loss(&saved, &scores, 10.0, 0)).unwrap();
        let gradients = block_on(gate.backward(&saved, &dlogits)).unwrap();
        let all = [logits, scores, loss, dlogits, gradients.dwq.unwrap(), gradients.dwk];
        let all = all.map(|tensor| bits(&block_on(tensor.read()).unwrap()));
        // One query of all heads.
        let token = block_on(Tensor::upload(gpu, [1, h, 1, d], DType::F32, &values[0][..h * d])).unwrap();
        let grid = BlockGrid { batch: 1, heads: 2, queries: 1, keys: n, block: [1, block] };
        let mask = block_on(BlockMask::random(gpu, grid, 0.5, false, 1)).unwrap();
        let attention = BlockSparseAttention::new(gpu, BlockSparseParams::default()).unwrap();
        let inputs = AttentionInputs { block_mask: Some(&mask), ..AttentionInputs::new(&token, &k, &k) };
        let (out, lse) = block_on(attention.forward_with_lse(&inputs)).unwrap();
        let attended = [out, lse].map(|tensor| bits(&block_on(tensor.read()).unwrap()));
        (block_on(chosen.read()).unwrap(), all, attended)
    };
    let whole = run(&device(|_| {}));
    let rows = n.div_ceil(block);
    for gpu in [
        device(|l| l.max_storage_buffer_binding_size = (rows * rows * 4).max(n * d * 4) as u64),
        device(|l| l.max_compute_workgroups_per_dimension = 2),
    ] {
        assert!(run(&gpu) == whole, "{}", gpu.caps());
    }
}

#[test]
fn slices_recorded_one_by_one_and_two_shapes_in_one_encoder_come_out_right() {
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    let mut results = Vec::new();
    for (seed, n, d) in [(50, 300, 16), (60, 20, 48)] {
        let x = tensor([1, 2, n, d], &random(seed, 2 * n * d));
        let (expected, expected_lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&x, &x, &x))).unwrap();
        let out = block_on(Tensor::empty(gpu(), expected.layout().clone())).unwrap();
        let lse = block_on(Tensor::empty(gpu(), expected_lse.layout().clone())).unwrap();
        let (inputs, outputs) = (AttentionInputs::new(&x, &x, &x), AttentionOutputs::new(&out, &lse));
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        for slice in 0..prepared.slices() {
            prepared.encode_slice(&mut encoder, slice, (&inputs, &outputs)).unwrap();
        }
        results.push((out, expected));
    }
    gpu().queue().submit([encoder.finish()]);
    for (out, expected) in results {
        assert_eq!(bits(&read(&out)), bits(&read(&expected)));
    }
}

#[test]
fn tensors_may_lie_in_one_buffer() {
    let (b, h, n, d) = (2, 3, 70, 16);
    let attention = FlashAttention::new(gpu(), BOTTOM_RIGHT).unwrap();
    for (dtype, d, gap) in [(DType::F32, d, 0), (DType::F16, d, 8), (DType::Bf16, 7, 2), (DType::F32, 7, 3)] {
        let shape = [b, h, n, d];
        let values: Vec<Vec<f32>> = (0..3).map(|i| normal(70 + i, b * h * n * d, 2.0, dtype)).collect();
        let apart: Vec<Tensor> =
            values.iter().map(|v| block_on(Tensor::upload(gpu(), shape, dtype, v)).unwrap()).collect();
        let (expected, expected_lse) =
            block_on(attention.forward_with_lse(&AttentionInputs::new(&apart[0], &apart[1], &apart[2]))).unwrap();
        // q, k and v packed as one projection writes them, [batch, sequence, 3, heads, head_dim]; behind them the outputs.
        let width = d + d % 2;
        let row = 3 * h * width + gap;
        let part = |i: usize| Layout { dtype, shape, strides: [n * row, width, row], offset: i * h * width };
        let end = b * n * row;
        let out = Layout::heads_first(dtype, shape).at(end);
        let lse_start = (end + b * h * n * width).next_multiple_of(2) * dtype.bytes() as usize / 4;
        let lse = Layout::heads_first(DType::F32, [b, h, n, 1]).at(lse_start);
        let elements = (lse_start + b * h * n) * 4 / dtype.bytes() as usize;
        let arena = block_on(Tensor::empty(gpu(), Layout::heads_first(dtype, [1, 1, 1, elements]))).unwrap();
        let view = |layout: Layout| arena.view(layout).unwrap();
        let [q, k, v, out, lse] = [view(part(0)), view(part(1)), view(part(2)), view(out), view(lse)];
        for (tensor, values) in [&q, &k, &v].into_iter().zip(&values) {
            block_on(tensor.write(values)).unwrap();
        }
        let (inputs, outputs) = (AttentionInputs::new(&q, &k, &v), AttentionOutputs::new(&out, &lse));
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        let plan = prepared.plan().to_string();
        assert!(plan.contains("bound as words"), "{plan}");
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, (&inputs, &outputs)).unwrap();
        gpu().queue().submit([encoder.finish()]);
        assert_eq!(bits(&read(&out)), bits(&read(&expected)), "{dtype} {d}");
        assert_eq!(bits(&read(&lse)), bits(&read(&expected_lse)), "{dtype} {d}");
        assert_eq!(read(&q), values[0], "inputs are left alone");
    }
}

#[test]
fn tensors_far_enough_apart_in_one_buffer_keep_wide_bindings() {
    let (b, h, n, d) = (2, 2, 50, 16);
    let attention = FlashAttention::new(gpu(), BOTTOM_RIGHT).unwrap();
    for dtype in [DType::F32, DType::F16] {
        let shape = [b, h, n, d];
        let values: Vec<Vec<f32>> = (0..3).map(|i| normal(100 + i, b * h * n * d, 2.0, dtype)).collect();
        let apart: Vec<Tensor> =
            values.iter().map(|v| block_on(Tensor::upload(gpu(), shape, dtype, v)).unwrap()).collect();
        let expected = block_on(attention.forward(&apart[0], &apart[1], &apart[2])).unwrap();
        let step = (b * h * n * d).next_multiple_of(256);
        let arena = block_on(Tensor::empty(gpu(), Layout::heads_first(dtype, [1, 1, 6, step]))).unwrap();
        let view = |i: usize| arena.view(Layout::heads_first(dtype, shape).at(i * step)).unwrap();
        let [q, k, v, out] = [0, 1, 2, 3].map(view);
        let lse_at = 4 * step * dtype.bytes() as usize / 4;
        let lse = arena.view(Layout::heads_first(DType::F32, [b, h, n, 1]).at(lse_at)).unwrap();
        for (tensor, values) in [&q, &k, &v].into_iter().zip(&values) {
            block_on(tensor.write(values)).unwrap();
        }
        let (inputs, outputs) = (AttentionInputs::new(&q, &k, &v), AttentionOutputs::new(&out, &lse));
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        let plan = prepared.plan().to_string();
        assert!(!plan.contains("bound as words"), "{plan}");
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, (&inputs, &outputs)).unwrap();
        gpu().queue().submit([encoder.finish()]);
        assert_eq!(bits(&read(&out)), bits(&read(&expected)), "{dtype}");
    }
}

#[test]
fn a_prepared_kernel_takes_other_buffers_and_offsets_that_differ_by_whole_alignments() {
    let (n, d) = (40, 16);
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let x = tensor([1, 1, n, d], &random(80, n * d));
    let (expected, lse) = block_on(attention.forward_with_lse(&AttentionInputs::new(&x, &x, &x))).unwrap();
    let shapes = Shapes::of((AttentionInputs::new(&x, &x, &x), AttentionOutputs::new(&expected, &lse)));
    let prepared = block_on(attention.prepare(&shapes)).unwrap();
    let step = gpu().caps().storage_alignment.max(16) as usize / 4;
    let arena = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::F32, [1, 1, 4, n * d + step]))).unwrap();
    for shift in [0, step, 3 * step] {
        let moved = arena.view(x.layout().clone().at(shift)).unwrap();
        block_on(moved.write(&read(&x))).unwrap();
        let out = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::F32, [1, 1, 2, n * d]))).unwrap();
        let out = out.view(expected.layout().clone().at(step)).unwrap();
        let (inputs, outputs) = (AttentionInputs::new(&moved, &moved, &moved), AttentionOutputs::new(&out, &lse));
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        prepared.encode_in(&mut pass, (&inputs, &outputs)).unwrap();
        drop(pass);
        gpu().queue().submit([encoder.finish()]);
        assert_eq!(bits(&read(&out)), bits(&read(&expected)), "shift {shift}");
    }
}

#[test]
fn masks_come_out_the_same_without_room_for_a_map_of_tiles() {
    let (b, h, n, d) = (2, 2, 140, 16);
    let values = random(110, b * h * n * d);
    let seen: Vec<f32> = (0..n * n).map(|i| f32::from(i % n / 30 == i / n / 30)).collect();
    let run = |gpu: &Gpu, says: &str| {
        let x = block_on(Tensor::upload(gpu, [b, h, n, d], DType::F32, &values)).unwrap();
        let mask = block_on(Tensor::upload(gpu, [1, 1, n, n], DType::U8, &seen)).unwrap();
        let mask = mask.view(mask.layout().clone().expand([b, h, n, n]).unwrap()).unwrap();
        let attention = FlashAttention::new(gpu, BOTTOM_RIGHT).unwrap();
        let inputs = AttentionInputs { mask: Some(&mask), ..AttentionInputs::new(&x, &x, &x) };
        let plan = attention.plan(&Shapes::of(inputs)).unwrap().to_string();
        assert!(plan.contains(says), "{plan}");
        bits(&block_on(block_on(attention.forward_with_lse(&inputs)).unwrap().0.read()).unwrap())
    };
    let mapped = run(&device(|_| {}), "tiles that they hide are skipped");
    let unmapped = run(&device(|l| l.max_storage_buffers_per_shader_stage = 6), "masks are asked in every tile");
    assert_eq!(mapped, unmapped);
}
