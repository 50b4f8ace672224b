//! Neighborhood attention against its float64 reference, and both against an independent implementation.

mod common;

use common::{bits, gpu, heads_first, named, random, read, run_all, says, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use serde::Deserialize;
use wgpu_attention::catalogue::{
    Tolerance, neighborhood_backward_cases, neighborhood_cases, random_neighborhood_backward_cases,
    random_neighborhood_cases,
};
use wgpu_attention::reference::{At, FlashProblem, Neighborhoods, flash, flash_backward};
use wgpu_attention::{
    AttentionInputs, Causal, DType, FlashAttention, FlashParams, NeighborhoodAttention, NeighborhoodAxis,
    NeighborhoodParams, Result, Seqlens, Tensor,
};

#[test]
fn catalogue() {
    run_all(&neighborhood_cases());
}

#[test]
fn random_cases() {
    run_all(&random_neighborhood_cases(12, 1));
}

#[test]
fn gradients_of_the_catalogue() {
    run_all(&neighborhood_backward_cases());
}

#[test]
fn gradients_of_random_cases() {
    run_all(&random_neighborhood_backward_cases(6, 2));
}

/// A case of tests/data/neighborhood.json: expected values of an independent implementation.
#[derive(Deserialize)]
#[allow(non_snake_case)]
struct Golden {
    name: String,
    space: Vec<usize>,
    k: Vec<usize>,
    s: Vec<usize>,
    d: Vec<usize>,
    c: Vec<bool>,
    B: usize,
    Hq: usize,
    Hkv: usize,
    D: usize,
    Dv: usize,
    add: usize,
    scale: f32,
}

#[derive(Deserialize)]
struct GoldenCases {
    cases: Vec<Golden>,
}

impl Golden {
    fn axes(&self) -> Vec<NeighborhoodAxis> {
        let axis = |i: usize| NeighborhoodAxis {
            length: self.space[i],
            window: self.k[i],
            stride: self.s[i],
            dilation: self.d[i],
            causal: self.c[i],
        };
        (0..self.space.len()).map(axis).collect()
    }
}

#[test]
fn an_independent_implementation_agrees() {
    let cases = std::fs::read_to_string("tests/data/neighborhood.json").expect("the repository has the file");
    let GoldenCases { cases } = serde_json::from_str(&cases).expect("cases");
    let bytes = std::fs::read("tests/data/neighborhood.safetensors").expect("the repository has the file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut worst = 0.0f64;
    for case in &cases {
        let n: usize = case.space.iter().product();
        let values = |name: &str, shape: [usize; 4]| -> Vec<f32> {
            let tensor = file.tensor(&format!("{}/{name}", case.name)).expect("the tensor");
            heads_first(&bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()), shape)
        };
        let (of_q, of_k, of_v) =
            ([case.B, case.Hq, n, case.D], [case.B, case.Hkv, n, case.D], [case.B, case.Hkv, n, case.Dv]);
        let of_out = [case.B, case.Hq, n, case.Dv];
        let [of_ak, of_av] = [case.D, case.Dv].map(|width| [case.B, case.Hkv, case.add, width]);
        let (q, k, v) = (values("q", of_q), values("k", of_k), values("v", of_v));
        let dout = values("dout", of_out);
        let added = |name: &str, shape| if case.add > 0 { values(name, shape) } else { vec![] };
        let (ak, av) = (added("ak", of_ak), added("av", of_av));

        let spaces = Neighborhoods::new(&case.axes());
        let mask_mod = |at: At| spaces.sees(at.query, at.key);
        let known = FlashParams { scale: Some(case.scale), ..FlashParams::default() };
        let problem = FlashProblem {
            mask_mod: Some(&mask_mod),
            additional_k: &ak,
            additional_v: &av,
            ..FlashProblem::new([&q, &k, &v], [of_q, of_k, of_v])
        };
        let reference = flash(&known, &problem);
        let out: Vec<f32> = reference.out.iter().map(|&x| x as f32).collect();
        let reference_gradients = flash_backward(&known, &problem, &out, &dout, None, None);

        let params = NeighborhoodParams { axes: case.axes(), scale: Some(case.scale), ..Default::default() };
        let attention = NeighborhoodAttention::new(gpu(), params).unwrap();
        let [q, k, v, dout] = [(of_q, &q), (of_k, &k), (of_v, &v), (of_out, &dout)].map(|(s, x)| tensor(s, x));
        let added = |shape, values: &[f32]| (case.add > 0).then(|| tensor(shape, values));
        let (ak, av) = (added(of_ak, &ak), added(of_av, &av));
        let inputs = AttentionInputs {
            additional_k: ak.as_ref(),
            additional_v: av.as_ref(),
            ..AttentionInputs::new(&q, &k, &v)
        };
        let (out, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
        let g = block_on(attention.backward(&saved, &dout)).unwrap();
        let mut compare = |name: &str, shape: [usize; 4], unit: f64, by_gpu: &Tensor, by_reference: &[f64]| {
            let golden: Vec<f64> = values(name, shape).into_iter().map(f64::from).collect();
            let tolerance = Tolerance { dtype: DType::F32, unit, magnitude: reference.magnitude };
            let found = tolerance.compare(&read(by_gpu), &golden);
            assert!(found.passed(), "{} {name}: {found:?}", case.name);
            worst = worst.max(found.over_tolerance);
            let rounded: Vec<f32> = by_reference.iter().map(|&x| x as f32).collect();
            let exact = Tolerance { unit: 1e-6, ..tolerance }.compare(&rounded, &golden);
            assert!(exact.passed(), "{} {name} of the reference: {exact:?}", case.name);
        };
        let of_lse = [case.B, case.Hq, n, 1];
        compare("out", of_out, 2e-5, &out, &reference.out);
        compare("lse", of_lse, 2e-5, named(&saved, "lse"), &reference.lse);
        compare("dq", of_q, 5e-5, &g.dq, &reference_gradients.dq);
        compare("dk", of_k, 5e-5, &g.dk, &reference_gradients.dk);
        compare("dv", of_v, 5e-5, &g.dv, &reference_gradients.dv);
        if let (Some(dak), Some(dav)) = (&g.d_additional_k, &g.d_additional_v) {
            compare("dak", of_ak, 5e-5, dak, &reference_gradients.d_additional_k);
            compare("dav", of_av, 5e-5, dav, &reference_gradients.d_additional_v);
        }
    }
    assert!(cases.len() >= 23);
    eprintln!("{} cases, worst error {worst:.3} of the tolerance", cases.len());
}

fn axes(numbers: &[(usize, usize)]) -> Vec<NeighborhoodAxis> {
    numbers.iter().map(|&(length, window)| NeighborhoodAxis::new(length, window)).collect()
}

fn forward(axes: Vec<NeighborhoodAxis>, x: &Tensor) -> Vec<f32> {
    let params = NeighborhoodParams { axes, ..Default::default() };
    read(&block_on(NeighborhoodAttention::new(gpu(), params).unwrap().forward(x, x, x)).unwrap())
}

#[test]
fn a_window_over_the_whole_space_is_self_attention() {
    let x = tensor([1, 2, 90, 16], &random(200, 2 * 90 * 16));
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let dense =
        read(&block_on(FlashAttention::new(gpu(), FlashParams::default()).unwrap().forward(&x, &x, &x)).unwrap());
    let strided = vec![NeighborhoodAxis { stride: 4, ..NeighborhoodAxis::new(9, 9) }, NeighborhoodAxis::new(10, 10)];
    assert!(close(&forward(strided, &x), &dense));
    let params = FlashParams { causal: Some(Causal::TopLeft), ..FlashParams::default() };
    let causal = read(&block_on(FlashAttention::new(gpu(), params).unwrap().forward(&x, &x, &x)).unwrap());
    assert!(close(&forward(vec![NeighborhoodAxis { causal: true, ..NeighborhoodAxis::new(90, 90) }], &x), &causal));
}

#[test]
fn nan_stays_within_the_windows_that_see_it_and_the_bits_do_not_change() {
    let (height, width, window, d) = (11, 13, 5, 8);
    let mut values = random(201, height * width * d);
    let clean = forward(axes(&[(height, window), (width, window)]), &tensor([1, 1, height * width, d], &values));
    let at = 4 * width + 6;
    values[at * d] = f32::NAN;
    let x = tensor([1, 1, height * width, d], &values);
    let out = forward(axes(&[(height, window), (width, window)]), &x);
    let spaces = Neighborhoods::new(&axes(&[(height, window), (width, window)]));
    for query in 0..height * width {
        let row = query * d..(query + 1) * d;
        match query == at || spaces.sees(query, at) {
            true => assert!(out[row].iter().any(|x| x.is_nan()), "query {query} sees a NaN"),
            false => assert_eq!(bits(&out[row.clone()]), bits(&clean[row]), "query {query} sees no NaN"),
        }
    }
    for _ in 0..20 {
        assert_eq!(bits(&forward(axes(&[(height, window), (width, window)]), &x)), bits(&out));
    }
}

#[test]
fn bad_input() {
    let new = |axes: Vec<NeighborhoodAxis>| -> Result<NeighborhoodAttention> {
        NeighborhoodAttention::new(gpu(), NeighborhoodParams { axes, ..Default::default() })
    };
    let axis = NeighborhoodAxis::new(12, 4);
    says(new(vec![]), &["axes.len()", "0", "1..=3"]);
    says(new(vec![axis; 4]), &["axes.len()", "4", "1..=3"]);
    says(new(vec![axis, NeighborhoodAxis::new(12, 1)]), &["axes[1].window", "is 1", "2..=12"]);
    says(
        new(vec![NeighborhoodAxis { dilation: 4, ..axis }]),
        &["axes[0].window", "is 4", "2..=3", "dilation (4)", "(12)"],
    );
    says(new(vec![NeighborhoodAxis { dilation: 0, ..axis }]), &["axes[0].dilation", "0", "at least 1"]);
    says(new(vec![NeighborhoodAxis { stride: 5, ..axis }]), &["axes[0].stride", "5", "1..=4, the window"]);
    says(new(vec![NeighborhoodAxis { stride: 0, ..axis }]), &["axes[0].stride", "0", "1..=4"]);
    says(new(vec![axis, NeighborhoodAxis::new(1, 1)]), &["axes[1].length", "1", "2..="]);
    says(new(vec![NeighborhoodAxis::new(usize::MAX, 2)]), &["axes[0].length", "2..=1073741824"]);
    let attention = new(vec![axis, NeighborhoodAxis::new(3, 3)]).expect("a whole axis is a window");
    let x = tensor([1, 1, 36, 8], &[0.5; 288]);
    read(&block_on(attention.forward(&x, &x, &x)).expect("36 tokens"));
    let y = tensor([1, 1, 35, 8], &[0.5; 280]);
    says(block_on(attention.forward(&y, &y, &y)), &["q.shape[2]", "35", "36", "[12, 3]"]);
    says(block_on(attention.forward(&x, &y, &y)), &["k.shape[2]", "35", "36"]);
    let run = |inputs: AttentionInputs| block_on(attention.forward_with_lse(&inputs)).map(|_| ());
    let plain = AttentionInputs::new(&x, &x, &x);
    says(run(AttentionInputs { seqlens_k: Some(Seqlens::Host(&[3])), ..plain }), &["seqlens_k", "set", "unset"]);
    let pairs = tensor([1, 1, 36, 36], &[0.0; 36 * 36]);
    says(run(AttentionInputs { bias: Some(&pairs), ..plain }), &["bias", "set", "unset"]);
    says(run(AttentionInputs { additional_k: Some(&x), ..plain }), &["additional_v", "unset", "additional_k"]);
    let packed = AttentionInputs {
        cu_seqlens_q: Some(Seqlens::Host(&[0, 36])),
        cu_seqlens_k: Some(Seqlens::Host(&[0, 36])),
        additional_k: Some(&x),
        additional_v: Some(&x),
        ..plain
    };
    let dense = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    says(block_on(dense.forward_with_lse(&packed)), &["additional_k", "set", "unset with packed sequences"]);
    let wide = tensor([1, 1, 36, 9], &[0.5; 36 * 9]);
    let inputs = AttentionInputs { additional_k: Some(&x), additional_v: Some(&wide), ..plain };
    says(run(inputs), &["additional_v.shape", "[1, 1, 36, 9]", "[1, 1, 36, 8]"]);
}
