//! Lack of memory is an `Error`, and what is there stays usable.

mod common;

use common::options;
use pollster::block_on;
use wgpu_attention::{DType, Error, FlashAttention, FlashParams, Gpu, GpuOptions, Layout, Tensor};

/// 1 GiB, where one buffer may be that large. Much, so that after the refusal there is room for little things: what is
/// freed may take a system minutes to count as free.
const CHUNK: u64 = 1 << 30;

#[test]
fn too_much_is_an_error_and_nothing_is_lost() {
    let required = std::env::var("WGPU_ATTENTION_MODE").unwrap_or_default().contains("budget");
    // What others use may count: a little more than the smallest share that a device fits in.
    let with = |percent| block_on(Gpu::request_with(&GpuOptions { memory_percent: Some(percent), ..options() }));
    let smallest = (1..=90).find(|&percent| with(percent).is_ok()).expect("a GPU driver");
    let gpu = with(smallest + 3).expect("a GPU driver");
    eprintln!("{} % of the memory", smallest + 3);
    let x = block_on(Tensor::upload(&gpu, [1, 1, 4, 8], DType::F32, &[0.5; 32])).expect("a little");
    let mut held = Vec::new();
    let chunk = CHUNK.min(gpu.caps().buffer_bytes) / 16 * 16;
    // More than those few percent of most adapters, where a refusal must come.
    let chunks = if required { 8 } else { 1 };
    let refused = (0..chunks).find_map(|_| {
        let layout = Layout::heads_first(DType::F32, [1, 1, 1, chunk as usize / 4]);
        let tensor = block_on(Tensor::empty(&gpu, layout));
        let take = |tensor: Tensor| {
            // A driver may count only what was touched.
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            encoder.clear_buffer(tensor.buffer(), 0, None);
            gpu.queue().submit([encoder.finish()]);
            gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("a GPU that works");
            held.push(tensor);
        };
        tensor.map(take).err()
    });
    let Some(error) = refused else {
        assert!(!required, "the driver gave {} chunks and did not tell how much memory it grants", held.len());
        eprintln!("not tested: {} does not tell how much memory it grants", gpu.caps().adapter);
        return;
    };
    eprintln!("{} buffers of {chunk} bytes given, then: {error}", held.len());
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains(&format!("tensor of {chunk} bytes")), "{error}");
    // What was there before is still there, and the device works on.
    held.clear();
    let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
    let run = || block_on(async { attention.forward(&x, &x, &x).await?.read().await });
    let again = (0..600).find_map(|_| match run() {
        Err(Error::OutOfMemory { .. }) => {
            std::thread::sleep(std::time::Duration::from_millis(100));
            None
        }
        other => Some(other.expect("lack of memory is the only error")),
    });
    assert!(again.expect("room again").iter().all(|x| (x - 0.5).abs() < 1e-6));
}
