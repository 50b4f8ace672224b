//! Packed sequences: each as if it were alone, and offsets that are wrong, on the host and on the GPU.

mod common;

use common::{BOTTOM_RIGHT, bits, gpu, random, read, says, tensor};
use pollster::block_on;
use wgpu_attention::{AttentionInputs, AttentionOutputs, DType, FlashAttention, Layout, Seqlens, Tensor};

fn attention() -> FlashAttention {
    FlashAttention::new(gpu(), BOTTOM_RIGHT).expect("valid params")
}

/// The part of a [1, heads, rows, dim] tensor from row `first` on.
fn rows(all: &Tensor, first: usize, count: usize) -> Tensor {
    let Layout { dtype, shape: [_, heads, _, dim], strides, offset } = all.layout().clone();
    all.view(Layout { dtype, shape: [1, heads, count, dim], strides, offset: offset + first * strides[2] }).unwrap()
}

#[test]
fn each_sequence_comes_out_as_if_it_were_alone_and_other_rows_are_left_alone() {
    let (h, n, d) = (2, 300, 16);
    let x = tensor([1, h, n, d], &random(120, h * n * d));
    // Twenty rows at the end belong to no sequence.
    let offsets = [0, 3, 3, 130, 194, 280];
    let on_gpu = block_on(Tensor::upload_u32(gpu(), &offsets.map(|n| n as u32))).unwrap();
    let host = Seqlens::Host(&offsets);
    let device = Seqlens::Gpu(&on_gpu);
    let mut found = vec![];
    for (side, longest) in [(host, None), (device, Some(127)), (device, None)] {
        let inputs = AttentionInputs {
            cu_seqlens_q: Some(side),
            cu_seqlens_k: Some(side),
            max_seqlen_q: longest,
            max_seqlen_k: longest,
            ..AttentionInputs::new(&x, &x, &x)
        };
        let out = tensor([1, h, n, d], &vec![9.0; h * n * d]);
        let lse = tensor([1, h, n, 1], &vec![9.0; h * n]);
        let outputs = AttentionOutputs::new(&out, &lse);
        let prepared = block_on(attention().prepare((&inputs, &outputs))).unwrap();
        block_on(prepared.submit((&inputs, &outputs))).unwrap();
        block_on(prepared.check()).unwrap();
        for pair in offsets.windows(2) {
            let (first, count) = (pair[0], pair[1] - pair[0]);
            let part = rows(&x, first, count);
            let (alone, alone_lse) =
                block_on(attention().forward_with_lse(&AttentionInputs::new(&part, &part, &part))).unwrap();
            assert_eq!(bits(&read(&rows(&out, first, count))), bits(&read(&alone)), "{pair:?}");
            assert_eq!(bits(&read(&rows(&lse, first, count))), bits(&read(&alone_lse)), "{pair:?}");
        }
        assert!(read(&rows(&out, 280, 20)).iter().chain(&read(&rows(&lse, 280, 20))).all(|&x| x == 9.0));
        found.push(bits(&read(&out)));
    }
    assert!(found.iter().all(|other| *other == found[0]));
}

#[test]
fn offsets_on_the_host_that_are_wrong() {
    let x = tensor([1, 1, 10, 4], &[0.5; 40]);
    let run = |q: &[usize], k: &[usize]| {
        let (q, k) = (Some(Seqlens::Host(q)), Some(Seqlens::Host(k)));
        let inputs = AttentionInputs { cu_seqlens_q: q, cu_seqlens_k: k, ..AttentionInputs::new(&x, &x, &x) };
        block_on(attention().forward_with_lse(&inputs))
    };
    read(&run(&[0, 4, 10], &[0, 4, 9]).expect("offsets in order").0);
    says(run(&[], &[0, 10]), &["cu_seqlens_q.len()", "0", "at least 1"]);
    says(run(&[1, 10], &[0, 10]), &["cu_seqlens_q[0]", "1", "it must be 0"]);
    says(run(&[0, 10], &[2, 10]), &["cu_seqlens_k[0]", "2", "it must be 0"]);
    says(run(&[0, 5, 4, 10], &[0, 1, 2, 3]), &["cu_seqlens_q[2]", "4", "at least", "5"]);
    says(run(&[0, 5, 10], &[0, 5, 11]), &["cu_seqlens_k[2]", "11", "at most 10"]);
    says(run(&[0, 5, 10], &[0, 10]), &["cu_seqlens_k: sequences", "1", "2, as in cu_seqlens_q"]);
}

#[test]
fn packed_sequences_with_what_does_not_go_with_them() {
    let x = tensor([1, 1, 10, 4], &[0.5; 40]);
    let two = tensor([2, 1, 10, 4], &[0.5; 80]);
    let offsets = block_on(Tensor::upload_u32(gpu(), &[0, 10])).unwrap();
    let host = Some(Seqlens::Host(&[0, 10]));
    let device = |offsets| Some(Seqlens::Gpu(offsets));
    let run = |inputs: AttentionInputs| block_on(attention().forward_with_lse(&inputs));
    let plain = AttentionInputs::new(&x, &x, &x);
    let both = AttentionInputs { cu_seqlens_q: host, cu_seqlens_k: host, ..plain };
    says(run(AttentionInputs { cu_seqlens_k: None, ..both }), &["cu_seqlens_k", "unset", "as cu_seqlens_q is"]);
    says(run(AttentionInputs { cu_seqlens_q: None, ..both }), &["cu_seqlens_q", "unset", "as cu_seqlens_k is"]);
    says(
        run(AttentionInputs { seqlens_k: Some(Seqlens::Host(&[3])), ..both }),
        &["seqlens_k", "unset with cu_seqlens_q"],
    );
    says(run(AttentionInputs { q: &two, k: &two, v: &two, ..both }), &["q.shape[0] (batch)", "2", "1 with packed"]);
    says(
        run(AttentionInputs { cu_seqlens_q: device(&offsets), ..both }),
        &["cu_seqlens_k", "on the host", "on the GPU"],
    );
    let on_gpu = |q, k| AttentionInputs { cu_seqlens_q: q, cu_seqlens_k: k, ..plain };
    let fits = on_gpu(device(&offsets), device(&offsets));
    read(&run(fits).expect("offsets in order").0);
    says(run(AttentionInputs { max_seqlen_q: Some(11), ..fits }), &["max_seqlen_q", "11", "at most 10"]);
    says(run(AttentionInputs { max_seqlen_k: Some(9), ..both }), &["max_seqlen_k", "9", "unset", "on the GPU"]);
    says(run(AttentionInputs { max_seqlen_q: Some(9), ..plain }), &["max_seqlen_q", "9", "unset", "on the GPU"]);
    says(run(on_gpu(device(&x), device(&offsets))), &["cu_seqlens_q.dtype", "f32", "u32"]);
    let column = offsets.view(Layout::heads_first(DType::U32, [1, 1, 2, 1])).unwrap();
    says(run(on_gpu(device(&offsets), device(&column))), &["cu_seqlens_k.shape", "[1, 1, 2, 1]", "sequences + 1"]);
    let mask = block_on(Tensor::upload(gpu(), [1, 1, 10, 9], DType::U8, &[1.0; 90])).unwrap();
    says(run(AttentionInputs { mask: Some(&mask), ..both }), &["mask.shape", "[1, 1, 10, 9]", "[1, 1, 10, 10]"]);
    let prepared = block_on(attention().prepare(both)).unwrap();
    let (out, lse) = (tensor([1, 1, 10, 4], &[0.0; 40]), tensor([1, 1, 10, 1], &[0.0; 10]));
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    let other = AttentionInputs { cu_seqlens_k: Some(Seqlens::Host(&[0, 9])), ..both };
    let encoded = prepared.encode(&mut encoder, (&other, AttentionOutputs::new(&out, &lse)));
    says(encoded, &["cu_seqlens_k", "[0, 9]", "as prepared"]);
}

#[test]
fn offsets_on_the_gpu_that_are_wrong_are_clamped_and_told_when_a_result_is_read() {
    let n = 200;
    let x = tensor([1, 1, n, 4], &random(130, n * 4));
    const LONGEST: Option<usize> = Some(150);
    let good = [0u32, 90, 200];
    let attention = attention();
    fn stated<'a>(inputs: AttentionInputs<'a>, q: &'a Tensor, k: &'a Tensor) -> AttentionInputs<'a> {
        let (cu_seqlens_q, cu_seqlens_k) = (Some(Seqlens::Gpu(q)), Some(Seqlens::Gpu(k)));
        AttentionInputs { cu_seqlens_q, cu_seqlens_k, max_seqlen_q: LONGEST, max_seqlen_k: LONGEST, ..inputs }
    }
    let run = |q: &[u32], k: &[u32]| {
        let [q, k] = [q, k].map(|offsets| block_on(Tensor::upload_u32(gpu(), offsets)).unwrap());
        let inputs = stated(AttentionInputs::new(&x, &x, &x), &q, &k);
        block_on(attention.forward_with_lse(&inputs)).expect("what lies on the GPU is not looked at")
    };
    for (bad, words) in [
        ([5, 90, 200], ["[0]", "is 5", "must be 0"]),
        ([0, 90, 60], ["[2]", "is 60", "before it, 90"]),
        ([0, 90, 201], ["[2]", "is 201", "at most 200"]),
        ([0, 40, 200], ["[2]", "is 200", "at most 150 above"]),
        ([0, u32::MAX, 200], ["[1]", "is 4294967295", "at most 200"]),
    ] {
        for side in ["cu_seqlens_q", "cu_seqlens_k"] {
            let (out, lse) = if side == "cu_seqlens_q" { run(&bad, &good) } else { run(&good, &bad) };
            // A later good result does not wash this one clean.
            let (fine, _) = run(&good, &good);
            for result in [&out, &lse] {
                says(block_on(result.read()), &[&format!("{side}{}", words[0]), words[1], words[2]]);
            }
            assert!(read(&fine).iter().all(|x| x.is_finite()));
        }
    }
    // Gradients say so too.
    let [q, k] = [[0, 90, 200], [0, 90, 60]].map(|offsets| block_on(Tensor::upload_u32(gpu(), &offsets)).unwrap());
    let inputs = stated(AttentionInputs::new(&x, &x, &x), &q, &k);
    let (_, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
    let gradients = block_on(attention.backward(&saved, &x)).expect("what lies on the GPU is not looked at");
    for gradient in [gradients.dq, gradients.dk, gradients.dv] {
        says(block_on(gradient.read()), &["cu_seqlens_k[2]", "is 60", "before it, 90"]);
    }
    // Many sequences, more than the schedule's kernel takes at a time; one of them is out of order.
    let mut many: Vec<u32> = (0..=n as u32).flat_map(|i| [i, i]).collect();
    many[0] = 0;
    let (out, _) = run(&many, &many);
    assert_eq!(bits(&read(&out)), bits(&read(&x)), "a sequence of one token gives its value");
    many[301] = 149;
    says(block_on(run(&many, &many).0.read()), &["cu_seqlens_q[301]", "149", "before it, 150"]);
}
