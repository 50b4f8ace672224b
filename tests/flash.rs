//! Flash attention against its float64 reference: the whole catalogue, random cases, a real model's activations.

mod common;

use common::run_all;
use std::path::Path;
use wgpu_attention::catalogue::{
    AttentionCase, activations, flash_backward_cases, flash_cases, random_flash_backward_cases, random_flash_cases,
};

#[test]
fn catalogue() {
    run_all(&flash_cases());
}

#[test]
fn random_cases() {
    run_all(&random_flash_cases(24, 1));
}

#[test]
fn activations_of_a_real_model() {
    let case =
        activations(Path::new("tests/data/minilm_layer3_s256.safetensors")).expect("the repository has the file");
    run_all(&[case]);
}

/// A cache as long as models have them. Each of its parts finds its keys without a loop over all of them, which llvmpipe would end
/// without a word; where a mask makes it a loop, the plan has tiles that are few enough.
#[test]
fn a_step_of_decoding_over_many_keys() {
    run_all(&[None, Some([false; 4])].map(|mask| AttentionCase {
        heads: (1, 1),
        lengths: (1, 131_072),
        dims: (68, 68),
        mask,
        ..AttentionCase::default()
    }));
}

/// What must not pass the comparison, or it checks nothing.
#[test]
fn wrong_results_fail() {
    let case = AttentionCase { lengths: (3, 5), seqlens_q: Some(vec![2]), ..AttentionCase::default() };
    let (out, lse) = case.expected();
    let (out, lse): (Vec<f32>, Vec<f32>) =
        (out.iter().map(|&x| x as f32).collect(), lse.iter().map(|&x| x as f32).collect());
    assert!(case.compare(&out, &lse).passed());
    for wrong in [f32::NAN, f32::INFINITY, out[7] + 5e-5] {
        let mut out = out.clone();
        out[7] = wrong;
        assert!(!case.compare(&out, &lse).passed(), "{wrong}");
    }
    for wrong in [0.0, -1e30, f32::NAN, f32::INFINITY] {
        let mut lse = lse.clone();
        lse[2] = wrong;
        assert!(!case.compare(&out, &lse).passed(), "{wrong} for the -inf of a masked row");
    }
}

#[test]
fn gradients_of_the_catalogue() {
    run_all(&flash_backward_cases());
}

#[test]
fn gradients_of_random_cases() {
    run_all(&random_flash_backward_cases(12, 2));
}
