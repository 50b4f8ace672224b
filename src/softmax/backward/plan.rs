//! What runs for the gradients: decided without a GPU.

use super::BackwardShapes;
use crate::dispatch::Kernel;
use crate::error::require;
use crate::flash::Dense;
use crate::packed::Side;
use crate::shader::{Binding, Shader, file};
use crate::slices::cut;
use crate::softmax::stage::{Pass, Setup, Stage};
use crate::softmax::tiles::Tiles;
use crate::softmax::uniforms::{BiasDivision, Division, uniforms};
use crate::softmax::{AttentionParams, ScoreParams};
use crate::{Caps, Error, Result, Slice};

/// The tensors of a kernel, as its shader calls them.
pub(super) type Names = &'static [&'static str];

pub(super) const OF_DELTA: Names = &["out", "dout", "lse", "dlse"];
const OF_QUERIES: Names = &["q", "k", "v", "dout", "dq", "dq_so_far", "bias", "mask", "blocks", "full_blocks"];
pub(super) const OF_BIAS: Names = &["q", "k", "v", "dout", "bias", "mask", "blocks", "dbias", "full_blocks"];
const OF_KEYS_AND_VALUES: Names = &["q", "k", "v", "dout", "dk", "dv", "bias", "mask", "blocks", "full_blocks"];
const OF_KEYS: Names = &["q", "k", "v", "dout", "dk", "bias", "mask", "blocks", "full_blocks"];
const OF_VALUES: Names = &["q", "k", "v", "dout", "dv", "bias", "mask", "blocks", "full_blocks"];

/// Which keys a pass goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Those of the tokens.
    Own,
    /// Those that every query sees.
    Additional,
}

/// Threads of the kernel that takes a row of the output each.
const DELTA_THREADS: u32 = 64;

/// What runs for the gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    pub(super) delta: Kernel,
    pub(super) delta_slices: Vec<Slice>,
    /// The block mask seen from the keys: chosen and full blocks.
    pub(super) transpositions: Vec<(Kernel, Vec<Slice>)>,
    /// dq, then dk and dv in one pass or in two, then dbias where there is one, then those of additional keys; each with its
    /// tensors.
    pub(super) stages: Vec<(Stage, Names, Over)>,
    pub(super) stats_bytes: u64,
    heading: String,
}

impl BackwardPlan {
    /// Chooses variants, tile sizes and slices.
    ///
    /// # Errors
    /// [`Error::Argument`] for params or shapes that do not fit together, and for a hook that changes scores and has no
    /// gradient; [`Error::Limit`] for a device that has too little.
    pub fn new(caps: &Caps, params: &impl AttentionParams, shapes: &BackwardShapes) -> Result<Self> {
        Self::of(caps, &*params.tiles()?.0, &params.scores(), shapes)
    }

    pub(in crate::softmax) fn of(
        caps: &Caps,
        tiles: &dyn Tiles,
        params: &ScoreParams,
        shapes: &BackwardShapes,
    ) -> Result<Self> {
        params.check(caps)?;
        shapes.check()?;
        tiles.check(&shapes.forward)?;
        for (i, hook) in params.score_mod.iter().enumerate() {
            let what = format!("score_mod[{i}].grad_entry");
            let bound = format!("the name of the gradient of `{}`: gradients go through it", hook.entry);
            require(hook.grad_entry.is_some(), &what, "unset", bound)?;
        }
        let forward_shapes = &shapes.forward;
        let forward = &forward_shapes.own_part();
        let [batch, heads, queries, head_dim] = forward.q.shape;
        let value_dim = forward.v.shape[3];
        let what = format!("{} backward", tiles.family());
        let caps = &caps.for_attention(forward.pairs());
        let engine = tiles.engine(caps, &what, head_dim, head_dim.max(value_dim))?;
        for name in ["dq", "dk", "dv", "d_additional_k", "d_additional_v"] {
            let end = shapes.layout(name).map_or(Ok(0..0), |layout| layout.byte_span())?.end;
            caps.within(name, "maxBufferSize", end, caps.buffer_bytes)?;
        }
        let stats_bytes = 8 * (batch * heads * queries) as u64;
        caps.within(&what, "maxStorageBufferBindingSize", stats_bytes, caps.binding_bytes)?;
        let setup = Setup { caps, tiles, params, shapes: forward, engine: &engine, cells: None, splits: 1 };
        let mut stages = stages(&setup, shapes, Over::Own)?;
        if shapes.dbias.is_some() {
            let flops = 2.0 * (head_dim + value_dim) as f64;
            stages.push((Stage::plan(&setup, Pass::Bias, shapes.bias_arguments(), flops)?, OF_BIAS, Over::Own));
        }
        if let Some(part) = &forward_shapes.additional_part() {
            let (dense, params) = (Dense::default(), params.without_places());
            let engine = dense.engine(caps, &what, head_dim, head_dim.max(value_dim))?;
            let setup =
                Setup { caps, tiles: &dense, params: &params, shapes: part, engine: &engine, cells: None, splits: 1 };
            stages.extend(self::stages(&setup, shapes, Over::Additional)?);
        }
        let (delta, delta_slices) = delta(caps, params, shapes)?;
        let mut transpositions = vec![];
        if let (Some((grid, by_keys)), Some(mask)) = (shapes.blocks_by_keys(), &forward.block_mask) {
            for (from, to) in [&mask.chosen, &mask.full].into_iter().zip(&by_keys) {
                if let (Some(from), Some(to)) = (from, to) {
                    transpositions.push(grid.transposition([from, to]).plan(caps)?);
                }
            }
        }
        let heading = setup.heading().replacen(tiles.family(), &what, 1);
        Ok(Self { delta, delta_slices, transpositions, stages, stats_bytes, heading })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let first = self.transpositions.iter().map(|(kernel, _)| kernel).chain([&self.delta]);
        let kernels = first.chain(self.stages.iter().flat_map(|(stage, ..)| stage.kernels()));
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

impl std::fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.heading)?;
        for (stage, ..) in &self.stages {
            let (slices, pass) = (stage.slices.len(), stage.pass.gradients());
            write!(f, "; {slices} slice{} for {pass}", if slices == 1 { "" } else { "s" })?;
        }
        if self.stages.iter().any(|(stage, ..)| stage.pass == Pass::Keys) {
            write!(f, "; dk and dv apart: together they need more storage buffers than there are")?;
        }
        if let Some(masks) = self.stages.iter().find_map(|(stage, ..)| stage.masks.as_ref()) {
            write!(f, "; {masks}")?;
        }
        Ok(())
    }
}

/// The passes for queries, and for keys and values.
fn stages(setup: &Setup, shapes: &BackwardShapes, over: Over) -> Result<Vec<(Stage, Names, Over)>> {
    let (head_dim, value_dim) = (shapes.forward.q.shape[3], shapes.forward.v.shape[3]);
    let stage = |pass: Pass, names: Names, flops: usize| -> Result<_> {
        let arguments = shapes.arguments(pass.side(), names, over);
        Ok((Stage::plan(setup, pass, arguments, 2.0 * flops as f64)?, names, over))
    };
    let mut stages = vec![stage(Pass::Queries, OF_QUERIES, 2 * head_dim + value_dim)?];
    // Where a device binds too few buffers for both gradients, each comes alone.
    match stage(Pass::KeysAndValues, OF_KEYS_AND_VALUES, 2 * (head_dim + value_dim)) {
        Err(Error::Limit { limit: "maxStorageBuffersPerShaderStage", .. }) => {
            stages.push(stage(Pass::Keys, OF_KEYS, 2 * head_dim + value_dim)?);
            stages.push(stage(Pass::Values, OF_VALUES, head_dim + 2 * value_dim)?);
        }
        both => stages.push(both?),
    }
    Ok(stages)
}

fn delta(caps: &Caps, params: &ScoreParams, shapes: &BackwardShapes) -> Result<(Kernel, Vec<Slice>)> {
    let [batch, heads, queries, _] = shapes.forward.q.shape;
    let value_dim = shapes.forward.v.shape[3];
    let arguments = shapes.arguments(Side::Queries, OF_DELTA, Over::Own);
    let tiles = queries.div_ceil(DELTA_THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let flops = 2.0 * f64::from(DELTA_THREADS) * value_dim as f64;
    let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
    let table = Binding::Table { name: "stats", ty: "vec2f", length: None, write: true };
    let width = value_dim as u32;
    let constants = vec![("WG", DELTA_THREADS), ("HEAD_DIM_V", width), ("DV4", width.div_ceil(4)), ("SPLITS", 1)];
    let mut files = vec![file::PARAMS, file::DELTA, file::ROWS_STRIDED, file::ROW, file::ELEMENT];
    files.extend(shapes.dlse.is_none().then_some(file::NO_DLSE));
    let division = Division {
        tiles,
        sequences: 0,
        map: [0; 2],
        scored: false,
        side: Side::Queries,
        bias: BiasDivision::default(),
    };
    let uniforms = slices.iter().map(|s| uniforms(caps, params, &shapes.forward, division, &arguments, s)).collect();
    let shader = Shader::of("delta", constants, files, None);
    Ok((Kernel::new(caps, shader, arguments, vec![(table, None)], uniforms).fit(caps)?, slices))
}
