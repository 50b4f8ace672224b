//! What runs for a prompt: decided without a GPU.

use super::frame::{Frame, SideFrame};
use super::step::{Chain, Part};
use super::{Pool, SeerGateParams, SeerGateShapes};
use crate::error::require;
use crate::packed::Side;
use crate::softmax::MAX_HEAD_DIM;
use crate::{Caps, Layout, Result};
use std::fmt;

impl SeerGateParams {
    pub(super) fn frame(&self, shapes: &SeerGateShapes) -> Result<Frame> {
        self.check()?;
        let SeerGateShapes { q, k, wq, wk, .. } = shapes;
        let sequences = shapes.sequences()?;
        let grid = shapes.grid(self);
        let ([_, heads_q, _, head_dim], heads_kv) = (q.shape, k.shape[1]);
        let [_, heads_wk, _, gate_dim] = wk.shape;
        let most = format!("within 1..={MAX_HEAD_DIM}");
        require((1..=MAX_HEAD_DIM).contains(&gate_dim), "wk.shape[3] (gate_dim)", gate_dim, most)?;
        let wanted = [1, heads_wk, self.pool_k.len() * head_dim, gate_dim];
        let fits = wk.shape == wanted && [heads_q, heads_kv].contains(&heads_wk);
        let kinds = self.pool_k.len();
        let bound = format!("[1, {heads_q} or {heads_kv}, {}, gate_dim], by k and {kinds} kinds of pool_k", wanted[2]);
        require(fits, "wk.shape", format!("{:?}", wk.shape), bound)?;
        let kinds = self.pool_q.len();
        if let Some(wq) = wq {
            let wanted = [1, heads_q, kinds * head_dim, gate_dim];
            let bound = format!("{wanted:?}, by q, {kinds} kinds of pool_q and wk");
            require(wq.shape == wanted, "wq.shape", format!("{:?}", wq.shape), bound)?;
        } else {
            let bound =
                format!("set: {kinds} kinds of pool_q give {} features, and gate_dim is {gate_dim}", kinds * head_dim);
            require(kinds * head_dim == gate_dim, "wq", "unset", bound)?;
        }
        for (name, layout) in [("wk", Some(wk)), ("wq", wq.as_ref())] {
            let Some(layout) = layout else { continue };
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        let even = gate_dim.is_multiple_of(2) || self.rope_theta.is_none();
        require(even, "wk.shape[3] (gate_dim)", gate_dim, "even: a rotary embedding turns pairs")?;
        let [rows, cols] = grid.blocks();
        let side = |heads, share, pools: &Vec<Pool>, rows, weighted| SideFrame {
            heads,
            share,
            joined: 1,
            rows,
            pools: Some(pools.clone()),
            head_dim,
            weighted,
            normed: false,
        };
        let frame = Frame {
            sequences,
            heads: heads_q,
            gate_dim,
            sides: [
                side(heads_q, 1, &self.pool_q, rows, wq.is_some()),
                side(heads_wk, heads_wk / heads_kv, &self.pool_k, cols, true),
            ],
            block: self.block,
            causal: self.causal,
            triangle: self.causal.is_some(),
            past: false,
            complete: false,
            ring: 0,
            theta: self.rope_theta,
            epsilon: 0.0,
            selector: self.selector,
            forced: u32::from(self.sink) | u32::from(self.diagonal) << 1 | u32::from(self.last_rows_dense) << 2,
        };
        shapes.check_outputs(&frame, &grid)?;
        Ok(frame)
    }
}

/// What runs. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct SeerGatePlan {
    pub(super) chain: Chain,
    /// Base and width of rotary angles.
    pub(super) angles: Option<(f32, usize)>,
    words: String,
}

impl SeerGatePlan {
    /// Chooses kernels and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device that has
    /// too little.
    pub fn new(caps: &Caps, params: &SeerGateParams, shapes: &SeerGateShapes) -> Result<Self> {
        let frame = params.frame(shapes)?;
        let mut places = shapes.places();
        let mut between = vec![];
        let mut own = |part, layout: Layout| -> Result<()> {
            caps.within(
                "gate: what lies between its kernels",
                "maxBufferSize",
                layout.byte_span()?.end,
                caps.buffer_bytes,
            )?;
            places.own(part, layout.clone());
            between.push((part, layout));
            Ok(())
        };
        own(Part::PooledQ, frame.pooled(Side::Queries))?;
        own(Part::PooledK, frame.pooled(Side::Keys))?;
        own(Part::VectorsQ, frame.vectors(Side::Queries))?;
        own(Part::VectorsK, frame.vectors(Side::Keys))?;
        if shapes.logits.is_none() {
            own(Part::Logits, frame.logits())?;
        }
        let tasks = frame.to_logits().into_iter().chain([frame.select(places.has(Part::Scores))]);
        let steps = tasks.map(|task| task.plan(caps, &frame, &places)).collect::<Result<_>>()?;
        let [rows, cols] = frame.pairs();
        let words = format!(
            "gate: pools {:?} and {:?} of blocks of {:?}, gate_dim {}, {rows} × {cols} blocks a head; then {:?}",
            params.pool_q, params.pool_k, params.block, frame.gate_dim, params.selector
        );
        Ok(Self { chain: Chain { steps, between }, angles: frame.angles(), words })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        self.chain.wgsl()
    }
}

impl fmt::Display for SeerGatePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words)
    }
}
