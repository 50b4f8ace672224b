//! Block-sparse attention against its float64 reference, and block masks in all their forms.

mod common;

use common::run_all;
use wgpu_attention::catalogue::{
    block_sparse_backward_cases, block_sparse_cases, random_block_sparse_backward_cases, random_block_sparse_cases,
};

#[test]
fn catalogue() {
    run_all(&block_sparse_cases());
}

#[test]
fn random_cases() {
    run_all(&random_block_sparse_cases(16, 1));
}

#[test]
fn gradients_of_the_catalogue() {
    run_all(&block_sparse_backward_cases());
}

#[test]
fn gradients_of_random_cases() {
    run_all(&random_block_sparse_backward_cases(8, 2));
}
