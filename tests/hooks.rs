//! The caller's own functions: what they may do, and how their mistakes are told.

mod common;

use common::{bits, gpu, options, read, says, tensor};
use pollster::block_on;
use wgpu_attention::{
    AttentionInputs, AttentionParams, Caps, DType, FlashAttention, FlashParams, Gpu, Hook, Layout, Result, Shapes,
    Tensor,
};

fn with(score_mod: Vec<Hook>, mask_mod: Vec<Hook>) -> FlashParams {
    FlashParams { scale: Some(0.0), score_mod, mask_mod, ..FlashParams::default() }
}

/// The LSE of each of `n` queries over `n` keys whose scores are all 0 but for the hooks.
fn lse(n: usize, params: FlashParams) -> Result<Vec<f32>> {
    let x = tensor([1, 1, n, 4], &vec![0.0; 4 * n]);
    let attention = FlashAttention::new(gpu(), params)?;
    Ok(read(&block_on(attention.forward_with_lse(&AttentionInputs::new(&x, &x, &x)))?.1))
}

#[test]
fn a_snippet_that_does_not_compile_is_told_by_its_own_line() {
    let broken = "// Line one.\n\nfn broken(score: f32, at: Position) -> f32 {\n    return score + nothing;\n}";
    says(
        lse(3, with(vec![Hook::new("broken", broken)], vec![])),
        &["score_mod[0]", "fn broken(score: f32, at: Position) -> f32", "line 4 of its source", "nothing"],
    );
    // The second hook's, and its line counts from its own start.
    let good = Hook::new("good", "fn good(score: f32, at: Position) -> f32 {\n    return score;\n}\n\n\n");
    let wrong = "fn wrong(at: Position) -> bool { return at.key == 1.5; }";
    says(
        lse(3, with(vec![good.clone()], vec![Hook::new("wrong", wrong)])),
        &["mask_mod[0]", "fn wrong(at: Position) -> bool", "line 1 of its source"],
    );
    says(
        lse(
            3,
            with(
                vec![good.clone(), Hook::new("torn", "fn torn(score: f32, at: Position) -> f32 {\n  return\n}")],
                vec![],
            ),
        ),
        &["score_mod[1]", "fn torn", "of its source"],
    );
    assert!(lse(3, with(vec![good], vec![])).is_ok());
}

#[test]
fn a_snippet_without_its_functions_is_told_what_it_lacks() {
    let source = "fn helper(score: f32) -> f32 { return score; }";
    says(
        lse(3, with(vec![Hook::new("missing", source)], vec![])),
        &["score_mod[0]", "fn missing(score: f32, at: Position) -> f32", "missing"],
    );
    says(
        lse(3, with(vec![], vec![Hook::new("veil", "fn veil(at: Position) -> f32 { return 1.0; }")])),
        &["mask_mod[0]", "fn veil(at: Position) -> bool"],
    );
    let capped = Hook::new("cap", "fn cap(score: f32, at: Position) -> f32 { return tanh(score); }");
    says(
        lse(3, with(vec![capped.with_gradient("cap_grad")], vec![])),
        &["score_mod[0]", "fn cap_grad(score: f32, at: Position, d_out: f32) -> f32", "cap_grad"],
    );
}

#[test]
fn names_and_buffers_that_cannot_be() {
    let hook = || Hook::new("plus", "fn plus(score: f32, at: Position) -> f32 { return score + data[0]; }");
    let new = |params: FlashParams| FlashAttention::new(gpu(), params);
    let data = tensor([1, 1, 1, 256], &[0.0; 256]);
    for name in ["", "1st", "a b", "f(", "x;"] {
        let mut named = hook();
        named.entry = name.into();
        says(new(with(vec![named], vec![])), &["score_mod[0].entry", &format!("\"{name}\""), "WGSL function"]);
        let buffer = hook().with_buffer(name, &data);
        says(new(with(vec![buffer], vec![])), &["score_mod[0].buffers", &format!("\"{name}\""), "WGSL variable"]);
    }
    let mask = Hook::new("all", "fn all(at: Position) -> bool { return true; }").with_gradient("g");
    says(new(with(vec![], vec![mask])), &["mask_mod[0].grad_entry", "g", "unset"]);
    let odd = data.view(Layout::heads_first(DType::F32, [1, 1, 1, 8]).at(1)).unwrap();
    says(
        new(with(vec![hook().with_buffer("data", &odd)], vec![])),
        &["score_mod[0].buffers: data", "4", "multiple of"],
    );
    let other = tensor([1, 1, 1, 256], &[0.0; 256]);
    let (first, second) = (hook().with_buffer("data", &data), hook().with_buffer("data", &other));
    says(new(with(vec![first.clone(), second], vec![])), &["score_mod[1].buffers: data", "score_mod[0]"]);
    let foreign = block_on(Gpu::request_with(&options())).unwrap();
    let foreign = block_on(Tensor::upload(&foreign, [1, 1, 1, 4], DType::F32, &[0.0; 4])).unwrap();
    says(
        new(with(vec![hook().with_buffer("data", &foreign)], vec![])),
        &["score_mod[0].buffers: data belongs to another device"],
    );
    // A buffer that the same kernel writes.
    let arena = tensor([1, 1, 1, 1024], &[0.0; 1024]);
    let part = |shape, at| arena.view(Layout::heads_first(DType::F32, shape).at(at)).unwrap();
    let x = tensor([1, 1, 2, 4], &[0.0; 8]);
    let attention = new(with(vec![hook().with_buffer("data", &part([1, 1, 1, 4], 0))], vec![])).unwrap();
    let (out, lse) = (part([1, 1, 2, 4], 256), tensor([1, 1, 2, 1], &[0.0; 2]));
    let (inputs, outputs) =
        (AttentionInputs::new(&x, &x, &x), wgpu_attention::AttentionOutputs { out: &out, lse: &lse });
    let prepared = block_on(attention.prepare(&Shapes::of((&inputs, &outputs)))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    says(prepared.encode(&mut encoder, (&inputs, &outputs)), &["out and buffers.data", "in one buffer", "as prepared"]);
}

#[test]
fn too_many_buffers_for_the_device_are_refused_by_name() {
    let names: Vec<String> = (0..4).map(|i| format!("data{i}")).collect();
    let data = tensor([1, 1, 1, 4], &[0.0; 4]);
    let hook = Hook::new("plus", "fn plus(score: f32, at: Position) -> f32 { return score + data0[0]; }");
    let hook = names.iter().fold(hook, |hook, name| hook.with_buffer(name, &data));
    let x = data.layout().clone();
    let shapes = Shapes::new([("q", x.clone()), ("k", x.clone()), ("v", x)]);
    let plan = with(vec![hook], vec![]).plan(&Caps::core(), &shapes);
    says(plan, &["flash needs 9 of maxStorageBuffersPerShaderStage", "8"]);
}

#[test]
fn reads_outside_of_a_buffer_give_zero_or_one_of_its_elements() {
    // Only the second of three parts is the hook's; the rest of the buffer holds what it must not see.
    let step = 256;
    let secret = 7.0;
    let all = tensor([1, 1, 3, step], &vec![secret; 3 * step]);
    let mine = all.view(Layout::heads_first(DType::F32, [1, 1, 1, 8]).at(step)).unwrap();
    block_on(mine.write(&[0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])).unwrap();
    let indices = [
        "at.key + 8u",
        "at.key + 255u",
        "0xffffffffu - at.key",
        "0u - 1u - at.query",
        "at.key * 1000003u + 64u",
        "1u << 30u",
    ];
    for index in indices {
        let source = format!("fn outside(score: f32, at: Position) -> f32 {{ return score + data[{index}]; }}");
        let hook = Hook::new("outside", source).with_buffer("data", &mine);
        let found = lse(1, with(vec![hook], vec![])).unwrap()[0];
        assert!((0..=8).any(|i| found == i as f32 / 8.0), "data[{index}] is {found}");
    }
    // In a mask too, where the same text runs in another kernel.
    let source =
        "fn outside(at: Position) -> bool { return data[at.key + 100000u] != 7.0 && data[at.key - 9u] != 7.0; }";
    let hook = Hook::new("outside", source).with_buffer("data", &mine);
    let found = lse(100, with(vec![], vec![hook])).unwrap();
    assert!(found.iter().all(|&x| (x - 100f32.ln()).abs() < 1e-5), "{found:?}");
}

#[test]
fn a_hidden_key_stays_hidden() {
    // What adds to −∞, caps it or makes a NaN of it.
    for body in ["score + 1e30", "tanh(score)", "score * 0.0", "5.0"] {
        let hide = Hook::new(
            "hide",
            "fn hide(score: f32, at: Position) -> f32 { return select(score, -1.0 / f32(at.key & 0u), at.key == 1u); }",
        );
        let then = Hook::new("then", format!("fn then(score: f32, at: Position) -> f32 {{ return {body}; }}"));
        let keep = Hook::new("keep", "fn keep(score: f32, at: Position) -> f32 { return 0.0; }");
        let found = lse(4, with(vec![hide, then, keep], vec![])).unwrap();
        assert!(found.iter().all(|x| (x - 3f32.ln()).abs() < 1e-6), "{body}: {found:?}");
    }
}

#[test]
fn tiles_that_a_mask_hides_are_not_even_read() {
    let (n, d) = (300, 16);
    let mut values = common::random(5, n * d);
    let x = tensor([1, 1, n, d], &values);
    let mask = || Hook::new("two_ends", "fn two_ends(at: Position) -> bool { return at.key < 10u || at.key >= 250u; }");
    let attention = |params| FlashAttention::new(gpu(), params).unwrap();
    let params = FlashParams { mask_mod: vec![mask()], ..FlashParams::default() };
    let shapes = Shapes::of(AttentionInputs::new(&x, &x, &x));
    let plan = attention(params.clone()).plan(&shapes).unwrap().to_string();
    assert!(plan.contains("tiles that they hide are skipped") && plan.contains("bounds checks stay on"), "{plan}");
    let expected = block_on(attention(params.clone()).forward(&x, &x, &x)).unwrap();
    values[10 * d..250 * d].fill(f32::NAN);
    let poisoned = tensor([1, 1, n, d], &values);
    let found = block_on(attention(params).forward(&x, &poisoned, &poisoned)).unwrap();
    assert_eq!(bits(&read(&found)), bits(&read(&expected)));
}
