//! The caller's own functions: what they may do, and how their mistakes are told.

mod common;

use common::{bits, gpu, options, read, says, tensor};
use pollster::block_on;
use wgpu_attention::plan::{AttentionParams, Caps, Shapes};
use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Hook, Layout, Result, Tensor};

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
    let (inputs, outputs) = (AttentionInputs::new(&x, &x, &x), wgpu_attention::AttentionOutputs::new(&out, &lse));
    let prepared = block_on(attention.prepare((&inputs, &outputs))).unwrap();
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

/// What a kernel calls, what it declares, what WGSL declares: a hook may call its own things so.
#[test]
fn names_of_a_hook_are_its_own() {
    const IDENTITY: &str = "fn same(score: f32, at: Position) -> f32 { return score; }\n\
        fn same_grad(score: f32, at: Position, d_out: f32) -> f32 { return d_out; }";
    let n = 5;
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| tensor([1, 1, n, 8], &common::random(seed, 8 * n)));
    let run = |score_mod: Vec<Hook>, mask_mod: Vec<Hook>| {
        let params = FlashParams { score_mod, mask_mod, ..FlashParams::default() };
        let attention = FlashAttention::new(gpu(), params).unwrap();
        let (out, saved) = block_on(attention.forward_for_training(&AttentionInputs::new(&q, &k, &v))).unwrap();
        let gradients = block_on(attention.backward(&saved, &dout)).unwrap();
        let all = [&out, common::named(&saved, "lse"), &gradients.dq, &gradients.dk, &gradients.dv];
        all.map(|tensor| bits(&read(tensor)))
    };
    let expected = run(vec![Hook::new("same", IDENTITY).with_gradient("same_grad")], vec![]);

    let one = ["log2", "exp2", "exp", "sqrt", "abs", "load_k4", "load_q4", "m", "l", "o", "s", "k"];
    let two = ["max", "min", "mask", "bias", "gate", "state", "params", "score_tile", "tile_data", "hook_0", "main"];
    let three = ["select", "fma", "clamp", "score", "mask_allows", "store_out4", "still_hidden", "hook0_same"];
    let function = |(names, parameters): (&[&str], &str)| -> String {
        names.iter().map(|name| format!("fn {name}({parameters}) -> f32 {{ return 7.0; }}\n")).collect()
    };
    let helpers: String =
        [(&one[..], "x: f32"), (&two, "x: f32, y: f32"), (&three, "x: f32, y: f32, z: f32")].map(function).concat();
    let hook = |source: String| Hook::new("same", source).with_gradient("same_grad");
    assert!(run(vec![hook(helpers.clone() + IDENTITY)], vec![]) == expected);
    // Constants, types, variables; locals and parameters of such names; the same in two hooks.
    let things = "const MINUS_INFINITY_BITS = 1u; struct Row { k: f32 } alias Work = f32; var<private> tile_data: f32 = 3.0;\n\
        fn twice(q: Row) -> Work { let l = q.k; var o = l; o += tile_data - 3.0; return o; }\n\
        fn m(score: f32, at: Position) -> f32 { return twice(Row(score)); }\n\
        fn l(score: f32, at: Position, d_out: f32) -> f32 { return d_out; }";
    let named = || Hook::new("m", things).with_gradient("l");
    let other =
        Hook::new("main", format!("{helpers}{IDENTITY}").replace("same", "main").replace("fn main(x", "fn other(x"));
    assert!(run(vec![named(), named(), other.with_gradient("main_grad")], vec![]) == expected);
    // Masks, and buffers.
    let data = tensor([1, 1, 1, 4], &[1.0; 4]);
    for name in ["params", "score", "k", "tile_data", "log2", "f32x", "hook_0", "m"] {
        let source = format!("fn state(at: Position) -> bool {{ return {name}[0] == 1.0; }}");
        assert!(run(vec![], vec![Hook::new("state", source).with_buffer(name, &data)])[0].len() == 8 * n);
    }
}

#[test]
fn what_a_hook_cannot_have_is_refused_by_name_and_line() {
    let refused = |source: &str, words: &[&str]| {
        let source = format!("{source}\nfn plus(score: f32, at: Position) -> f32 {{ return score; }}");
        says(
            FlashAttention::new(gpu(), with(vec![Hook::new("plus", source)], vec![])),
            &[&["score_mod[0]"], words].concat(),
        );
    };
    refused("\n@group(3) @binding(0) var<storage> other: array<f32>;", &["line 2", "@group"]);
    refused("override width = 1;", &["line 1", "override"]);
    refused("enable f16;", &["line 1", "enable"]);
    refused("var<workgroup> shared_sum: f32;", &["line 1", "var<workgroup>"]);
    refused("fn wait() {\n  workgroupBarrier();\n}", &["line 2", "workgroupBarrier"]);
    refused("fn all() -> f32 { return subgroupAdd(1.0); }", &["line 1", "subgroupAdd"]);
    refused("var<private> much: array<vec4f, 5000>;", &["line 1", "80000 bytes", "16384"]);
    refused("fn open() {", &["line 1", "is not closed"]);
    refused("}", &["line 1", "closes nothing"]);
    refused("/* begun here", &["line 1", "comment is not closed"]);
    refused(&"// long\n".repeat(10_000), &["source.len()", "65536"]);
    // A comment of one hook cannot end in the next.
    let hooks = [
        "/* fn a(score: f32, at: Position) -> f32 { return score; }",
        "*/ fn a(score: f32, at: Position) -> f32 { return 1.0; }",
    ];
    says(
        lse(3, with(hooks.map(|source| Hook::new("a", source)).to_vec(), vec![])),
        &["score_mod[0]", "line 1", "comment"],
    );
    // What only a kernel has is not there for a hook, and is called as the hook calls it.
    for name in ["tile_data[0]", "params.scale", "f32(WG)", "load_k4(0u, 4u).x", "hook0_a", "hooks_data[0]"] {
        let source = format!("\nfn reach(score: f32, at: Position) -> f32 {{ return score + {name}; }}");
        let word: String =
            name.trim_start_matches("f32(").chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        says(lse(3, with(vec![Hook::new("reach", source)], vec![])), &["score_mod[0]", "line 2", &format!("`{word}`")]);
    }
    for name in ["_", "fn", "let", "__a", "true"] {
        let hook = Hook::new("plus", "fn plus(score: f32, at: Position) -> f32 { return score; }");
        let mut named = hook.clone();
        named.entry = name.into();
        let data = tensor([1, 1, 1, 4], &[1.0; 4]);
        says(
            FlashAttention::new(gpu(), with(vec![hook.clone().with_buffer(name, &data)], vec![])),
            &["score_mod[0].buffers", name],
        );
        says(FlashAttention::new(gpu(), with(vec![named], vec![])), &["score_mod[0].entry", name]);
    }
    let twice = Hook::new("plus", "const data = 1.0; fn plus(score: f32, at: Position) -> f32 { return score; }");
    let twice = twice.with_buffer("data", &tensor([1, 1, 1, 4], &[1.0; 4]));
    says(FlashAttention::new(gpu(), with(vec![twice], vec![])), &["score_mod[0].buffers: data", "another name"]);
}

/// Blanks beyond ASCII part words as others do: what a source says decides how it is compiled and what its map holds.
#[test]
fn blanks_beyond_ascii_part_words() {
    let (heads, n) = (2, 5);
    let x = tensor([1, heads, n, 4], &vec![0.0; heads * n * 4]);
    let source = "fn own(at: Position) -> bool { return at.\u{200e}head == 0u || at.key == 0u; }";
    let attention = FlashAttention::new(gpu(), with(vec![], vec![Hook::new("own", source)])).unwrap();
    let found = read(&block_on(attention.forward_with_lse(&AttentionInputs::new(&x, &x, &x))).unwrap().1);
    let expected = [5f32.ln(); 5].into_iter().chain([0.0; 5]);
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    for blank in ['\u{2028}', '\u{200e}', '\u{85}'] {
        let source =
            format!("fn all(at: Position) -> bool {{{blank}loop {{{blank}if true {{ break; }} }} return true; }}");
        let attention = FlashAttention::new(gpu(), with(vec![], vec![Hook::new("all", source)])).unwrap();
        let plan = attention.plan(&Shapes::of(AttentionInputs::new(&x, &x, &x))).unwrap();
        assert!(plan.kernels.iter().any(|kernel| kernel.guards == wgpu_attention::plan::Guards::All));
    }
}
