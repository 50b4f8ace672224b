//! What the rule momentum reads besides the inputs of all rules.

use super::checks::check_tensor;
use super::names::Tensor;
use super::{LinearParams, LinearRule};
use crate::Result;
use crate::error::require;
use crate::program::{Builder, Operand};

/// How much is forgotten, how much of the momentum is kept, and the step size: a number each for a token.
pub(super) const STEPS: [Tensor; 3] = ["alpha", "eta", "theta"];

/// What the rule reads besides the inputs of all rules.
pub(super) struct MomentumInputs {
    pub steps: [Operand; 3],
    pub s0: Option<Operand>,
}

impl MomentumInputs {
    /// The inputs of a call by this rule; none may be there by another.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for one that is missing, or not wanted.
    pub fn of(builder: &Builder, params: &LinearParams) -> Result<Option<Self>> {
        let s0 = builder.tensor("s0");
        if params.rule != LinearRule::Momentum {
            for name in STEPS.into_iter().chain(["s0"]) {
                require(builder.tensor(name).is_none(), name, "set", "unset, except for the rule momentum")?;
            }
            return Ok(None);
        }
        let [alpha, eta, theta] = STEPS.map(|name| builder.input(name));
        Ok(Some(Self { steps: [alpha?, eta?, theta?], s0 }))
    }

    /// Whether it fits to tensors of so many batch entries, heads of the state and tokens.
    pub fn check(&self, [batch, heads, tokens]: [usize; 3], state: [usize; 4]) -> Result<()> {
        for (name, step) in STEPS.into_iter().zip(&self.steps) {
            let (shape, own) = (step.shape(), step.shape()[1].max(1));
            let fits = heads.is_multiple_of(own) && shape == [batch, own, tokens, 1];
            let bound = format!("{:?}, or with a divisor of {heads} heads", [batch, heads, tokens, 1]);
            require(fits, &format!("{name}.shape"), format!("{shape:?}"), bound)?;
            check_tensor(name, Some(step), None, false)?;
        }
        check_tensor("s0", self.s0.as_ref(), Some(state), false)
    }
}
