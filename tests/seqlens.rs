//! Lengths of padded sequences on the GPU: the same bits as lengths on the host, prepared once for all lengths, wrong ones told.

mod common;

use common::{BOTTOM_RIGHT, bits, gpu, random, read, says, tensor};
use pollster::block_on;
use wgpu_attention::plan::Shapes;
use wgpu_attention::score_reduction::{
    KeyGroups, QueryGroups, Reduction, ScoreReduction, ScoreReductionInputs, ScoreReductionParams,
};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Layout, Result, Seqlens, Tensor,
};

fn attention() -> FlashAttention {
    FlashAttention::new(gpu(), BOTTOM_RIGHT).expect("valid params")
}

fn on_gpu(lengths: &[usize]) -> Tensor {
    let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
    block_on(Tensor::upload_u32(gpu(), &lengths)).expect("a valid tensor")
}

/// Random tokens [batch, heads, rows, width].
fn tokens(shape: [usize; 4], seed: u64) -> Tensor {
    tensor(shape, &random(seed, shape.iter().product()))
}

/// Runs with the lengths on the host, then on the GPU.
fn both<'a, R>(
    inputs: AttentionInputs<'a>,
    (q, k): (Option<&[usize]>, Option<&[usize]>),
    run: impl Fn(&AttentionInputs<'_>) -> R,
) -> [R; 2] {
    let host = AttentionInputs { seqlens_q: q.map(Seqlens::Host), seqlens_k: k.map(Seqlens::Host), ..inputs };
    let [of_q, of_k] = [q, k].map(|lengths| lengths.map(on_gpu));
    let (seqlens_q, seqlens_k) = (of_q.as_ref().map(Seqlens::Gpu), of_k.as_ref().map(Seqlens::Gpu));
    [run(&host), run(&AttentionInputs { seqlens_q, seqlens_k, ..inputs })]
}

#[test]
fn lengths_on_the_gpu_give_the_bits_of_lengths_on_the_host() {
    let (q, k, v) = (tokens([3, 4, 70, 20], 1), tokens([3, 2, 130, 20], 2), tokens([3, 2, 130, 24], 3));
    let dout = tokens([3, 4, 70, 24], 4);
    let (more_k, more_v) = (tokens([3, 2, 9, 20], 5), tokens([3, 2, 9, 24], 6));
    let plain = AttentionInputs::new(&q, &k, &v);
    let additional = AttentionInputs { additional_k: Some(&more_k), additional_v: Some(&more_v), ..plain };
    let (of_q, of_k): (&[usize], &[usize]) = (&[70, 3, 0], &[1, 130, 77]);
    for inputs in [plain, additional] {
        for lengths in [(Some(of_q), Some(of_k)), (None, Some(of_k)), (Some(of_q), None)] {
            let [host, device] = both(inputs, lengths, |inputs| {
                let attention = attention();
                let (out, saved) = block_on(attention.forward_for_training(inputs)).unwrap();
                let gradients = block_on(attention.backward(&saved, &dout)).unwrap();
                let all = [Some(out), Some(gradients.dq), Some(gradients.dk), gradients.d_additional_v];
                all.into_iter().flatten().map(|tensor| bits(&read(&tensor))).collect::<Vec<_>>()
            });
            assert_eq!(host, device, "{lengths:?}");
        }
    }
    // Passes without work look at no lengths.
    let none = tokens([3, 4, 0, 20], 9);
    let inputs = AttentionInputs { q: &none, ..plain };
    let [host, device] = both(inputs, (Some(&[0; 3]), Some(of_k)), |inputs| {
        let (_, saved) = block_on(attention().forward_for_training(inputs)).unwrap();
        let gradients = block_on(attention().backward(&saved, &tokens([3, 4, 0, 24], 10))).unwrap();
        bits(&read(&gradients.dk))
    });
    assert_eq!(host, device);
    // Heads of one query as rows of a tile.
    let one = tokens([3, 4, 1, 20], 7);
    let [host, device] = both(AttentionInputs { q: &one, ..plain }, (Some(&[1, 0, 1]), Some(of_k)), |inputs| {
        bits(&read(&block_on(attention().forward_with_lse(inputs)).unwrap().0))
    });
    assert_eq!(host, device);
    // More batch entries than a uniform table holds.
    let many = tokens([4200, 1, 3, 4], 8);
    let lengths: Vec<usize> = (0..4200).map(|b| b % 4).collect();
    let [host, device] = both(AttentionInputs::new(&many, &many, &many), (Some(&lengths), Some(&lengths)), |inputs| {
        bits(&read(&block_on(attention().forward_with_lse(inputs)).unwrap().0))
    });
    assert_eq!(host, device);
}

#[test]
fn score_reductions_take_lengths_on_the_gpu() {
    let (q, k) = (tokens([2, 2, 40, 16], 11), tokens([2, 2, 90, 16], 12));
    let params = ScoreReductionParams {
        attention: BOTTOM_RIGHT,
        reduction: Reduction::Sum,
        queries: QueryGroups::All,
        keys: KeyGroups::Blocks(1),
        top_k: Some(5),
        ..Default::default()
    };
    let [host, device] = both(AttentionInputs::new(&q, &k, &k), (None, Some(&[90, 41])), |&attention| {
        let (_, lse) = block_on(self::attention().forward_with_lse(&attention)).unwrap();
        let inputs = ScoreReductionInputs { attention, lse: &lse, segments: None };
        let found = block_on(ScoreReduction::new(gpu(), params.clone()).unwrap().forward(&inputs)).unwrap();
        (bits(&read(&found.values)), block_on(found.indices.expect("of a top-k").read_u32()).unwrap())
    });
    assert_eq!(host, device);
    // No keys.
    let (none, of_keys) = (tokens([2, 2, 0, 16], 13), block_on(Tensor::upload_u32(gpu(), &[])).unwrap());
    let of_keys = of_keys.view(Layout::heads_first(DType::U32, [1, 1, 1, 0])).unwrap();
    let params = ScoreReductionParams { keys: KeyGroups::Segments(3), ..params };
    let [host, device] = both(AttentionInputs::new(&q, &none, &none), (None, Some(&[0, 0])), |&attention| {
        let (_, lse) = block_on(self::attention().forward_with_lse(&attention)).unwrap();
        let inputs = ScoreReductionInputs { attention, lse: &lse, segments: Some(&of_keys) };
        let params = ScoreReductionParams { top_k: None, ..params.clone() };
        bits(&read(&block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap().values))
    });
    assert_eq!(host, device);
}

#[test]
fn decoding_is_prepared_once_for_all_lengths() {
    let rows = 40;
    let (q, k, v) = (tokens([2, 4, 1, 16], 21), tokens([2, 2, rows, 16], 22), tokens([2, 2, rows, 16], 23));
    let lengths = on_gpu(&[0, 0]);
    let inputs = AttentionInputs { seqlens_k: Some(Seqlens::Gpu(&lengths)), ..AttentionInputs::new(&q, &k, &v) };
    let (out, lse) = (tensor([2, 4, 1, 16], &[9.0; 128]), tensor([2, 4, 1, 1], &[9.0; 8]));
    let call = (&inputs, AttentionOutputs::new(&out, &lse));
    let prepared = block_on(attention().prepare(&call)).unwrap();
    for length in [1, 2, 17, 40] {
        let both = [length, rows - length];
        gpu().queue().write_buffer(lengths.buffer(), 0, bytemuck::cast_slice(&both.map(|n| n as u32)));
        block_on(prepared.submit(&call)).unwrap();
        block_on(prepared.check()).unwrap();
        let host = AttentionInputs { seqlens_k: Some(Seqlens::Host(&both)), ..inputs };
        let known = block_on(attention().forward_with_lse(&host)).unwrap().0;
        assert_eq!(bits(&read(&out)), bits(&read(&known)), "{both:?}");
    }
}

#[test]
fn lengths_that_are_wrong() {
    let (q, k) = (tokens([2, 1, 8, 4], 31), tokens([2, 1, 9, 4], 32));
    let plain = AttentionInputs::new(&q, &k, &k);
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let run = |inputs: AttentionInputs| -> Result<(Tensor, Tensor)> { block_on(attention.forward_with_lse(&inputs)) };
    let clamped = read(&run(plain).unwrap().0);
    for (i, name, bad, bound) in [
        (0, "seqlens_q", vec![9, 8], "at most 8"),
        (1, "seqlens_k", vec![9, 10], "at most 9"),
        (1, "seqlens_k", vec![9, u32::MAX as usize], "at most 9"),
    ] {
        let lengths = on_gpu(&bad);
        let side = |at: usize| (at == i).then_some(Seqlens::Gpu(&lengths));
        let inputs = AttentionInputs { seqlens_q: side(0), seqlens_k: side(1), ..plain };
        let (out, lse) = run(inputs).expect("what lies on the GPU is not looked at");
        let wrong = bad.iter().position(|&n| n > 8 + i).unwrap();
        let words = [&*format!("{name}[{wrong}] is {}", bad[wrong]), bound];
        says(block_on(out.read()), &words);
        says(block_on(lse.read()), &words);
        let outputs = AttentionOutputs { out: tensor([2, 1, 8, 4], &[0.0; 64]), lse: tensor([2, 1, 8, 1], &[0.0; 16]) };
        let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
        block_on(prepared.submit((&inputs, &outputs))).unwrap();
        says(block_on(prepared.check()), &words);
        assert_eq!(bits(&read(&outputs.out)), bits(&clamped), "clamped to the tensor's rows");
        let (_, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
        let gradients = block_on(attention.backward(&saved, &q)).unwrap();
        for gradient in [gradients.dq, gradients.dk, gradients.dv] {
            says(block_on(gradient.read()), &words);
        }
    }
    let two = on_gpu(&[3, 4]);
    let device = Some(Seqlens::Gpu(&two));
    let host = Some(Seqlens::Host(&[3, 4]));
    says(run(AttentionInputs { seqlens_q: host, seqlens_k: device, ..plain }), &["seqlens_k", "on the GPU", "host"]);
    says(run(AttentionInputs { seqlens_q: device, seqlens_k: host, ..plain }), &["seqlens_k", "on the host", "GPU"]);
    let three = on_gpu(&[3, 4, 5]);
    let short = AttentionInputs { seqlens_k: Some(Seqlens::Gpu(&three)), ..plain };
    says(run(short), &["seqlens_k.shape", "[1, 1, 1, 3]", "[1, 1, 1, 2], one per batch entry"]);
    let floats = tensor([1, 1, 1, 2], &[3.0, 4.0]);
    let floats = AttentionInputs { seqlens_q: Some(Seqlens::Gpu(&floats)), ..plain };
    says(run(floats), &["seqlens_q.dtype", "f32", "u32"]);
    let one = tokens([1, 1, 8, 4], 33);
    let offsets = on_gpu(&[0, 8]);
    let length = on_gpu(&[8]);
    let side = Some(Seqlens::Gpu(&offsets));
    let packed = AttentionInputs {
        cu_seqlens_q: side,
        cu_seqlens_k: side,
        seqlens_k: Some(Seqlens::Gpu(&length)),
        ..AttentionInputs::new(&one, &one, &one)
    };
    says(run(packed), &["seqlens_k", "set", "unset with cu_seqlens_q"]);
    let shapes = Shapes::of(AttentionInputs { seqlens_k: device, ..plain });
    says(attention.plan(&shapes.clone().numbers("seqlens_k", [3, 4])), &["seqlens_k is a tensor and numbers"]);
    let wide = Layout::heads_first(DType::U32, [1, 1, 2, 1]);
    says(attention.plan(&shapes.tensor("seqlens_k", wide)), &["seqlens_k.shape", "[1, 1, 2, 1]"]);
}
