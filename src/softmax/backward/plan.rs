//! What runs for the gradients: decided without a GPU.

use super::{BackwardShapes, SHARE_OF_DQ};
use crate::arguments::bind;
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

/// The tensors of a kernel: what its shader calls them, and what we do.
pub(super) type Names = &'static [(&'static str, &'static str)];

pub(super) const OF_DELTA: Names = &[("out", "out"), ("dout", "dout"), ("lse", "lse"), ("dlse", "dlse")];
const OF_QUERIES: Names = &[
    ("q", "q"),
    ("k", "k"),
    ("v", "v"),
    ("dout", "dout"),
    ("dq", "dq"),
    ("dq_so_far", "dq_so_far"),
    ("bias", "bias"),
    ("mask", "mask"),
];
pub(super) const OF_BIAS: Names =
    &[("q", "q"), ("k", "k"), ("v", "v"), ("dout", "dout"), ("bias", "bias"), ("mask", "mask"), ("dbias", "dbias")];
const OF_KEYS_AND_VALUES: Names = &[
    ("q", "q"),
    ("k", "k"),
    ("v", "v"),
    ("dout", "dout"),
    ("dk", "dk"),
    ("dv", "dv"),
    ("bias", "bias"),
    ("mask", "mask"),
];
const OF_KEYS: Names =
    &[("q", "q"), ("k", "k"), ("v", "v"), ("dout", "dout"), ("dk", "dk"), ("bias", "bias"), ("mask", "mask")];
const OF_VALUES: Names =
    &[("q", "q"), ("k", "k"), ("v", "v"), ("dout", "dout"), ("dv", "dv"), ("bias", "bias"), ("mask", "mask")];
// Where there are additional keys, dq comes in two passes.
const SHARE_OF_QUERIES: Names = &[
    ("q", "q"),
    ("k", "k"),
    ("v", "v"),
    ("dout", "dout"),
    ("dq", SHARE_OF_DQ),
    ("dq_so_far", "dq_so_far"),
    ("bias", "bias"),
    ("mask", "mask"),
];
const REST_OF_QUERIES: Names = &[
    ("q", "q"),
    ("k", "additional_k"),
    ("v", "additional_v"),
    ("dout", "dout"),
    ("dq", "dq"),
    ("dq_so_far", SHARE_OF_DQ),
];
const OF_ADDITIONAL: Names = &[
    ("q", "q"),
    ("k", "additional_k"),
    ("v", "additional_v"),
    ("dout", "dout"),
    ("dk", "d_additional_k"),
    ("dv", "d_additional_v"),
];
/// Threads of the kernel that takes a row of the output each.
const DELTA_THREADS: u32 = 64;

/// What runs for the gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPlan {
    pub(super) delta: Kernel,
    pub(super) delta_slices: Vec<Slice>,
    /// dq, then dk and dv in one pass or in two, then dbias where there is one, then those of additional keys; each with its
    /// tensors.
    pub(super) stages: Vec<(Stage, Names)>,
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
        let forward = &shapes.forward.own_part();
        let [batch, heads, queries, head_dim] = forward.q.shape;
        let value_dim = forward.v.shape[3];
        let what = format!("{} backward", tiles.family());
        let engine = tiles.engine(caps, &what, head_dim, head_dim.max(value_dim))?;
        for name in ["dq", "dk", "dv", "d_additional_k", "d_additional_v"] {
            let end = shapes.layout(name).map_or(Ok(0..0), |layout| layout.byte_span())?.end;
            caps.within(name, "maxBufferSize", end, caps.buffer_bytes)?;
        }
        let stats_bytes = 8 * (batch * heads * queries) as u64;
        caps.within(&what, "maxStorageBufferBindingSize", stats_bytes, caps.binding_bytes)?;
        let setup = Setup { caps, tiles, params, shapes: forward, engine: &engine };
        let planned = |setup: &Setup, pass: Pass, names: Names, flops: usize| -> Result<_> {
            let arguments = match pass {
                Pass::Bias => shapes.bias_arguments(),
                _ => shapes.arguments(pass.side(), names),
            };
            Ok((Stage::plan(setup, pass, arguments, 2.0 * flops as f64)?, names))
        };
        let stage = |pass, names, flops| planned(&setup, pass, names, flops);
        let additional = shapes.forward.additional_part();
        let of_queries = if additional.is_some() { SHARE_OF_QUERIES } else { OF_QUERIES };
        let mut stages = vec![stage(Pass::Queries, of_queries, 2 * head_dim + value_dim)?];
        // Where a device binds too few buffers for both gradients, each comes alone.
        match stage(Pass::KeysAndValues, OF_KEYS_AND_VALUES, 2 * (head_dim + value_dim)) {
            Err(Error::Limit { limit: "maxStorageBuffersPerShaderStage", .. }) => {
                stages.push(stage(Pass::Keys, OF_KEYS, 2 * head_dim + value_dim)?);
                stages.push(stage(Pass::Values, OF_VALUES, head_dim + 2 * value_dim)?);
            }
            both => stages.push(both?),
        }
        if shapes.dbias.is_some() {
            stages.push(stage(Pass::Bias, OF_BIAS, head_dim + value_dim)?);
        }
        if let Some(shapes) = &additional {
            let (dense, params) = (Dense::default(), params.without_places());
            let engine = dense.engine(caps, &what, head_dim, head_dim.max(value_dim))?;
            let setup = Setup { caps, tiles: &dense, params: &params, shapes, engine: &engine };
            stages.push(planned(&setup, Pass::Queries, REST_OF_QUERIES, 2 * head_dim + value_dim)?);
            stages.push(planned(&setup, Pass::KeysAndValues, OF_ADDITIONAL, 2 * (head_dim + value_dim))?);
        }
        let (delta, delta_slices) = delta(caps, params, shapes)?;
        let heading = setup.heading().replacen(tiles.family(), &what, 1);
        Ok(Self { delta, delta_slices, stages, stats_bytes, heading })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = std::iter::once(&self.delta).chain(self.stages.iter().flat_map(|(stage, _)| stage.kernels()));
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

impl std::fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.heading)?;
        for (stage, _) in &self.stages {
            let (slices, pass) = (stage.slices.len(), stage.pass.gradients());
            write!(f, "; {slices} slice{} for {pass}", if slices == 1 { "" } else { "s" })?;
        }
        if self.stages.iter().any(|(stage, _)| stage.pass == Pass::Keys) {
            write!(f, "; dk and dv apart: together they need more storage buffers than there are")?;
        }
        if let Some(masks) = self.stages.iter().find_map(|(stage, _)| stage.masks.as_ref()) {
            write!(f, "; {masks}")?;
        }
        Ok(())
    }
}

fn delta(caps: &Caps, params: &ScoreParams, shapes: &BackwardShapes) -> Result<(Kernel, Vec<Slice>)> {
    let [batch, heads, queries, _] = shapes.forward.q.shape;
    let value_dim = shapes.forward.v.shape[3];
    let arguments = shapes.arguments(Side::Queries, OF_DELTA);
    let tiles = queries.div_ceil(DELTA_THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let flops = 2.0 * f64::from(DELTA_THREADS) * value_dim as f64;
    let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
    let table = Binding::Table { name: "stats", ty: "vec2f", length: None, write: true };
    let (bindings, accesses) = bind(caps, &arguments, vec![Binding::Uniform { name: "params", ty: "Params" }, table]);
    let width = value_dim as u32;
    let constants = vec![("WG", DELTA_THREADS), ("HEAD_DIM_V", width), ("DV4", width.div_ceil(4))];
    let mut files = vec![file::PARAMS, file::DELTA, file::ROWS_STRIDED, file::ELEMENT];
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
    let shader = Shader { name: "delta".into(), constants, bindings, accesses, chain: None, files };
    caps.within("delta", "maxStorageBuffersPerShaderStage", shader.storage_buffers(), caps.storage_buffers.into())?;
    Ok((Kernel { shader, arguments, uniforms, tables: vec![None] }, slices))
}
