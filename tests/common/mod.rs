//! The device that a test runs on. The environment variable `WGPU_ATTENTION_MODE` lists `checked` (bounds checks and loop
//! guards in the shaders), `core` (WebGPU's default limits, no optional feature), `budget` (the driver must tell how much
//! memory there is), `portable` (that engine on a processor too), any of them or none.
//!
//! `WGPU_ATTENTION_SHARE` takes some of each list of cases: `sample` those that run every kernel and have every feature once; `1/4` a
//! quarter, the second of four, by a hash of their names, and of each list at least one.
#![allow(dead_code)] // each test program uses its part

pub mod golden;
pub mod patterns;

use std::cell::OnceCell;
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use wgpu_attention::catalogue::{Case, normal, sample};
use wgpu_attention::plan::{AdapterKind, Engine};
use wgpu_attention::{Call, Causal, DType, Error, FlashParams, Gpu, GpuOptions, Tensor, Window};

pub const BOTTOM_RIGHT: FlashParams = FlashParams {
    causal: Some(Causal::BottomRight),
    window: Window { left: None, right: None },
    scale: None,
    softcap: None,
    alibi_slopes: None,
    score_mod: Vec::new(),
    mask_mod: Vec::new(),
};

pub fn options() -> GpuOptions {
    let mode = std::env::var("WGPU_ATTENTION_MODE").unwrap_or_default();
    let known = |part: &&str| ["checked", "core", "budget", "portable"].contains(part);
    let valid = mode.split(',').filter(|p| !p.is_empty()).all(|p| known(&p));
    assert!(valid, "WGPU_ATTENTION_MODE={mode}: checked, core, budget, portable");
    GpuOptions {
        core_limits: mode.contains("core"),
        checked_shaders: mode.contains("checked"),
        engine: mode.contains("portable").then_some(Engine::Portable),
        ..GpuOptions::default()
    }
}

/// The device of this thread: of a test, all along. Where a processor compiles and runs the shaders, a device does so on one core, and
/// tests that run at the same time have two between them.
pub fn gpu() -> &'static Gpu {
    static DEVICES: OnceLock<Vec<Gpu>> = OnceLock::new();
    static IN_USE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    struct Lease(usize, &'static Gpu);
    impl Drop for Lease {
        fn drop(&mut self) {
            // A software driver whose process ends in the midst of work crashes. This thread's own variables are gone.
            let gpu = self.1;
            let wait = move || gpu.device().poll(wgpu::PollType::wait_indefinitely()).is_ok();
            let _ = std::thread::spawn(wait).join();
            IN_USE[self.0].fetch_sub(1, Ordering::Relaxed);
        }
    }
    let devices = DEVICES.get_or_init(|| {
        let options = options();
        let device = || pollster::block_on(Gpu::request_with(&options));
        let gpu = device().expect("a GPU driver; without a GPU, `cargo xtask test` installs a software one");
        eprintln!("{} {options:?}", gpu.caps());
        let second = (gpu.caps().kind == AdapterKind::Software).then(|| device().expect("a second device"));
        std::iter::once(gpu).chain(second).collect()
    });
    let lease = || {
        let free = (0..devices.len()).min_by_key(|&i| IN_USE[i].load(Ordering::Relaxed)).expect("one at least");
        IN_USE[free].fetch_add(1, Ordering::Relaxed);
        Lease(free, &devices[free])
    };
    thread_local!(static MINE: OnceCell<Lease> = const { OnceCell::new() });
    MINE.with(|mine| mine.get_or_init(lease).1)
}

/// A program on the same driver: one in another folder is reached through its own loader.
pub fn program_on_driver(program: &str) -> Command {
    let runner =
        std::env::var(format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase()));
    let words = runner.unwrap_or_default();
    let mut words = words.split_whitespace().chain([program]);
    let mut command = Command::new(words.next().expect("one at least"));
    command.args(words);
    command
}

/// A contiguous tensor.
pub fn tensor(shape: [usize; 4], values: &[f32]) -> Tensor {
    pollster::block_on(Tensor::upload(gpu(), shape, DType::F32, values)).expect("a valid tensor")
}

/// Some of the tokens of every head.
pub fn tokens(values: &[f32], [batch, heads, n, d]: [usize; 4], which: Range<usize>) -> Tensor {
    let rows = values.chunks(n * d).flat_map(|head| &head[which.start * d..which.end * d]);
    tensor([batch, heads, which.len(), d], &rows.copied().collect::<Vec<f32>>())
}

pub fn read(tensor: &Tensor) -> Vec<f32> {
    pollster::block_on(tensor.read()).expect("a readable tensor")
}

/// A tensor of a call, by its name.
pub fn named<'a>(call: &'a impl Call, name: &str) -> &'a Tensor {
    call.tensors().into_iter().find(|(other, _)| other == name).expect(name).1
}

/// [batch, tokens, heads, width] as [batch, heads, tokens, width].
pub fn heads_first(values: &[f32], [b, h, n, d]: [usize; 4]) -> Vec<f32> {
    (0..b * h * n).flat_map(|i| values[((i / n / h * n + i % n) * h + i / n % h) * d..][..d].to_vec()).collect()
}

/// For bitwise comparison: NaN equals NaN.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Normal values with a standard deviation of 2.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    normal(seed, count, 2.0, DType::F32)
}

/// The root of the mean square error, over that of what is expected.
pub fn ratio(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let error = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (error / squares(&mut expected.iter().copied())).sqrt()
}

/// The cases that are taken.
fn share<C: Case>(cases: &[C]) -> Vec<&C> {
    let Ok(share) = std::env::var("WGPU_ATTENTION_SHARE") else { return cases.iter().collect() };
    if share == "sample" {
        let some = sample(cases.iter().map(|case| case as &dyn Case), gpu().caps()).expect("valid cases");
        return some.into_iter().map(|i| &cases[i]).collect();
    }
    let parts: Option<(u64, u64)> = share.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let (part, parts) = parts
        .filter(|(k, n)| k < n)
        .unwrap_or_else(|| panic!("WGPU_ATTENTION_SHARE={share}: sample, or k/n, k below n"));
    let hash = |case: &C| {
        case.name().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    };
    // The upper bits of this hash are the better ones.
    let own: Vec<&C> = cases.iter().filter(|case| (hash(case) >> 32) % parts == part).collect();
    if own.is_empty() { cases.iter().skip(part as usize % cases.len().max(1)).take(1).collect() } else { own }
}

/// Runs cases against their references.
pub fn run_all<C: Case>(cases: &[C]) {
    let all = cases.len();
    let cases = share(cases);
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for case in &cases {
        match pollster::block_on(case.run(gpu())) {
            Ok(outcome) if outcome.passed() => worst = worst.max(outcome.over_tolerance),
            other => failures.push(format!("{}: {other:?}", case.name())),
        }
    }
    let count = if cases.len() < all { format!("{} of {all}", cases.len()) } else { all.to_string() };
    eprintln!("{count} cases on {}, worst error {worst:.3} of the tolerance", gpu().caps().adapter);
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Asserts that an `Error` says all of these words.
#[track_caller]
pub fn says<T>(result: Result<T, Error>, words: &[&str]) {
    let message = result.err().expect("an error").to_string();
    for word in words {
        assert!(message.contains(word), "\"{message}\" does not say \"{word}\"");
    }
}
