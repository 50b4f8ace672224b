//! Lack of memory is an `Error`, and what is there stays usable.

mod common;

use common::options;
use pollster::block_on;
use wgpu_attention::{DType, Error, FlashAttention, FlashParams, Gpu, GpuOptions, Layout, Tensor};

/// 64 MiB.
const CHUNK: usize = 16 << 20;

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
    // Six gigabytes, more than those few percent of most adapters, where a refusal must come.
    let chunks = if required { 96 } else { 16 };
    let refused = (0..chunks).find_map(|_| {
        let tensor = block_on(Tensor::empty(&gpu, Layout::heads_first(DType::F32, [1, 1, 1, CHUNK])));
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
    eprintln!("{} MiB given, then: {error}", 64 * held.len());
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("tensor of 67108864 bytes"), "{error}");
    // What was there before is still there, and the device works on. A system may take its time with what is freed.
    held.clear();
    let attention = FlashAttention::new(&gpu, FlashParams::default()).unwrap();
    let run = || block_on(async { attention.forward(&x, &x, &x).await?.read().await });
    let again = (0..100).find_map(|_| match run() {
        Err(Error::OutOfMemory { .. }) => {
            std::thread::sleep(std::time::Duration::from_millis(100));
            None
        }
        other => Some(other.expect("lack of memory is the only error")),
    });
    assert!(again.expect("room again").iter().all(|x| (x - 0.5).abs() < 1e-6));
}
