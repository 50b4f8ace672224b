//! What runs: decided without a GPU.

use super::{LinearParams, LinearShapes};
use crate::arguments::Argument;
use crate::dispatch::Kernel;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::softmax::tiles::{float_table, small_table};
use crate::{Caps, Layout, Result, Slice};
use std::fmt;

/// The uniform struct of `shaders/linear/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    g: [u32; 4],
    h0: [u32; 4],
    o: [u32; 4],
    ht: [u32; 4],
    first: [u32; 3],
    heads: u32,
    groups: [u32; 3],
    scale: f32,
    causal: u32,
    reverse: u32,
    pad: [u32; 2],
}

/// Threads of a workgroup, columns of the state that it keeps, tokens between two sums over its threads.
const THREADS: usize = 64;
const COLS: usize = 16;
const BATCH: usize = 8;

/// What runs. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearPlan {
    pub(super) kernel: Kernel,
    pub(super) slices: Vec<Slice>,
    words: String,
}

impl LinearPlan {
    /// Chooses the way and the slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device that has
    /// too little.
    pub fn new(caps: &Caps, params: &LinearParams, shapes: &LinearShapes) -> Result<Self> {
        shapes.check(params)?;
        let LinearShapes { q, k, v, g, h0, o, ht, in_place, .. } = shapes;
        let heads = shapes.heads();
        let ([_, _, tokens, head_dim], value_dim) = (q.shape, v.shape[3]);
        caps.within("linear attention", "maxComputeInvocationsPerWorkgroup", THREADS as u64, caps.invocations.into())?;
        let of_state = if *in_place { AccessKind::UpdateBits } else { AccessKind::StoreBits };
        let all: [(_, Option<&Layout>, _); 7] = [
            ("q", Some(q), AccessKind::Load1),
            ("k", Some(k), AccessKind::Load1),
            ("v", Some(v), AccessKind::Load4),
            ("g", g.as_ref(), AccessKind::Load1),
            ("h0", h0.as_ref(), AccessKind::LoadBits),
            ("o", Some(o), AccessKind::Store4),
            ("ht", ht.as_ref(), of_state),
        ];
        let arguments: Vec<Argument> = all
            .into_iter()
            .zip(shapes.buffers)
            .filter_map(|((name, layout, kind), buffer)| {
                let layout = layout?.clone();
                let group = heads / layout.shape[1];
                Some(Argument { name, layout, kind, group, spread: 1, buffer, whole: false })
            })
            .collect();
        let [entries, ..] = shapes.state_shape();
        let whole = Slice { batches: 0..entries, heads: 0..heads, tiles: 0..value_dim.div_ceil(COLS) };
        let flops = 5.0 * (tokens * head_dim * COLS) as f64;
        let slices = if entries == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
        let groups = [q, k, v].map(|layout| (heads / layout.shape[1]) as u32);
        let of_slice = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            q: address("q"),
            k: address("k"),
            v: address("v"),
            g: address("g"),
            h0: address("h0"),
            o: address("o"),
            ht: address("ht"),
            first: slice.first(),
            heads: heads as u32,
            groups,
            scale: params.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            causal: u32::from(params.causal),
            reverse: u32::from(params.reverse),
            pad: [0; 2],
        };
        let mut tables = vec![small_table("sequences", &shapes.sequences())];
        let gate = match (g, &params.slopes) {
            (Some(_), _) => {
                let problem = Binding::Table { name: "problem", ty: "u32", length: None, write: true };
                tables.push((problem, None));
                file::LINEAR_GATE_BY_TOKEN
            }
            (None, Some(slopes)) => {
                let changes: Vec<f32> = slopes.iter().map(|slope| (-f64::from(*slope)).exp_m1() as f32).collect();
                tables.push(float_table("changes", &changes));
                file::LINEAR_GATE_BY_HEAD
            }
            (None, None) => file::LINEAR_UNGATED,
        };
        let from = match (in_place, h0) {
            (true, _) => file::LINEAR_IN_PLACE,
            (false, Some(_)) => file::LINEAR_FROM_STATE,
            (false, None) => file::LINEAR_FROM_NOTHING,
        };
        let to = if ht.is_some() { file::LINEAR_TO_STATE } else { file::LINEAR_TO_NOTHING };
        let files = vec![file::LINEAR_SHARED, file::LINEAR_RECURRENT, gate, from, to, file::ROW, file::ELEMENT];
        let constants =
            [("WG", THREADS), ("COLS", COLS), ("BATCH", BATCH), ("HEAD_DIM", head_dim), ("HEAD_DIM_V", value_dim)];
        let constants = constants.map(|(name, value)| (name, value as u32)).to_vec();
        let shader = Shader::of("linear recurrent", constants, files, None);
        let kernel = Kernel::sliced(caps, shader, arguments, tables, &slices, of_slice)?;
        let words = format!(
            "linear attention, token by token: {THREADS} threads keep {head_dim} × {COLS} of a head's state in registers, {} \
             workgroups a head; {} slice{}",
            value_dim.div_ceil(COLS),
            slices.len(),
            if slices.len() == 1 { "" } else { "s" }
        );
        Ok(Self { kernel, slices, words })
    }

    /// The boxes of work that are dispatched one after another.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        vec![(self.kernel.shader.name.as_str(), self.kernel.shader.source())]
    }
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words)
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(Params, file::LINEAR_SHARED, q k v g h0 o ht first heads groups scale causal reverse pad);
    }
}
