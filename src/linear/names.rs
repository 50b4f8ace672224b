//! Names of the tensors that walks go over.

use super::LinearParams;

/// The name of a tensor of the program.
pub(super) type Tensor = &'static str;

/// q and k, their features, and the features' gradients.
pub(super) const FEATURES: [[Tensor; 3]; 2] =
    [["q", "features of q", "gradient of features of q"], ["k", "features of k", "gradient of features of k"]];

/// What stands in for v, the initial state, o and the last state where they have more columns.
pub(super) const VALUES: Tensor = "values and more";
pub(super) const BEFORE: Tensor = "state and more before";
pub(super) const SUMS: Tensor = "output and sums";
pub(super) const AFTER: Tensor = "state and more after";
/// What stands in for the gradients of o, the last state and the initial state.
pub(super) const DSUMS: Tensor = "gradient of output and sums";
pub(super) const DAFTER: Tensor = "gradient of state and more after";
pub(super) const DBEFORE: Tensor = "gradient of state and more before";

/// What walks go over: features in place of q and k, tensors with more columns where there is a normaliser, or in a summary.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub o: Tensor,
    pub h0: Tensor,
    pub ht: Tensor,
    pub dout: Tensor,
    pub dht: Tensor,
    pub dh0: Tensor,
}

impl Names {
    pub fn of(params: &LinearParams, is_joint: bool) -> Self {
        let [q, k] = FEATURES.map(|names| names[usize::from(params.has_features())]);
        match is_joint {
            false => Self { q, k, v: "v", o: "o", h0: "h0", ht: "ht", dout: "dout", dht: "dht", dh0: "dh0" },
            true => Self { q, k, v: VALUES, o: SUMS, h0: BEFORE, ht: AFTER, dout: DSUMS, dht: DAFTER, dh0: DBEFORE },
        }
    }
}
