//! Names of the tensors that walks go over.

use super::LinearParams;

/// The name of a tensor of the program.
pub(super) type Tensor = &'static str;

/// q and k, their features, and the features' gradients.
pub(super) const FEATURES: [[Tensor; 3]; 2] =
    [["q", "features of q", "gradient of features of q"], ["k", "features of k", "gradient of features of k"]];

/// What stands in for v, the initial state, o and the last state.
pub(super) const VALUES: Tensor = "values and ones";
pub(super) const BEFORE: Tensor = "state and sums before";
pub(super) const SUMS: Tensor = "output and sums";
pub(super) const AFTER: Tensor = "state and sums after";
/// What stands in for the gradients of o, the last state and the initial state.
pub(super) const DSUMS: Tensor = "gradient of output and sums";
pub(super) const DAFTER: Tensor = "gradient of state and sums after";
pub(super) const DBEFORE: Tensor = "gradient of state and sums before";

/// Columns of a row with one more: a multiple of 4.
pub(super) fn joint(width: usize) -> usize {
    (width + 1).next_multiple_of(4)
}

/// What walks go over: features in place of q and k, tensors with a column more where there is a normaliser.
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
    pub fn of(params: &LinearParams) -> Self {
        let [q, k] = FEATURES.map(|names| names[usize::from(params.has_features())]);
        match params.normalize {
            None => Self { q, k, v: "v", o: "o", h0: "h0", ht: "ht", dout: "dout", dht: "dht", dh0: "dh0" },
            Some(_) => Self { q, k, v: VALUES, o: SUMS, h0: BEFORE, ht: AFTER, dout: DSUMS, dht: DAFTER, dh0: DBEFORE },
        }
    }
}
