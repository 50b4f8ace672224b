//! Gradients beyond the catalogue: the same bits every time, parts of merged results, few buffers, bad input. (The catalogue
//! itself is in tests/flash.rs.)

mod common;

use common::{BOTTOM_RIGHT, bits, gpu, named, random, read, says, tensor, tokens};
use pollster::block_on;
use wgpu_attention::backward::{AttentionGradients, OutputGradients};
use wgpu_attention::catalogue::Tolerance;
use wgpu_attention::reference::{FlashProblem, flash, flash_backward};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, FlashAttention, FlashParams, Gpu, Hook, Layout, Merge, Tensor, Window,
};

fn bits_of(g: &AttentionGradients) -> Vec<u32> {
    [&g.dq, &g.dk, &g.dv].into_iter().chain(&g.dbias).flat_map(|t| bits(&block_on(t.read()).unwrap())).collect()
}

fn gradients(gpu: &Gpu, inputs: &AttentionInputs, dout: &Tensor) -> AttentionGradients {
    let attention = FlashAttention::new(gpu, BOTTOM_RIGHT).unwrap();
    let (_, saved) = block_on(attention.forward_for_training(inputs)).unwrap();
    block_on(attention.backward(&saved, dout)).unwrap()
}

#[test]
fn gradients_are_the_same_bits_every_time() {
    let (b, h, n, d) = (2, 4, 90, 16);
    let [q, dout] = [1, 4].map(|seed| tensor([b, h, n, d], &random(seed, b * h * n * d)));
    let [k, v] = [2, 3].map(|seed| tensor([b, 2, n, d], &random(seed, b * 2 * n * d)));
    let bias = tensor([1, h, 1, n], &random(5, h * n));
    let bias = bias.view(bias.layout().clone().expand([b, h, n, n]).unwrap()).unwrap();
    let attention = FlashAttention::new(gpu(), BOTTOM_RIGHT).unwrap();
    let inputs = AttentionInputs { bias: Some(&bias), ..AttentionInputs::new(&q, &k, &v) };
    let (_, saved) = block_on(attention.forward_for_training(&inputs)).unwrap();
    let run = || bits_of(&block_on(attention.backward(&saved, &dout)).unwrap());
    let first = run();
    for _ in 0..99 {
        assert!(run() == first);
    }
}

#[test]
fn gradients_do_not_depend_on_the_batch() {
    let (h, n, d) = (2, 90, 16);
    let size = h * n * d;
    let both: Vec<Vec<f32>> = (0..4).map(|seed| random(10 + seed, 2 * size)).collect();
    let of =
        |shape, part: &dyn Fn(&[f32]) -> Vec<f32>| both.iter().map(|x| tensor(shape, &part(x))).collect::<Vec<_>>();
    let together = of([2, h, n, d], &|x| x.to_vec());
    let alone = of([1, h, n, d], &|x| x[size..].to_vec());
    let run = |t: &[Tensor]| gradients(gpu(), &AttentionInputs::new(&t[0], &t[1], &t[2]), &t[3]);
    let (together, alone) = (run(&together), run(&alone));
    for (together, alone) in [(together.dq, alone.dq), (together.dk, alone.dk), (together.dv, alone.dv)] {
        assert_eq!(bits(&read(&together)[size..]), bits(&read(&alone)));
    }
}

#[test]
fn shares_of_a_merged_result_add_up_to_the_gradients_of_the_whole() {
    let (h, nq, nk, d) = (2, 40, 130, 16);
    let values = [random(20, h * nq * d), random(21, h * nk * d), random(22, h * nk * d), random(23, h * nq * d)];
    let (q, dout) = (tensor([1, h, nq, d], &values[0]), tensor([1, h, nq, d], &values[3]));
    let mut shards = vec![];
    for (start, end) in [(0, 50), (50, 130)] {
        let [k, v] = [&values[1], &values[2]].map(|x| tokens(x, [1, h, nk, d], start..end));
        let window = Window { left: None, right: Some(nk - end) };
        let attention = FlashAttention::new(gpu(), FlashParams { window, ..FlashParams::default() }).unwrap();
        let (_, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&q, &k, &v))).unwrap();
        shards.push((attention, saved));
    }
    let parts: Vec<AttentionOutputs> =
        shards.iter().map(|(_, saved)| AttentionOutputs::new(named(saved, "out"), named(saved, "lse"))).collect();
    let (out, lse) = block_on(Merge::new(gpu()).forward(&parts)).unwrap();
    let shares: Vec<AttentionGradients> = shards
        .iter()
        .map(|(attention, saved)| block_on(attention.backward(&saved.clone().merged(&out, &lse), &dout)).unwrap())
        .collect();
    let problem =
        FlashProblem::new([&values[0], &values[1], &values[2]], [[1, h, nq, d], [1, h, nk, d], [1, h, nk, d]]);
    let forward = flash(&BOTTOM_RIGHT, &problem);
    let exact: Vec<f32> = forward.out.iter().map(|&x| x as f32).collect();
    let expected = flash_backward(&BOTTOM_RIGHT, &problem, &exact, &values[3], None, None);
    let tolerance = Tolerance { dtype: DType::F32, unit: 5e-5, magnitude: forward.magnitude };
    let dq: Vec<f32> = read(&shares[0].dq).iter().zip(read(&shares[1].dq)).map(|(a, b)| a + b).collect();
    assert!(tolerance.compare(&dq, &expected.dq).passed());
    // The same, handed on from one part to the next.
    let (attention, saved) = &shards[1];
    let from = OutputGradients { dq_so_far: Some(&shares[0].dq), ..OutputGradients::new(&dout) };
    let whole = block_on(attention.backward_with_lse(&saved.clone().merged(&out, &lse), &from)).unwrap();
    assert!(tolerance.compare(&read(&whole.dq), &expected.dq).passed());
    assert_eq!(bits(&read(&whole.dk)), bits(&read(&shares[1].dk)));
    for (which, expected) in [&expected.dk, &expected.dv].into_iter().enumerate() {
        let parts: Vec<Vec<f32>> = shares.iter().map(|g| read([&g.dk, &g.dv][which])).collect();
        let heads = (0..h)
            .flat_map(|head| [(50, &parts[0]), (80, &parts[1])].map(|(n, x)| x[head * n * d..][..n * d].to_vec()));
        assert!(tolerance.compare(&heads.flatten().collect::<Vec<f32>>(), expected).passed());
    }
}

#[test]
fn few_storage_buffers_give_the_same_bits() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).expect("a GPU driver");
    let mut found = vec![];
    for buffers in [8, 6] {
        let limits = wgpu::Limits { max_storage_buffers_per_shader_stage: buffers, ..wgpu::Limits::default() };
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = block_on(adapter.request_device(&descriptor)).expect("a device with these limits");
        let gpu = Gpu::from_device(&device, &queue);
        let (h, n, d) = (2, 70, 24);
        let up = |seed| block_on(Tensor::upload(&gpu, [1, h, n, d], DType::F32, &random(seed, h * n * d))).unwrap();
        let [q, k, v, dout] = [30, 31, 32, 33].map(up);
        found.push(bits_of(&gradients(&gpu, &AttentionInputs::new(&q, &k, &v), &dout)));
    }
    assert!(found[0] == found[1]);
}

#[test]
fn bad_input() {
    let x = tensor([1, 2, 5, 8], &random(40, 80));
    let hook = Hook::new("plus", "fn plus(score: f32, at: Position) -> f32 { return score + 1.0; }");
    let params = FlashParams { score_mod: vec![hook], ..FlashParams::default() };
    let attention = FlashAttention::new(gpu(), params).unwrap();
    let (out, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&x, &x, &x))).unwrap();
    says(block_on(attention.backward(&saved, &out)), &["score_mod[0].grad_entry", "unset", "`plus`"]);
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (out, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&x, &x, &x))).unwrap();
    read(&block_on(attention.backward(&saved, &out)).expect("a gradient as the output").dv);
    let wrong = tensor([1, 2, 5, 7], &[0.0; 70]);
    says(block_on(attention.backward(&saved, &wrong)), &["dout.shape", "[1, 2, 5, 7]", "[1, 2, 5, 8]"]);
    let bytes = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::U8, [1, 2, 5, 8]))).unwrap();
    says(block_on(attention.backward(&saved, &bytes)), &["dout.dtype", "u8", "f32, f16 or bf16"]);
    let half = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::F16, [1, 2, 5, 1]))).unwrap();
    let from = OutputGradients { dlse: Some(&half), ..OutputGradients::new(&out) };
    says(block_on(attention.backward_with_lse(&saved, &from)), &["dlse.dtype", "f16", "f32"]);
    let long = tensor([1, 2, 6, 1], &[0.0; 12]);
    let from = OutputGradients { dlse: Some(&long), ..OutputGradients::new(&out) };
    says(block_on(attention.backward_with_lse(&saved, &from)), &["dlse.shape", "[1, 2, 6, 1]", "[1, 2, 5, 1]"]);
    let from = OutputGradients { dq_so_far: Some(&wrong), ..OutputGradients::new(&out) };
    says(block_on(attention.backward_with_lse(&saved, &from)), &["dq_so_far.shape", "[1, 2, 5, 7]", "[1, 2, 5, 8]"]);
    let other = block_on(Gpu::request_with(&common::options())).unwrap();
    let foreign = block_on(Tensor::empty(&other, Layout::heads_first(DType::F32, [1, 2, 5, 8]))).unwrap();
    says(block_on(attention.backward(&saved, &foreign)), &["dout belongs to another device"]);
}
