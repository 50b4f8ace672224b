//! What each kernel must compute, as plain float64 loops on the CPU: to be read, and to check against. Nothing here is
//! shared with planning or with the shaders.

mod block_selection;
mod block_sparse;
mod flash;
mod linear;
mod linear_backward;
mod linear_gate;
mod linear_momentum;
mod linear_summary;
mod merge;
mod neighborhood;
mod problem;
mod rotary;
mod rows;
mod score_reduction;
mod seer_decode;
mod seer_gate;
mod token_lists;

pub use block_selection::block_selection;
pub use block_sparse::ChosenBlocks;
pub use flash::{FlashReference, Gradients, flash, flash_backward};
pub use linear::{LinearProblem, LinearReference, linear};
pub use linear_backward::{LinearGradientsReference, linear_backward};
pub use linear_gate::{LinearGateGradientsReference, LinearGateProblem, linear_gate, linear_gate_backward};
pub use linear_momentum::{
    LinearMomentumGradientsReference, LinearMomentumProblem, LinearMomentumReference, linear_momentum,
    linear_momentum_backward,
};
pub use linear_summary::{linear_summary, linear_summary_backward};
pub use merge::merge;
pub use neighborhood::Neighborhoods;
pub use problem::{At, FlashProblem, place_of};
pub use rotary::rotary;
pub use rows::{RowsProblem, rows_gathered, rows_scattered};
pub use score_reduction::score_reduction;
pub use seer_decode::{
    SeerDecodeProblem, seer_decode_choice, seer_decode_gate, seer_decode_gradients, seer_decode_target,
};
pub use seer_gate::{
    SeerGateProblem, SeerGateReference, seer_gate, seer_gate_choice, seer_gate_gradients, seer_gate_loss,
    seer_gate_scores, seer_gate_target,
};
pub use token_lists::listed_tokens;

/// Numbers between −1 and 1 that f32 holds exactly.
#[cfg(test)]
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1024.0 - 0.978).collect()
}

/// Fails if a gradient is not what central differences of the loss say, to within a bound, relative beyond 1.
#[cfg(test)]
fn assert_slopes<const N: usize>(
    inputs: &mut [Vec<f32>; N],
    gradients: impl IntoIterator<Item = Vec<f64>>,
    loss: impl Fn(&[Vec<f32>; N]) -> f64,
    bound: f64,
) {
    let step = 1.0 / 1024.0;
    for (which, gradient) in gradients.into_iter().enumerate() {
        assert!(gradient.iter().any(|g| g.abs() > 0.01));
        for (i, expected) in gradient.into_iter().enumerate() {
            let at = inputs[which][i];
            inputs[which][i] = at + step;
            let above = loss(inputs);
            inputs[which][i] = at - step;
            let below = loss(inputs);
            inputs[which][i] = at;
            let found = (above - below) / f64::from(2.0 * step);
            let near = (found - expected).abs() < bound * expected.abs().max(1.0);
            assert!(near, "{which} {i}: {found} by differences, {expected} by the chain rule");
        }
    }
}
