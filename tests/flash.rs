//! Flash attention against its float64 reference: the whole catalogue, random cases, a real model's activations.

mod common;

use common::gpu;
use wgpu_attention::catalogue::{Case, FlashCase, flash_cases, random_flash_cases};

fn run_all(cases: &[FlashCase]) {
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for case in cases {
        let start = std::time::Instant::now();
        match pollster::block_on(case.run(gpu())) {
            Ok(outcome) if outcome.passed() => worst = worst.max(outcome.over_tolerance),
            other => failures.push(format!("{}: {other:?}", case.name())),
        }
        if std::env::var_os("CASE_TIMES").is_some() {
            eprintln!("{:?} {}", start.elapsed(), case.name());
        }
    }
    eprintln!("{} cases on {}, worst error {worst:.3} of the tolerance", cases.len(), gpu().caps().adapter);
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn catalogue() {
    run_all(&flash_cases());
}

#[test]
fn random_cases() {
    run_all(&random_flash_cases(24, 1));
}
