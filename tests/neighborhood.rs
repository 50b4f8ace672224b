//! Neighborhood attention against its float64 reference, and both against an independent implementation.

mod common;

use common::run_all;
use wgpu_attention::catalogue::{
    neighborhood_backward_cases, neighborhood_cases, random_neighborhood_backward_cases, random_neighborhood_cases,
};

#[test]
fn catalogue() {
    run_all(&neighborhood_cases());
}

#[test]
fn random_cases() {
    run_all(&random_neighborhood_cases(24, 1));
}

#[test]
fn gradients_of_the_catalogue() {
    run_all(&neighborhood_backward_cases());
}

#[test]
fn gradients_of_random_cases() {
    run_all(&random_neighborhood_backward_cases(12, 2));
}
