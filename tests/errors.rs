//! Bad input gets an `Error` that names the argument, its value and the bound: never a panic, never a wgpu error.

mod common;

use common::{gpu, options, says, tensor};
use pollster::block_on;
use wgpu_attention::plan::{AttentionParams, Caps, Engine, Shapes};
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, Error, FlashAttention, FlashParams, Gpu, GpuOptions, Layout, Seqlens,
    Tensor,
};

fn attention() -> FlashAttention {
    FlashAttention::new(gpu(), FlashParams::default()).expect("valid params")
}

fn zeros(shape: [usize; 4]) -> Tensor {
    tensor(shape, &vec![0.0; shape.iter().product()])
}

fn shapes_of(q: &Layout, k: &Layout, v: &Layout) -> Shapes {
    Shapes::new([("q", q.clone()), ("k", k.clone()), ("v", v.clone())])
}

#[test]
fn each_pair_of_shapes_that_does_not_fit() {
    let good = [[2, 4, 8, 16], [2, 2, 9, 16], [2, 2, 9, 24]];
    let run = |[q, k, v]: [[usize; 4]; 3]| block_on(attention().forward(&zeros(q), &zeros(k), &zeros(v)));
    // Read, so that no work is under way when the program ends: drivers do not survive that.
    common::read(&run(good).expect("shapes that fit"));
    for (which, dim, value, words) in [
        (1, 0, 3, ["k.shape[0] (batch)", "3", "2, as in q"]),
        (2, 0, 1, ["v.shape[0] (batch)", "1", "2, as in q"]),
        (1, 3, 15, ["k.shape[3] (head_dim)", "15", "16, as in q"]),
        (2, 1, 4, ["v.shape[1] (heads_kv)", "4", "2, as in k"]),
        (2, 2, 8, ["v.shape[2] (keys)", "8", "9, as in k"]),
    ] {
        let mut shapes = good;
        shapes[which][dim] = value;
        says(run(shapes), &words);
    }
}

#[test]
fn outputs_that_do_not_fit() {
    let q = zeros([1, 2, 8, 16]);
    let shapes = || shapes_of(q.layout(), q.layout(), q.layout());
    let prepare = |shapes: Shapes| block_on(attention().prepare(&shapes));
    let of = |dtype, shape| Layout::heads_first(dtype, shape);
    says(
        prepare(shapes().tensor("out", of(DType::F32, [1, 2, 8, 15]))),
        &["out.shape", "[1, 2, 8, 15]", "[1, 2, 8, 16]"],
    );
    says(prepare(shapes().tensor("lse", of(DType::F32, [1, 2, 7, 1]))), &["lse.shape", "[1, 2, 7, 1]", "[1, 2, 8, 1]"]);
    says(prepare(shapes().tensor("lse", of(DType::F16, [1, 2, 8, 1]))), &["lse.dtype", "f16", "f32"]);
    let overlapping = Layout { strides: [256, 100, 16], ..of(DType::F32, [1, 2, 8, 16]) };
    says(prepare(shapes().tensor("out", overlapping)), &["out.strides", "[256, 100, 16]", "no two elements"]);
}

#[test]
fn head_dims_and_heads_out_of_range() {
    for d in [0, 257] {
        let x = zeros([1, 1, 4, d]);
        let words = ["q.shape[3] (head_dim)", &d.to_string(), "1..=256"];
        says(block_on(attention().forward(&x, &x, &x)), &words);
        let q = zeros([1, 1, 4, 8]);
        says(block_on(attention().forward(&q, &q, &x)), &["v.shape[3] (value width)", &d.to_string(), "1..=256"]);
    }
    for (heads_q, heads_kv) in [(6, 4), (2, 4), (0, 2)] {
        let (q, k) = (zeros([1, heads_q, 4, 8]), zeros([1, heads_kv, 4, 8]));
        let words = ["q.shape[1] (heads_q)", &heads_q.to_string(), &format!("a multiple of heads_kv = {heads_kv}")];
        says(block_on(attention().forward(&q, &k, &k)), &words);
    }
    let none = zeros([1, 0, 4, 8]);
    says(block_on(attention().forward(&none, &none, &none)), &["k.shape[1] (heads_kv)", "0", "at least 1"]);
}

#[test]
fn scales_that_are_not_finite() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let params = FlashParams { scale: Some(scale), ..FlashParams::default() };
        says(FlashAttention::new(gpu(), params), &["scale", &scale.to_string(), "finite"]);
    }
}

#[test]
fn soft_caps_and_slopes_that_mean_nothing() {
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let params = FlashParams { softcap: Some(softcap), ..FlashParams::default() };
        says(FlashAttention::new(gpu(), params), &["softcap", &softcap.to_string(), "finite and above 0"]);
    }
    let sloped = |slopes: &[f32]| {
        FlashAttention::new(gpu(), FlashParams { alibi_slopes: Some(slopes.to_vec()), ..FlashParams::default() })
    };
    says(sloped(&[0.5, f32::NAN]), &["alibi_slopes[1]", "NaN", "finite"]);
    let x = zeros([1, 3, 4, 8]);
    says(
        block_on(sloped(&[0.5, 0.25]).unwrap().forward(&x, &x, &x)),
        &["alibi_slopes.len()", "2", "3, one per query head"],
    );
}

#[test]
fn biases_and_masks_that_do_not_fit() {
    let x = zeros([2, 2, 4, 8]);
    let of = |dtype, shape| block_on(Tensor::empty(gpu(), Layout::heads_first(dtype, shape))).unwrap();
    let run = |bias: Option<&Tensor>, mask: Option<&Tensor>| {
        block_on(attention().forward_with_lse(&AttentionInputs { bias, mask, ..AttentionInputs::new(&x, &x, &x) }))
    };
    let (bias, mask) = (of(DType::F16, [2, 2, 4, 4]), of(DType::U8, [2, 2, 4, 4]));
    common::read(&run(Some(&bias), Some(&mask)).expect("a bias and a mask that fit").0);
    let one = of(DType::F32, [1, 1, 4, 4]);
    says(run(Some(&one), None), &["bias.shape", "[1, 1, 4, 4]", "[2, 2, 4, 4]", "Layout::expand"]);
    let expanded = one.view(one.layout().clone().expand([2, 2, 4, 4]).unwrap()).unwrap();
    common::read(&run(Some(&expanded), None).expect("an expanded bias").0);
    let (column, bits) = (of(DType::F32, [2, 2, 4, 1]), of(DType::U8, [1, 1, 1, 1]));
    let bits = bits.view(bits.layout().clone().expand([2, 2, 4, 4]).unwrap()).unwrap();
    assert_eq!(bits.shape(), [2, 2, 4, 1]);
    common::read(&run(Some(&column), Some(&bits)).expect("one value for all keys").0);
    says(run(None, Some(&of(DType::U8, [2, 2, 4, 5]))), &["mask.shape", "[2, 2, 4, 5]", "[2, 2, 4, 4]"]);
    says(run(None, Some(&bias)), &["mask.dtype", "f16", "u8"]);
    says(run(Some(&mask), None), &["bias.dtype", "u8", "f32, f16 or bf16"]);
    says(block_on(attention().forward(&of(DType::U8, [2, 2, 4, 8]), &x, &x)), &["q.dtype", "u8", "f32, f16 or bf16"]);
    says(one.layout().clone().expand([2, 2, 5, 4]), &["shape", "[1, 1, 4, 4]", "[2, 2, 5, 4]"]);
    says(one.layout().clone().expand([2, 2, 4, 8]), &["shape", "[1, 1, 4, 4]", "[2, 2, 4, 8]"]);
    let prepared = block_on(attention().prepare(&shapes_of(x.layout(), x.layout(), x.layout())));
    let (out, lse) = (zeros([2, 2, 4, 8]), zeros([2, 2, 4, 1]));
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    let inputs = AttentionInputs { bias: Some(&bias), ..AttentionInputs::new(&x, &x, &x) };
    let encoded = prepared.unwrap().encode(&mut encoder, (&inputs, AttentionOutputs::new(&out, &lse)));
    says(encoded, &["bias", "as prepared: None"]);
}

fn buffer(size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    gpu().device().create_buffer(&descriptor)
}

#[test]
fn buffers_too_small_or_without_the_usage() {
    use wgpu::BufferUsages as Usage;
    let layout = Layout::heads_first(DType::F32, [1, 2, 4, 8]);
    let wrap = |size, usage| Tensor::wrap(gpu(), &buffer(size, usage), layout.clone());
    assert!(wrap(256, Usage::STORAGE).is_ok());
    says(wrap(252, Usage::STORAGE), &["buffer.size", "252", "at least 256"]);
    says(wrap(255, Usage::STORAGE), &["buffer.size", "255", "a multiple of 4"]);
    says(wrap(256, Usage::COPY_DST), &["buffer.usage", "COPY_DST", "STORAGE"]);
    let half = Layout::heads_first(DType::F16, [1, 1, 1, 3]);
    says(Tensor::wrap(gpu(), &buffer(4, Usage::STORAGE), half), &["buffer.size", "4", "at least 6"]);
    let silent = wrap(256, Usage::STORAGE).unwrap();
    says(block_on(silent.read()), &["buffer.usage", "STORAGE", "COPY_SRC"]);
    says(block_on(silent.write(&[0.0; 64])), &["buffer.usage", "STORAGE", "COPY_DST"]);
}

#[test]
fn strides_and_offsets_that_leave_the_buffer() {
    let storage = buffer(256, wgpu::BufferUsages::STORAGE);
    let layout = Layout::heads_first(DType::F32, [1, 2, 4, 8]);
    says(Tensor::wrap(gpu(), &storage, layout.clone().at(1)), &["buffer.size", "256", "at least 260", "offset 1"]);
    let strided = Layout { strides: [64, 33, 8], ..layout.clone() };
    says(Tensor::wrap(gpu(), &storage, strided), &["buffer.size", "256", "at least 260", "[64, 33, 8]"]);
    for layout in [layout.clone().at(usize::MAX), Layout { strides: [0, usize::MAX, usize::MAX], ..layout.clone() }] {
        says(Tensor::wrap(gpu(), &storage, layout.clone()), &["layout", "within 2^64 bytes"]);
        says(block_on(Tensor::empty(gpu(), layout)), &["layout", "within 2^64 bytes"]);
    }
    says(block_on(Tensor::upload(gpu(), [1, 1, 2, 2], DType::F32, &[0.0; 3])), &["values.len()", "3", "4"]);
    let repeated = Layout { strides: [0, 0, 8], ..layout };
    let view = zeros([1, 2, 4, 8]).view(repeated).unwrap();
    says(block_on(view.write(&[0.0; 64])), &["tensor.strides", "[0, 0, 8]", "no two elements"]);
}

/// Prepares and encodes with the tensors as they are.
fn encode(inputs: &AttentionInputs, outputs: &AttentionOutputs) -> Result<(), Error> {
    let prepared = block_on(attention().prepare((inputs, outputs)))?;
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    prepared.encode(&mut encoder, (inputs, outputs))
}

#[test]
fn outputs_that_overlap() {
    let (n, d) = (8, 16);
    let x = zeros([1, 1, n, d]);
    let lse = zeros([1, 1, n, 1]);
    says(
        encode(&AttentionInputs::new(&x, &x, &x), &AttentionOutputs::new(&x, &lse)),
        &["out", "bytes 0..512", "apart from q"],
    );
    let arena = zeros([1, 1, 4, n * d]);
    let view = |offset| arena.view(x.layout().clone().at(offset)).unwrap();
    let (q, late, apart) = (view(0), view(n * d - 4), view(n * d));
    let inputs = AttentionInputs::new(&q, &q, &q);
    says(encode(&inputs, &AttentionOutputs::new(&late, &lse)), &["out", "bytes 496..1008", "bytes 0..512"]);
    assert!(encode(&inputs, &AttentionOutputs::new(&apart, &lse)).is_ok());
    let over = arena.view(lse.layout().clone().at(2 * n * d - 1)).unwrap();
    says(encode(&inputs, &AttentionOutputs::new(&apart, &over)), &["lse", "1052", "apart from out", "512..1024"]);
}

#[test]
fn odd_strides_and_offsets_of_16_bit_outputs() {
    let x = zeros([1, 2, 8, 15]);
    let lse = zeros([1, 2, 8, 1]);
    let arena = block_on(Tensor::empty(gpu(), Layout::heads_first(DType::F16, [1, 1, 1, 1000]))).unwrap();
    let base = Layout { strides: [240, 120, 15], ..Layout::heads_first(DType::F16, [1, 2, 8, 15]) };
    let inputs = AttentionInputs::new(&x, &x, &x);
    let run = |layout: Layout| encode(&inputs, &AttentionOutputs::new(&arena.view(layout).unwrap(), &lse));
    says(run(base.clone()), &["out.strides[2]", "15", "even"]);
    says(run(Layout { strides: [300, 129, 16], ..base.clone() }), &["out.strides[1]", "129", "even"]);
    says(run(Layout { strides: [300, 128, 16], ..base.clone() }.at(3)), &["out.offset", "3", "even"]);
    assert!(run(Layout { strides: [300, 128, 16], ..base }.at(2)).is_ok());
}

#[test]
fn lengths_beyond_the_tensor() {
    let x = zeros([2, 1, 8, 16]);
    let run = |q: Option<&[usize]>, k: Option<&[usize]>| {
        let (seqlens_q, seqlens_k) = (q.map(Seqlens::Host), k.map(Seqlens::Host));
        let inputs = AttentionInputs { seqlens_q, seqlens_k, ..AttentionInputs::new(&x, &x, &x) };
        block_on(attention().forward_with_lse(&inputs))
    };
    common::read(&run(Some(&[8, 0]), Some(&[0, 8])).expect("lengths within the tensor").0);
    says(run(Some(&[8, 9]), None), &["seqlens_q[1]", "9", "at most 8"]);
    says(run(None, Some(&[100, 9])), &["seqlens_k[0]", "100", "at most 8"]);
    says(run(None, Some(&[1])), &["seqlens_k.len()", "1", "2, one per batch entry"]);
}

#[test]
fn tensors_of_another_device() {
    let other = block_on(Gpu::request_with(&options())).unwrap();
    let foreign = block_on(Tensor::upload(&other, [1, 1, 2, 4], DType::F32, &[0.0; 8])).unwrap();
    let ours = zeros([1, 1, 2, 4]);
    says(block_on(attention().forward(&ours, &foreign, &ours)), &["k belongs to another device or `Gpu`"]);
    let lse = zeros([1, 1, 2, 1]);
    let outputs = AttentionOutputs::new(&foreign, &lse);
    says(encode(&AttentionInputs::new(&ours, &ours, &ours), &outputs), &["out belongs to another device or `Gpu`"]);
}

#[test]
fn tensors_that_are_not_as_prepared() {
    let (x, longer) = (zeros([1, 1, 8, 16]), zeros([1, 1, 9, 16]));
    let (out, lse) = (zeros([1, 1, 8, 16]), zeros([1, 1, 8, 1]));
    let (inputs, outputs) = (AttentionInputs::new(&x, &x, &x), AttentionOutputs::new(&out, &lse));
    let prepared = block_on(attention().prepare((&inputs, &outputs))).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    let mut encode =
        |inputs: &AttentionInputs, outputs: &AttentionOutputs| prepared.encode(&mut encoder, (inputs, outputs));
    says(encode(&AttentionInputs { k: &longer, ..inputs }, &outputs), &["k", "9", "as prepared"]);
    says(
        encode(&AttentionInputs { seqlens_k: Some(Seqlens::Host(&[3])), ..inputs }, &outputs),
        &["seqlens_k", "[3]", "as prepared: None"],
    );
    let arena = zeros([1, 1, 3, 8 * 16]);
    let view = |offset| arena.view(x.layout().clone().at(offset)).unwrap();
    says(encode(&AttentionInputs { q: &view(1), ..inputs }, &outputs), &["q", "offset: 1", "multiples of"]);
    let (first, last) = (view(0), view(256));
    says(
        encode(&AttentionInputs { q: &first, ..inputs }, &AttentionOutputs::new(&last, &lse)),
        &["out and q", "in one buffer", "as prepared"],
    );
    assert!(encode(&inputs, &outputs).is_ok());
    // Prepared as two bindings of one buffer, which then come too near each other.
    let (near, far) = (view(1), view(129));
    let apart = (AttentionInputs { q: &near, ..inputs }, AttentionOutputs::new(&far, &lse));
    let shapes = Shapes::of(&apart).tensor("out", x.layout().clone().at(129 + 4096));
    let moved = block_on(attention().prepare(&shapes)).unwrap();
    says(
        moved.encode(&mut gpu().device().create_command_encoder(&Default::default()), &apart),
        &["bytes or more from", "bindings are aligned"],
    );
    says(prepared.encode_slice(&mut encoder, 1, (&inputs, &outputs)), &["slice", "1..2", "0..1"]);
}

#[test]
fn adapters_without_the_limits() {
    let layout = Layout::heads_first(DType::F32, [1, 1, 9, 64]);
    let shapes = shapes_of(&layout, &layout, &layout);
    let plan = |caps: &Caps| FlashParams::default().plan(caps, &shapes);
    let core = Caps::core;
    assert!(plan(&core()).is_ok());
    says(plan(&core().with(|caps| caps.workgroup_memory = 4096)), &["flash", "maxComputeWorkgroupStorageSize", "4096"]);
    says(
        plan(&core().with(|caps| caps.invocations = 64)),
        &["flash", "128", "maxComputeInvocationsPerWorkgroup", "64"],
    );
    says(plan(&core().with(|caps| caps.storage_buffers = 4)), &["5", "maxStorageBuffersPerShaderStage", "4"]);
    says(plan(&core().with(|caps| caps.binding_bytes = 1024)), &["q", "2304", "maxStorageBufferBindingSize", "1024"]);
    // A driver whose loops end without a word gets no sequences that long.
    let llvmpipe = core().with(|caps| caps.driver = "llvmpipe Mesa".into());
    for (keys, fits) in [(1 << 14, true), (1 << 16, false)] {
        let long = Layout::heads_first(DType::F32, [1, 1, keys, 64]);
        let shapes = shapes_of(&layout, &long, &long);
        assert!(FlashParams::default().plan(&Caps::core(), &shapes).is_ok());
        let plan = FlashParams::default().plan(&llvmpipe, &shapes);
        if !fits {
            says(plan, &["flash attention over 65536 tokens", "rounds of llvmpipe's loops", "65535"]);
        } else {
            assert!(plan.is_ok());
        }
    }
    let huge = Layout::heads_first(DType::F32, [1, 1, 1 << 20, 1 << 20]);
    says(block_on(Tensor::empty(gpu(), huge)), &["tensor", "maxBufferSize"]);
}

#[test]
fn adapters_that_are_not_there() {
    let options = GpuOptions { adapter: Some("no such GPU".into()), ..GpuOptions::default() };
    says(block_on(Gpu::request_with(&options)), &["no such GPU", "present: ["]);
}

#[test]
fn lost_devices() {
    for borrowed in [false, true] {
        let requested = block_on(Gpu::request_with(&options())).unwrap();
        let gpu = if borrowed { Gpu::from_device(requested.device(), requested.queue()) } else { requested };
        let x = block_on(Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[0.0; 8])).unwrap();
        let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
        let out = block_on(attention.forward(&x, &x, &x)).unwrap();
        assert!(block_on(out.read()).is_ok());
        let inputs = AttentionInputs::new(&x, &x, &x);
        let prepared = block_on(attention.prepare(inputs)).unwrap();
        let lse = block_on(Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[0.0; 2])).unwrap();
        let outputs = AttentionOutputs::new(&out, &lse);
        block_on(prepared.submit((&inputs, &outputs))).unwrap();
        gpu.device().destroy();
        let lost =
            |e: Option<Error>| assert!(matches!(e, Some(Error::DeviceLost { .. })), "borrowed {borrowed}: {e:?}");
        lost(block_on(x.write(&[0.0; 8])).err());
        lost(block_on(attention.forward(&x, &x, &x)).err());
        lost(block_on(prepared.submit((&AttentionInputs::new(&x, &x, &x), &outputs))).err());
        let e = block_on(out.read()).err();
        assert!(e.as_ref().is_some_and(|e| e.to_string().contains("it was destroyed")), "{e:?}");
        lost(e);
        lost(block_on(async { attention.forward(&x, &x, &x).await?.read().await }).err());
        lost(block_on(async { Tensor::upload(&gpu, [1, 1, 1, 1], DType::F32, &[0.0]).await?.read().await }).err());
    }
}

#[test]
fn buffers_that_cannot_be_used_are_told_by_the_name_of_their_tensor() {
    let x = || tensor([1, 1, 2, 4], &[0.0; 8]);
    let attention = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (q, k, v) = (x(), x(), x());
    block_on(attention.forward(&q, &k, &v)).unwrap();
    // Destroyed after bind groups were made, and before.
    let prepared = block_on(attention.prepare(AttentionInputs::new(&q, &k, &v))).unwrap();
    let (out, lse) = (x(), tensor([1, 1, 2, 1], &[0.0; 2]));
    let call = || (AttentionInputs::new(&q, &k, &v), AttentionOutputs::new(&out, &lse));
    let encode = || {
        let mut encoder = gpu().device().create_command_encoder(&Default::default());
        let (inputs, outputs) = call();
        prepared.encode(&mut encoder, (&inputs, &outputs))
    };
    encode().unwrap();
    k.buffer().destroy();
    let (inputs, outputs) = call();
    says(block_on(prepared.submit((&inputs, &outputs))), &["k.buffer is a destroyed or invalid buffer"]);
    says(block_on(attention.forward(&q, &k, &v)), &["k.buffer is a destroyed or invalid buffer"]);
    let fresh = block_on(attention.prepare(inputs)).unwrap();
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    says(fresh.encode(&mut encoder, (&inputs, &outputs)), &["k.buffer is a destroyed or invalid buffer"]);
    says(block_on(k.read()), &["tensor.buffer is a destroyed or invalid buffer"]);
    says(block_on(k.write(&[0.0; 8])), &["tensor.buffer is a destroyed or invalid buffer"]);
    let mapped = gpu().device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 32,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: true,
    });
    let mapped = Tensor::wrap(gpu(), &mapped, q.layout().clone()).unwrap();
    says(block_on(attention.forward(&q, &q, &mapped)), &["v.buffer is a mapped buffer"]);
    says(block_on(mapped.read()), &["tensor.buffer is a mapped buffer"]);
    mapped.buffer().unmap();
    assert!(block_on(attention.forward(&q, &q, &mapped)).is_ok());
}

#[test]
fn engines_without_the_subgroups_that_they_need() {
    let layout = Layout::heads_first(DType::F32, [1, 1, 8, 16]);
    let shapes = shapes_of(&layout, &layout, &layout);
    for subgroup in [2, 6, 128] {
        let caps = Caps::core().with(|caps| (caps.engine, caps.subgroup) = (Engine::Processor, subgroup));
        says(
            FlashParams::default().plan(&caps, &shapes),
            &["caps.subgroup", &subgroup.to_string(), "0 or a power of two from 4 to 64"],
        );
    }
    for subgroup in [0, 4, 64] {
        let caps = Caps::core().with(|caps| (caps.engine, caps.subgroup) = (Engine::Processor, subgroup));
        assert!(FlashParams::default().plan(&caps, &shapes).expect("a plan").words.contains("processor: "));
    }
}
