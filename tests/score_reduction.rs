//! Score reduction against its float64 reference.

mod common;

use common::run_all;
use wgpu_attention::catalogue::{random_score_reduction_cases, score_reduction_cases};

#[test]
fn catalogue() {
    run_all(&score_reduction_cases());
}

#[test]
fn random_cases() {
    run_all(&random_score_reduction_cases(16, 1));
}
