//! What runs for a prompt: decided without a GPU.

use super::frame::{Frame, SideFrame};
use super::kernels::SideTensors;
use super::training::Training;
use super::{Pool, SeerGateParams};
use crate::error::require;
use crate::layout::MAX_HEAD_DIM;
use crate::packed::{self, Side};
use crate::program::{Builder, Operand, Program, small_table};
use crate::softmax::AttentionShapes;
use crate::{BlockGrid, Caps, DType, Layout, Result, Shapes};

/// Tensors and numbers of a gate.
const INPUTS: [&str; 8] = ["q", "k", "wq", "wk", "seqlens_q", "seqlens_k", "cu_seqlens_q", "cu_seqlens_k"];
const NUMBERS: [&str; 4] = ["seqlens_q", "seqlens_k", "cu_seqlens_q", "cu_seqlens_k"];

impl SeerGateParams {
    /// The program that runs. Its tensors are named like the fields of [`crate::SeerGateInputs`]: q and k before their rotary embedding, wk
    /// and, where present, wq; `chosen`, the chosen blocks, u32 of the shape [`BlockGrid::shape`]; where present or wanted, `logits`, the
    /// scores before the softmax, f32 [batch, heads_q, blocks of queries, blocks of keys], −∞ where a row does not see a block, and
    /// `scores`, their softmax. Its numbers: seqlens_q, seqlens_k or cu_seqlens_q, cu_seqlens_k.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] if the work needs more than the
    /// device offers.
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&[&INPUTS[..], &["chosen", "logits", "scores"]].concat(), &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let (frame, grid) = self.frame(&builder, shapes)?;
        let scores = declare_outputs(&mut builder, &frame, &grid, "to match q, k and blocks")?;
        for side in [Side::Queries, Side::Keys] {
            builder.scratch(SideTensors::of(side).pooled, frame.pooled(side))?;
            builder.scratch(frame.side(side).vectors, frame.vectors(side))?;
        }
        frame.check_loops(caps)?;
        let tasks = frame.to_logits().into_iter().chain([frame.select(scores)]);
        tasks.into_iter().try_for_each(|task| task.add(&mut builder, frame.sequences.clone()))?;
        let [rows, cols] = frame.pairs();
        builder.finish(format!(
            "gate: pools {:?} and {:?} of blocks of {:?}, gate_dim {}, {rows} × {cols} blocks a head; then {:?}",
            self.pool_q, self.pool_k, self.block, frame.gate_dim, self.selector
        ))
    }

    /// The four programs of training, for tokens and weights: from these to `logits`, with what the gradients need; from the `wanted`
    /// numbers to a `target`; from both to the `loss` and its gradient `dlogits`; from that to the gradients of the weights.
    ///
    /// # Errors
    /// Those of [`SeerGateParams::plan`].
    pub fn plan_training(&self, weight: f32, from_row: usize, caps: &Caps, shapes: &Shapes) -> Result<[Program; 4]> {
        self.training(caps, shapes)?.0.plan(weight, from_row, caps, shapes)
    }

    /// What training is made of, and the grid of the mask, for tokens and weights.
    pub(crate) fn training(&self, caps: &Caps, shapes: &Shapes) -> Result<(Training, BlockGrid)> {
        shapes.check_names(&INPUTS, &NUMBERS)?;
        let (frame, grid) = self.frame(&Builder::new(caps, shapes)?, shapes)?;
        Ok((Training(frame), grid))
    }

    /// Sizes and rules, and the grid of the mask.
    fn frame(&self, builder: &Builder, shapes: &Shapes) -> Result<(Frame, BlockGrid)> {
        self.check()?;
        let [q, k, wk] = [builder.input("q")?, builder.input("k")?, builder.input("wk")?];
        let wq = builder.tensor("wq");
        let packed = packed::offsets(builder, shapes, [q.shape()[2], k.shape()[2]])?;
        let tokens = AttentionShapes::of_tokens(&q, &k, packed::lengths(builder, shapes)?);
        let attention = AttentionShapes { packed, ..tokens };
        attention.check()?;
        let [batch, heads, queries, keys] = attention.pairs();
        let sequences = attention.host_sequences()?;
        let grid = BlockGrid { batch, heads, queries, keys, block: self.block };
        grid.check()?;
        let ([_, heads_q, _, head_dim], heads_kv) = (q.shape(), k.shape()[1]);
        let [_, heads_wk, _, gate_dim] = wk.shape();
        let most = format!("within 1..={MAX_HEAD_DIM}");
        require((1..=MAX_HEAD_DIM).contains(&gate_dim), "wk.shape[3] (gate_dim)", gate_dim, most)?;
        let wanted = [1, heads_wk, self.pool_k.len() * head_dim, gate_dim];
        let fits = wk.shape() == wanted && [heads_q, heads_kv].contains(&heads_wk);
        let kinds = self.pool_k.len();
        let bound = format!("[1, {heads_q} or {heads_kv}, {}, gate_dim], for k and {kinds} kinds of pool_k", wanted[2]);
        require(fits, "wk.shape", format!("{:?}", wk.shape()), bound)?;
        let kinds = self.pool_q.len();
        if let Some(wq) = &wq {
            let wanted = [1, heads_q, kinds * head_dim, gate_dim];
            let bound = format!("{wanted:?}, to match q, {kinds} kinds of pool_q and wk");
            require(wq.shape() == wanted, "wq.shape", format!("{:?}", wq.shape()), bound)?;
        } else {
            let bound =
                format!("set: {kinds} kinds of pool_q give {} features, and gate_dim is {gate_dim}", kinds * head_dim);
            require(kinds * head_dim == gate_dim, "wq", "unset", bound)?;
        }
        for (name, operand) in [("wk", Some(&wk)), ("wq", wq.as_ref())] {
            let Some(Operand { layout, .. }) = operand else { continue };
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        let even = gate_dim.is_multiple_of(2) || self.rope_theta.is_none();
        require(even, "wk.shape[3] (gate_dim)", gate_dim, "even: a rotary embedding rotates pairs")?;
        let [rows, cols] = grid.blocks();
        let side = |vectors, heads, share, pools: &Vec<Pool>, rows, weighted| SideFrame {
            vectors,
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
            batch,
            sequences: small_table("sequences", &sequences),
            heads: heads_q,
            gate_dim,
            sides: [
                side("vectors_q", heads_q, 1, &self.pool_q, rows, wq.is_some()),
                side("vectors_k", heads_wk, heads_wk / heads_kv, &self.pool_k, cols, true),
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
        Ok((frame, grid))
    }
}

/// What is chosen, and the logits, which may be the program's own. Returns whether scores are wanted.
pub(super) fn declare_outputs(builder: &mut Builder, frame: &Frame, grid: &BlockGrid, why: &str) -> Result<bool> {
    let of_chosen = Layout::heads_first(DType::U32, grid.shape());
    let chosen = builder.output("chosen", of_chosen.clone())?;
    let logits = builder.output_if("logits", || frame.logits())?;
    let scores = builder.output_if("scores", || frame.logits())?;
    if logits.is_none() {
        builder.scratch("logits", frame.logits())?;
    }
    for (name, operand, wanted) in [
        ("chosen", Some(chosen), of_chosen),
        ("logits", logits, frame.logits()),
        ("scores", scores.clone(), frame.logits()),
    ] {
        let Some(Operand { layout, .. }) = operand else { continue };
        let bound = format!("{:?}, {why}", wanted.shape);
        require(layout.shape == wanted.shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
        require(layout.dtype == wanted.dtype, &format!("{name}.dtype"), layout.dtype, wanted.dtype)?;
        layout.byte_span()?;
        layout.check_output(name)?;
    }
    Ok(scores.is_some())
}
