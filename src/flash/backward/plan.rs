//! What runs for the gradients: decided without a GPU.

use super::FlashBackwardShapes;
use crate::arguments::bind;
use crate::dispatch::Kernel;
use crate::error::require;
use crate::flash::stage::{Pass, Stage};
use crate::flash::uniforms::{BiasDivision, Division, uniforms};
use crate::flash::{FlashParams, check_params};
use crate::packed::Side;
use crate::shader::{Binding, Shader, file};
use crate::slices::cut;
use crate::softmax::Portable;
use crate::{Caps, Error, Layout, Result, Slice};

pub(super) const OF_DELTA: [&str; 4] = ["out", "dout", "lse", "dlse"];
pub(super) const OF_QUERIES: [&str; 7] = ["q", "k", "v", "dout", "dq", "bias", "mask"];
pub(super) const OF_BIAS: [&str; 7] = ["q", "k", "v", "dout", "bias", "mask", "dbias"];
pub(super) const OF_KEYS_AND_VALUES: [&str; 8] = ["q", "k", "v", "dout", "dk", "dv", "bias", "mask"];
pub(super) const OF_KEYS: [&str; 7] = ["q", "k", "v", "dout", "dk", "bias", "mask"];
pub(super) const OF_VALUES: [&str; 7] = ["q", "k", "v", "dout", "dv", "bias", "mask"];
/// Threads of the kernel that takes a row of the output each.
const DELTA_THREADS: u32 = 64;

/// What runs for the gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct FlashBackwardPlan {
    pub(super) delta: Kernel,
    pub(super) delta_slices: Vec<Slice>,
    pub(super) queries: Stage,
    /// One for both gradients, or one each.
    pub(super) keys: Vec<(Stage, &'static [&'static str])>,
    pub(super) bias: Option<Stage>,
    pub(super) stats_bytes: u64,
    engine: Portable,
}

impl FlashBackwardPlan {
    /// Chooses variants, tile sizes and slices.
    ///
    /// # Errors
    /// [`Error::Argument`] for params or shapes that do not fit together, and for a hook that changes scores and has no
    /// gradient; [`Error::Limit`] for a device that has too little.
    pub fn new(caps: &Caps, params: &FlashParams, shapes: &FlashBackwardShapes) -> Result<Self> {
        check_params(caps, params)?;
        shapes.check()?;
        for (i, hook) in params.score_mod.iter().enumerate() {
            let what = format!("score_mod[{i}].grad_entry");
            let bound = format!("the name of the gradient of `{}`: gradients go through it", hook.entry);
            require(hook.grad_entry.is_some(), &what, "unset", bound)?;
        }
        let forward = &shapes.forward;
        let [batch, heads, queries, head_dim] = forward.q.shape;
        let value_dim = forward.v.shape[3];
        let engine = Portable::plan(caps, "flash backward", head_dim, head_dim.max(value_dim))?;
        for name in ["dq", "dk", "dv"] {
            let end = shapes.layout(name).map_or(Ok(0..0), Layout::byte_span)?.end;
            caps.within(name, "maxBufferSize", end, caps.buffer_bytes)?;
        }
        let stats_bytes = 8 * (batch * heads * queries) as u64;
        caps.within("flash backward", "maxStorageBufferBindingSize", stats_bytes, caps.binding_bytes)?;
        let stage = |pass: Pass, names: &[&'static str], flops: usize| {
            let arguments = shapes.arguments(pass.side(), names);
            Stage::plan(caps, params, forward, &engine, pass, arguments, 2.0 * flops as f64)
        };
        let queries = stage(Pass::Queries, &OF_QUERIES, 2 * head_dim + value_dim)?;
        // Where a device binds too few buffers for both gradients, each comes alone.
        let keys = match stage(Pass::KeysAndValues, &OF_KEYS_AND_VALUES, 2 * (head_dim + value_dim)) {
            Err(Error::Limit { limit: "maxStorageBuffersPerShaderStage", .. }) => vec![
                (stage(Pass::Keys, &OF_KEYS, 2 * head_dim + value_dim)?, &OF_KEYS[..]),
                (stage(Pass::Values, &OF_VALUES, head_dim + 2 * value_dim)?, &OF_VALUES[..]),
            ],
            both => vec![(both?, &OF_KEYS_AND_VALUES[..])],
        };
        let bias = match &shapes.dbias {
            None => None,
            Some(_) => {
                let flops = 2.0 * (head_dim + value_dim) as f64;
                Some(Stage::plan(caps, params, forward, &engine, Pass::Bias, shapes.bias_arguments(), flops)?)
            }
        };
        let (delta, delta_slices) = delta(caps, params, shapes, &engine)?;
        Ok(Self { delta, delta_slices, queries, keys, bias, stats_bytes, engine })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = [&self.delta]
            .into_iter()
            .chain(self.queries.kernels())
            .chain(self.keys.iter().flat_map(|(stage, _)| stage.kernels()));
        let kernels = kernels.chain(self.bias.iter().flat_map(Stage::kernels));
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

impl std::fmt::Display for FlashBackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (queries, keys) = (self.queries.slices.len(), self.keys[0].0.slices.len());
        write!(f, "flash backward, {}; {queries} slices for queries, {keys} for keys and values", self.engine)?;
        if self.keys.len() > 1 {
            write!(f, "; dk and dv apart: together they need more storage buffers than there are")?;
        }
        if let Some(masks) = &self.queries.masks {
            write!(f, "; {masks}")?;
        }
        Ok(())
    }
}

fn delta(
    caps: &Caps,
    params: &FlashParams,
    shapes: &FlashBackwardShapes,
    engine: &Portable,
) -> Result<(Kernel, Vec<Slice>)> {
    let [batch, heads, queries, head_dim] = shapes.forward.q.shape;
    let value_dim = shapes.forward.v.shape[3];
    let arguments = shapes.arguments(Side::Queries, &OF_DELTA);
    let tiles = queries.div_ceil(DELTA_THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let flops = 2.0 * f64::from(DELTA_THREADS) * value_dim as f64;
    let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
    let table = Binding::Table { name: "stats", ty: "vec2f", length: None, write: true };
    let (bindings, accesses) = bind(caps, &arguments, vec![Binding::Uniform { name: "params", ty: "Params" }, table]);
    let mut constants = engine.constants(head_dim, value_dim);
    constants.iter_mut().filter(|(name, _)| *name == "WG").for_each(|(_, threads)| *threads = DELTA_THREADS);
    constants.push(("NONE", u32::MAX));
    constants.push(("MINUS_INFINITY_BITS", f32::NEG_INFINITY.to_bits()));
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
    let shader = Shader { name: "flash delta".into(), constants, bindings, accesses, chain: None, files };
    caps.within(
        "flash delta",
        "maxStorageBuffersPerShaderStage",
        shader.storage_buffers(),
        caps.storage_buffers.into(),
    )?;
    Ok((Kernel { shader, arguments, uniforms, tables: vec![None] }, slices))
}
