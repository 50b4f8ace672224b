//! The softmax engine that the families share: what it is planned for, and its plans, forward and backward. A family brings its params
//! and who sees whom ([`visibility::Visibility`]).

mod backward;
mod dense;
mod engine;
mod few_queries;
mod params;
mod plan;
mod portable;
mod processor;
mod shapes;
mod sizes;
pub(crate) mod stage;
mod staged;
mod uniforms;
pub(crate) mod visibility;

pub(crate) use dense::Dense;
pub use dense::{Causal, Window};
pub(crate) use engine::Tiling;
pub(crate) use params::score_methods;
pub use params::{AnyVisibility, ScoreParams, SoftmaxParams};
pub(crate) use plan::NAMES;
pub(crate) use portable::Portable;
pub(crate) use processor::Processor;
pub(crate) use shapes::{AttentionShapes, Outputs};
pub(crate) use sizes::Sizes;
pub(crate) use staged::Staged;

use crate::program::Program;
use crate::{Caps, Result, Shapes};
use std::fmt::Debug;

/// The params of a family of softmax attention kernels.
pub trait AttentionParams: Clone + Debug + PartialEq + SoftmaxParams {
    /// The program that runs. Its tensors are named like the fields of [`crate::AttentionInputs`] and [`crate::AttentionOutputs`]: q
    /// [batch, heads_q, queries, head_dim], k [batch, heads_kv, keys, head_dim], v [batch, heads_kv, keys, value_dim]; where present, bias,
    /// mask, additional_k, additional_v, `block_mask.chosen`, `block_mask.full`, seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k, and
    /// `buffers.NAME` of hooks; out and lse. Its numbers: seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k where those are on the host;
    /// max_seqlen_q and max_seqlen_k where offsets are tensors and the longest sequence is known; those of [`Shapes::block_mask`].
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] if the work needs more than the
    /// device offers.
    fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        plan::plan(caps, &*self.visibility()?.0, &self.scores(), shapes)
    }

    /// The program that computes gradients. Besides what the forward pass reads and writes, it reads dout and, where present, dlse and
    /// dq_so_far. It writes dq, dk and dv; with a bias, dbias; and with additional keys, d_additional_k and d_additional_v.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan`]; [`crate::Error::Argument`] for a hook that changes scores and has no gradient.
    fn plan_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        backward::plan(caps, &*self.visibility()?.0, &self.scores(), shapes)
    }

    /// The program that applies transposed weights, `out[j] = Σ_i p[i][j] · u[i]` over the query heads that share a key head: the gradient of
    /// values with dout = u, alone. It reads what the forward pass reads but for v, its lse, and `u` [batch, heads_q, queries, width]; it
    /// writes `out` [batch, heads_kv, keys, width], of any type.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_backward`]; [`crate::Error::Argument`] for additional keys.
    fn plan_transposed(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        backward::plan_transposed(caps, &*self.visibility()?.0, &self.scores(), shapes)
    }
}
