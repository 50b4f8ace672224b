//! Merging partial results: against the float64 reference, against the whole in one call, and bad input.

mod common;

use common::{BOTTOM_RIGHT, gpu, random, read, run_all, says, tensor, tokens};
use pollster::block_on;
use wgpu_attention::catalogue::{Tolerance, merge_cases, random_merge_cases};
use wgpu_attention::plan::Shapes;
use wgpu_attention::reference::{FlashProblem, flash};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Layout, Merge, Result, Tensor, Window,
};

#[test]
fn catalogue() {
    run_all(&merge_cases());
}

#[test]
fn random_cases() {
    run_all(&random_merge_cases(20, 1));
}

/// A causal context cut into shards of keys: each shard sees its part of the diagonal by a window.
#[test]
fn shards_become_the_whole() {
    let (h, nq, nk, d) = (2, 50, 190, 16);
    let values = [random(140, h * nq * d), random(141, h * nk * d), random(142, h * nk * d)];
    let q = tensor([1, h, nq, d], &values[0]);
    let mut parts: Vec<(Tensor, Tensor)> = vec![];
    for (start, end) in [(0, 70), (70, 71), (71, 180), (180, 190)] {
        let [k, v] = [&values[1], &values[2]].map(|x| tokens(x, [1, h, nk, d], start..end));
        let window = Window { left: None, right: Some(nk - end) };
        let attention = FlashAttention::new(gpu(), FlashParams { window, ..FlashParams::default() }).unwrap();
        parts.push(block_on(attention.forward_with_lse(&AttentionInputs::new(&q, &k, &v))).unwrap());
    }
    let parts: Vec<AttentionOutputs> = parts.iter().map(|(out, lse)| AttentionOutputs::new(out, lse)).collect();
    let (out, lse) = block_on(Merge::new(gpu()).forward(&parts)).unwrap();
    let problem =
        FlashProblem::new([&values[0], &values[1], &values[2]], [[1, h, nq, d], [1, h, nk, d], [1, h, nk, d]]);
    let expected = flash(&BOTTOM_RIGHT, &problem);
    let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: expected.magnitude };
    assert!(tolerance.compare(&read(&out), &expected.out).passed());
    assert!(tolerance.compare(&read(&lse), &expected.lse).passed());
}

#[test]
fn nan_stays_in_its_row_and_a_part_that_saw_nothing_does_not_matter() {
    let part = |out: &[f32], lse: &[f32]| (tensor([1, 1, 3, 1], out), tensor([1, 1, 3, 1], lse));
    let (nan, nothing) = (f32::NAN, f32::NEG_INFINITY);
    let a = part(&[1.0, nan, nan], &[0.0, 0.0, nothing]);
    let b = part(&[3.0, 3.0, 3.0], &[0.0, 90.0, 0.0]);
    let c = part(&[5.0, 5.0, 5.0], &[nan, nothing, nothing]);
    let merge = |parts: &[&(Tensor, Tensor)]| {
        let parts: Vec<AttentionOutputs> = parts.iter().map(|(out, lse)| AttentionOutputs::new(out, lse)).collect();
        let (out, lse) = block_on(Merge::new(gpu()).forward(&parts)).unwrap();
        (read(&out), read(&lse))
    };
    let (out, lse) = merge(&[&a, &b]);
    assert!(out[0] == 2.0 && out[1].is_nan() && out[2] == 3.0, "{out:?}");
    assert!((lse[0] - 2f32.ln()).abs() < 1e-6 && lse[1] == 90.0 && lse[2] == 0.0, "{lse:?}");
    let (out, lse) = merge(&[&b, &c]);
    assert!(out[0].is_nan() && lse[0].is_nan() && out[1..] == [3.0, 3.0] && lse[1..] == [90.0, 0.0], "{out:?} {lse:?}");
    let empty = part(&[0.0; 3], &[nothing; 3]);
    assert_eq!(merge(&[&empty, &empty, &empty]), (vec![0.0; 3], vec![nothing; 3]));
}

#[test]
fn bad_input() {
    let of = |out: [usize; 4], lse: [usize; 4]| {
        (tensor(out, &vec![0.0; out.iter().product()]), tensor(lse, &vec![0.0; lse.iter().product()]))
    };
    let good = of([1, 2, 3, 4], [1, 2, 3, 1]);
    let run = |parts: &[&(Tensor, Tensor)]| -> Result<Tensor> {
        let parts: Vec<AttentionOutputs> = parts.iter().map(|(out, lse)| AttentionOutputs::new(out, lse)).collect();
        block_on(Merge::new(gpu()).forward(&parts)).map(|(out, _)| out)
    };
    read(&run(&[&good, &good]).unwrap());
    says(run(&[]), &["parts.len()", "0", "at least 1"]);
    says(run(&[&good, &of([1, 2, 3, 5], [1, 2, 3, 1])]), &["parts[1].out.shape", "[1, 2, 3, 5]", "[1, 2, 3, 4]"]);
    says(run(&[&good, &of([1, 2, 3, 4], [1, 2, 4, 1])]), &["parts[1].lse.shape", "[1, 2, 4, 1]", "[1, 2, 3, 1]"]);
    let half = block_on(Tensor::upload(gpu(), [1, 2, 3, 1], DType::F16, &[0.0; 6])).unwrap();
    says(run(&[&(good.0.clone(), half)]), &["parts[0].lse.dtype", "f16", "f32"]);
    // In place: the output is an input.
    let parts = [(); 2].map(|()| AttentionOutputs::new(&good.0, &good.1));
    let fresh = of([1, 2, 3, 4], [1, 2, 3, 1]);
    let outputs = AttentionOutputs::new(&good.0, &fresh.1);
    let shapes = Shapes::of((&parts[..], &outputs));
    let prepared = block_on(Merge::new(gpu()).prepare(&shapes)).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    says(prepared.encode(&mut encoder, (&parts[..], &outputs)), &["out is bytes", "apart from parts[0].out"]);
    let one = (&parts[..1], &outputs);
    says(prepared.encode(&mut encoder, one), &["parts[1].out is None", "set, as prepared"]);
    let bytes = Layout::heads_first(DType::U8, [1, 2, 3, 4]);
    says(block_on(Merge::new(gpu()).prepare(&shapes.tensor("out", bytes))), &["out.dtype", "u8", "f32, f16 or bf16"]);
}
