//! The gate's kernels as planned: what they read and write, by name.

use super::frame::Frame;
use crate::arguments::Argument;
use crate::dispatch::{Kernel, Scratch};
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::steps::{self, Step, Steps, StepsPrepared};
pub(super) use crate::steps::{EACH, Heads, as_prepared};
use crate::{Caps, Gpu, Result, Slice, rotary};

/// A tensor of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Q,
    K,
    Wq,
    Wk,
    NormQ,
    NormK,
    Chosen,
    Logits,
    Scores,
    /// Pooled tokens.
    PooledQ,
    PooledK,
    /// The gate's vectors.
    VectorsQ,
    VectorsK,
    /// What a target is made of, and the target.
    Wanted,
    Target,
    /// Gradient of the logits.
    LogitsGradient,
    /// The loss row by row, and all of it.
    RowShares,
    Loss,
    /// Gradients of the gate's vectors, and of the projected features.
    VectorsQGradient,
    VectorsKGradient,
    ProjectedQGradient,
    ProjectedKGradient,
    /// Of weights and norms.
    WqGradient,
    WkGradient,
    NormQRows,
    NormKRows,
    NormQGradient,
    NormKGradient,
}

pub(super) type Places = steps::Places<Part>;
pub(super) type Chain = Steps<Part>;
pub(super) type ChainPrepared = StepsPrepared<Part>;
pub(super) type Tensors<'a> = steps::Tensors<'a, Part>;

/// The uniform struct of `shaders/gate/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    pub x: [u32; 4],
    pub weights: [u32; 4],
    pub norm: [u32; 4],
    pub query: [u32; 4],
    pub key: [u32; 4],
    pub logits: [u32; 4],
    pub scores: [u32; 4],
    pub wanted: [u32; 4],
    pub chosen: [u32; 4],
    pub gradient: [u32; 4],
    pub shares: [u32; 4],
    pub to: [u32; 4],
    pub first: [u32; 3],
    pub rows: u32,
    pub cols: u32,
    pub query_block: u32,
    pub key_block: u32,
    pub causal: u32,
    pub past: u32,
    pub complete: u32,
    pub forced: u32,
    pub side: u32,
    pub joined: u32,
    pub pools: u32,
    pub ring: u32,
    pub pad: u32,
    pub pool: [u32; 4],
    pub bound: f32,
    pub scale: f32,
    pub epsilon: f32,
    pub weight: f32,
    pub heads: u32,
    pub inner: u32,
    pub from_row: u32,
    pub end: u32,
}

/// A kernel before it is planned.
pub(super) struct Task {
    pub name: &'static str,
    pub files: Vec<&'static str>,
    pub constants: Vec<(&'static str, u32)>,
    /// Name in the shader, tensor, access, heads.
    pub tensors: Vec<(&'static str, Part, AccessKind, Heads)>,
    pub tables: Vec<(Binding, Option<Vec<u8>>)>,
    /// Batch entries, heads and tiles, and floating-point operations of a tile.
    pub work: [usize; 3],
    pub flops: f64,
    pub params: Params,
}

/// Threads of a workgroup.
pub(super) const THREADS: u32 = 64;

impl Task {
    pub fn plan(self, caps: &Caps, frame: &Frame, places: &Places) -> Result<Step<Part>> {
        let Task { name, files, constants, tensors, mut tables, work: [batches, heads, tiles], flops, params } = self;
        let arguments: Vec<Argument> =
            tensors.iter().map(|&(name, part, kind, heads)| places.argument(name, part, kind, heads)).collect();
        let whole = Slice { batches: 0..batches, heads: 0..heads, tiles: 0..tiles };
        let slices = if batches * heads * tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
        let of_slice = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            x: address("x"),
            weights: address("weights"),
            norm: address("norm"),
            query: address("query"),
            key: address("key"),
            logits: address("logits"),
            scores: address("scores"),
            wanted: address("wanted"),
            chosen: address("chosen"),
            gradient: address("gradient"),
            shares: address("shares"),
            to: address("to"),
            first: slice.first(),
            ..params
        };
        tables.insert(0, frame.table());
        let files = [vec![file::GATE_SHARED, file::ROW, file::ELEMENT], files].concat();
        let constants = [vec![("WG", THREADS)], constants].concat();
        let shader = Shader::of(format!("gate {name}"), constants, files, None);
        let kernel = Kernel::sliced(caps, shader, arguments, tables, &slices, of_slice)?;
        Ok(Step { kernel, slices, parts: tensors.into_iter().map(|(_, part, ..)| part).collect() })
    }
}

/// Compiles a chain, with the table of rotary angles if there is one.
pub(super) async fn prepared(gpu: &Gpu, chain: &Chain, angles: Option<(f32, usize)>) -> Result<ChainPrepared> {
    let tables = match angles {
        Some((theta, dim)) => rotary::angles(gpu, theta, dim).await?,
        None => Scratch::default(),
    };
    ChainPrepared::new(gpu, chain, &tables).await
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::GATE_SHARED,
            x weights norm query key logits scores wanted chosen gradient shares to first rows cols query_block key_block causal past
            complete forced side joined pools ring pool bound scale epsilon weight heads inner from_row end
        );
    }
}
