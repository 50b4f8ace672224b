//! What runs for gradients: decided without a GPU.

use super::plan::{BY_SEQUENCE, NAMES};
use super::stage::{Pass, Setup, Stage};
use super::uniforms::{BiasDivision, Division, uniforms};
use super::visibility::Visibility;
use super::{AttentionShapes, Dense, Outputs, Portable, ScoreParams, Tiling};
use crate::block_mask::transposition;
use crate::error::{require, require_set};
use crate::layout::MAX_HEAD_DIM;
use crate::packed::Side;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, Heads, Operand, Part, Program, Step, Table, cut};
use crate::{BlockGrid, Caps, DType, Error, Layout, Result, Shapes};
use std::fmt::Write;

/// Tensors of a backward pass, besides those of the forward pass.
const GRADIENTS: [&str; 9] =
    ["dout", "dlse", "dq_so_far", "dq", "dk", "dv", "dbias", "d_additional_k", "d_additional_v"];

/// The tensors of a kernel, as its shader calls them.
type Names = &'static [&'static str];

const OF_DELTA: Names = &["out", "dout", "lse", "dlse"];
const OF_QUERIES: Names = &["q", "k", "v", "dout", "dq", "dq_so_far", "bias", "mask", "blocks", "full_blocks"];
const OF_QUERIES_WITH_LISTS: Names = &["q", "k", "v", "dout", "dq", "dq_so_far", "bias", "mask", "tokens"];
const OF_BIAS: Names = &["q", "k", "v", "dout", "bias", "mask", "blocks", "dbias", "full_blocks"];
const OF_KEYS_AND_VALUES: Names = &["q", "k", "v", "dout", "dk", "dv", "bias", "mask", "blocks", "full_blocks"];
const OF_KEYS: Names = &["q", "k", "v", "dout", "dk", "bias", "mask", "blocks", "full_blocks"];
const OF_VALUES: Names = &["q", "k", "v", "dout", "dv", "bias", "mask", "blocks", "full_blocks"];

/// Threads of the kernel that takes a row of the output each.
const DELTA_THREADS: u32 = 64;

/// The tensors of a backward pass over one set of keys.
#[derive(Clone)]
struct Gradients {
    forward: AttentionShapes,
    dout: Operand,
    dlse: Option<Operand>,
    /// Neither where weights are transposed.
    dq: Option<Operand>,
    dk: Option<Operand>,
    dv: Operand,
    dbias: Option<Operand>,
    dq_so_far: Option<Operand>,
    /// The chosen and the full blocks seen from the keys.
    by_keys: [Option<Operand>; 2],
}

pub(super) fn plan(caps: &Caps, visibility: &dyn Visibility, params: &ScoreParams, shapes: &Shapes) -> Result<Program> {
    params.check(caps)?;
    shapes.check_names(&[NAMES[0], &GRADIENTS].concat(), NAMES[1])?;
    let mut builder = Builder::new(caps, shapes)?;
    let forward = AttentionShapes::new(&mut builder, shapes, Outputs::Read)?;
    forward.check()?;
    visibility.check(&forward)?;
    check_hooks(params)?;
    let (forward, lists) = forward.with_ready_lists(&mut builder, true)?;
    let (own, additional) = Gradients::new(&mut builder, forward, shapes.wants("dbias"))?;
    builder.hook_buffers(&params.hooks())?;
    let what = format!("{} backward", visibility.family());
    let caps = &caps.for_attention(own.forward.pairs());
    let sizes = own.forward.sizes(&what, visibility.memory_per_row());
    let engine = Tiling::gradients(caps, sizes)?;
    let (setup, first) = own.begin(&mut builder, caps, (visibility, lists), params, &engine)?;
    let over_all_keys = visibility.over_all_keys();
    let of_keys = Setup { visibility: over_all_keys.as_deref().unwrap_or(visibility), ..setup };
    let few = visibility.few(&own.forward).filter(|few| over_all_keys.is_some() && few.rows <= 16);
    let few = few.map(|few| Tiling::gradients_of_few(caps, sizes, if few.rows > 8 { 16 } else { 8 })).transpose()?;
    let of_queries = Setup { engine: few.as_ref().unwrap_or(&engine), ..setup };
    let mut stages = own.stages(&mut builder, &of_queries, &of_keys)?;
    if own.dbias.is_some() {
        let engine = Tiling::Portable(Portable::gradients(caps, sizes)?);
        let setup = Setup { engine: &engine, ..of_keys };
        let flops = 2.0 * (sizes.dims[0] + sizes.dims[1]) as f64;
        stages.push(Stage::plan(&mut builder, &setup, Pass::Bias, own.bias_arguments(), flops)?);
    }
    let heading = setup.heading().replacen(visibility.family(), &what, 1);
    if let Some(additional) = &additional {
        let (dense, params) = (Dense::default(), params.without_places());
        let (shapes, prefix) = (&additional.forward, "additional ");
        let engine = Tiling::gradients(caps, shapes.sizes(&what, 0))?;
        let setup = Setup { visibility: &dense, params: &params, shapes, engine: &engine, prefix, ..setup };
        stages.extend(additional.stages(&mut builder, &setup, &setup)?);
    }
    stages.iter().for_each(|stage| stage.add_slices(&mut builder, &first));
    let note = over_all_keys
        .map_or("", |_| "; dk and dv by tiles of all keys and lists, each computed where a list has a key of it");
    builder.finish(words(heading, &stages) + note)
}

/// What keys get of `u`: the gradient of values, alone.
pub(super) fn plan_transposed(
    caps: &Caps,
    visibility: &dyn Visibility,
    params: &ScoreParams,
    shapes: &Shapes,
) -> Result<Program> {
    params.check(caps)?;
    shapes.check_names(&[NAMES[0], &["u"]].concat(), NAMES[1])?;
    let mut builder = Builder::new(caps, shapes)?;
    let (u, k) = (builder.input("u")?, builder.input("k")?);
    let width = u.shape()[3];
    require((1..=MAX_HEAD_DIM).contains(&width), "u.shape[3] (width)", width, format!("within 1..={MAX_HEAD_DIM}"))?;
    let [batch, heads_kv, keys, _] = k.shape();
    let out = builder.output("out", Layout::heads_first(u.layout.dtype, [batch, heads_kv, keys, width]))?;
    let forward = AttentionShapes::new(&mut builder, shapes, Outputs::Transposed)?;
    let [batch, heads, queries, _] = forward.q.shape();
    for (name, operand, wanted) in
        [("u", &u, [batch, heads, queries, width]), ("out", &out, [batch, heads_kv, keys, width])]
    {
        let bound = format!("{wanted:?}");
        require(operand.shape() == wanted, &format!("{name}.shape"), format!("{:?}", operand.shape()), bound)?;
        require(operand.layout.dtype.is_float(), &format!("{name}.dtype"), operand.layout.dtype, "f32, f16 or bf16")?;
        caps.within(name, "maxBufferSize", operand.layout.byte_span()?.end, caps.buffer_bytes)?;
    }
    out.layout.check_output("out")?;
    let additional = forward.additional.is_none();
    require(additional, "additional_k", "set", "unset where weights are transposed: merge their part")?;
    forward.check()?;
    visibility.check(&forward)?;
    check_hooks(params)?;
    let (forward, lists) = forward.with_ready_lists(&mut builder, true)?;
    let (dlse, dbias, dq_so_far, by_keys) = (None, None, None, [None, None]);
    let own = Gradients { forward, dout: u, dlse, dq: None, dk: None, dv: out, dbias, dq_so_far, by_keys };
    let own = own.with_blocks_by_keys(&mut builder)?;
    builder.hook_buffers(&params.hooks())?;
    let what = format!("{} transposed", visibility.family());
    let caps = &caps.for_attention(own.forward.pairs());
    let engine = Tiling::gradients(caps, own.forward.sizes(&what, visibility.memory_per_row()))?;
    let (setup, first) = own.begin(&mut builder, caps, (visibility, lists), params, &engine)?;
    let over_all_keys = visibility.over_all_keys();
    let of_keys = over_all_keys.as_deref().unwrap_or(visibility);
    let heading = setup.heading().replacen(visibility.family(), &what, 1);
    let setup = Setup { alone: true, visibility: of_keys, ..setup };
    let [head_dim, value_dim] = [own.forward.q.shape()[3], width];
    let arguments = own.arguments(Pass::Values.side(), OF_VALUES);
    let flops = 2.0 * (head_dim + 2 * value_dim) as f64;
    let stage = Stage::plan(&mut builder, &setup, Pass::Values, arguments, flops)?;
    stage.add_slices(&mut builder, &first);
    builder.finish(words(heading, &[stage]))
}

/// Gradients go through the score's hooks.
fn check_hooks(params: &ScoreParams) -> Result<()> {
    for (i, hook) in params.score_mod.iter().enumerate() {
        let what = format!("score_mod[{i}].grad_entry");
        let bound = format!("the name of the gradient of `{}`: gradients go through it", hook.entry);
        require(hook.grad_entry.is_some(), &what, "unset", bound)?;
    }
    Ok(())
}

fn words(mut words: String, stages: &[Stage]) -> String {
    for stage in stages {
        let (slices, pass) = (stage.parts.len(), stage.pass.name());
        let _ = write!(words, "; {slices} slice{} for {pass}", if slices == 1 { "" } else { "s" });
    }
    if stages.iter().any(|stage| stage.pass == Pass::Keys) {
        words += "; dk and dv apart: together they need more storage buffers than there are";
    }
    if let Some(masks) = stages.iter().find_map(|stage| stage.masks.as_ref()) {
        let _ = write!(words, "; {masks}");
    }
    words
}

impl Gradients {
    /// Those over the tokens' own keys, and those over the additional ones.
    fn new(builder: &mut Builder, forward: AttentionShapes, bias: bool) -> Result<(Self, Option<Self>)> {
        let dout = builder.input("dout")?;
        let (dlse, dq_so_far) = (builder.tensor("dlse"), builder.tensor("dq_so_far"));
        let mut like = |name: &'static str, like: &Operand| {
            builder.output(name, Layout::heads_first(like.layout.dtype, like.shape()))
        };
        let (dq, dk, dv) = (like("dq", &forward.q)?, like("dk", &forward.k)?, like("dv", &forward.v)?);
        let additional = match &forward.additional {
            Some([k, v]) => Some([like("d_additional_k", k)?, like("d_additional_v", v)?]),
            None => None,
        };
        for name in ["d_additional_k", "d_additional_v"] {
            let given = builder.tensor(name).is_some();
            require_set(name, given, forward.additional.is_some(), "as the additional keys are")?;
        }
        let of_bias = Layout::heads_first(DType::F32, forward.bias_shape());
        require(forward.bias.is_some() || !bias, "dbias", "set", "unset without a bias")?;
        let dbias = bias.then(|| builder.output("dbias", of_bias)).transpose()?;
        let (by_keys, of_q, dk) = ([None, None], dq.shape(), Some(dk));
        let own = Self { forward, dout, dlse, dq: Some(dq), dk, dv, dbias, dq_so_far, by_keys };
        own.check(builder.caps, additional.as_ref())?;
        let mut own = own.with_blocks_by_keys(builder)?;
        let Some((part, [dk, dv])) = own.forward.additional_part().zip(additional) else { return Ok((own, None)) };
        // dq comes in two passes: the share of the tokens' own keys, then that of the additional ones.
        let share = builder.scratch("share of dq", Layout::heads_first(DType::F32, of_q))?;
        let (dq_so_far, dbias, by_keys) = (Some(share.clone()), None, [None, None]);
        let additional = Self { forward: part, dk: Some(dk), dv, dq_so_far, dbias, by_keys, ..own.clone() };
        own.dq = Some(share);
        Ok((own, Some(additional)))
    }

    /// With room for the block mask seen from the keys.
    fn with_blocks_by_keys(mut self, builder: &mut Builder) -> Result<Self> {
        let Some(grid) = self.block_grid() else { return Ok(self) };
        let turned = Layout::heads_first(DType::U32, grid.transposed().shape());
        for (i, name) in ["blocks by keys", "full blocks by keys"].into_iter().enumerate() {
            if self.forward.blocks()[i].is_some() {
                self.by_keys[i] = Some(builder.scratch(name, turned.clone())?);
            }
        }
        Ok(self)
    }

    /// What all passes are planned from, and the dispatches that come before them: the block mask seen from the keys, and what the
    /// gradients know of every row.
    fn begin<'a>(
        &'a self,
        builder: &mut Builder,
        caps: &'a Caps,
        (visibility, mut first): (&'a dyn Visibility, Vec<usize>),
        params: &'a ScoreParams,
        engine: &'a Tiling,
    ) -> Result<(Setup<'a>, Vec<usize>)> {
        let [batch, heads, queries, _] = self.forward.q.shape();
        let stats = builder.scratch_bytes("stats", 8 * (batch * heads * queries) as u64)?;
        for step in self.transpositions(caps)? {
            first.extend(builder.add(&step));
        }
        let delta = self.delta(caps, params, stats)?;
        first.extend(builder.add(&delta));
        let (shapes, stats) = (&self.forward, Some(stats));
        let setup =
            Setup { caps, visibility, params, shapes, engine, cells: None, splits: 1, stats, prefix: "", alone: false };
        Ok((setup, first))
    }

    fn check(&self, caps: &Caps, additional: Option<&[Operand; 2]>) -> Result<()> {
        let AttentionShapes { q, k, v, out, lse, additional: keys, .. } = &self.forward;
        let out = out.as_ref().unwrap_or(lse);
        let of = |i: usize| Some((&additional?[i], &keys.as_ref()?[i]));
        let alike = [
            ("dout", Some((&self.dout, out))),
            ("dlse", self.dlse.as_ref().map(|dlse| (dlse, lse))),
            ("dq_so_far", self.dq_so_far.as_ref().map(|so_far| (so_far, q))),
            ("dq", self.dq.as_ref().map(|dq| (dq, q))),
            ("dk", self.dk.as_ref().map(|dk| (dk, k))),
            ("dv", Some((&self.dv, v))),
            ("d_additional_k", of(0)),
            ("d_additional_v", of(1)),
        ];
        for (name, operand, like) in alike.into_iter().filter_map(|(name, pair)| pair.map(|(a, b)| (name, a, b))) {
            let (layout, bound) = (&operand.layout, format!("{:?}", like.shape()));
            require(layout.shape == like.shape(), &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            let end = layout.byte_span()?.end;
            if !["dout", "dlse", "dq_so_far"].contains(&name) {
                layout.check_output(name)?;
                caps.within(name, "maxBufferSize", end, caps.buffer_bytes)?;
            }
        }
        if let Some(Operand { layout, .. }) = &self.dbias {
            let shape = self.forward.bias_shape();
            let bound = format!("{shape:?}: the bias's, with 1 where it is repeated");
            require(layout.shape == shape, "dbias.shape", format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == DType::F32, "dbias.dtype", layout.dtype, "f32")?;
            layout.byte_span()?;
            layout.check_output("dbias")?;
        }
        let dlse = self.dlse.as_ref().map_or(DType::F32, |dlse| dlse.layout.dtype);
        require(dlse == DType::F32, "dlse.dtype", dlse, "f32")
    }

    /// The grid of the block mask's lists.
    fn block_grid(&self) -> Option<BlockGrid> {
        let mask = self.forward.block_mask.as_ref()?;
        let [batch, heads, ..] = mask.chosen.as_ref()?.shape();
        let [_, _, queries, keys] = self.forward.pairs();
        Some(BlockGrid { batch, heads, queries, keys, block: mask.block })
    }

    /// The block mask seen from the keys.
    fn transpositions(&self, caps: &Caps) -> Result<Vec<Step>> {
        let Some(grid) = self.block_grid() else { return Ok(vec![]) };
        let pairs = self.forward.blocks().into_iter().zip(&self.by_keys);
        pairs.filter_map(|(from, to)| Some(transposition(caps, &grid, [from?, to.as_ref()?]))).collect()
    }

    /// The tensor that a shader over rows of a side calls so.
    fn operand(&self, name: &str, side: Side) -> Option<&Operand> {
        let Self { forward, .. } = self;
        let [blocks, full_blocks] = match side {
            Side::Queries => forward.blocks(),
            Side::Keys => self.by_keys.each_ref().map(Option::as_ref),
        };
        match name {
            "q" => Some(&forward.q),
            "k" => Some(&forward.k),
            "v" => Some(&forward.v),
            "out" => forward.out.as_ref(),
            "lse" => Some(&forward.lse),
            "bias" => forward.bias.as_ref(),
            "mask" => forward.mask.as_ref(),
            "blocks" => blocks,
            "full_blocks" => full_blocks,
            "tokens" => forward.list_tokens().map(|(tokens, _)| tokens),
            "dout" => Some(&self.dout),
            "dlse" => self.dlse.as_ref(),
            "dq" => self.dq.as_ref(),
            "dk" => self.dk.as_ref(),
            "dv" => Some(&self.dv),
            "dbias" => self.dbias.as_ref(),
            _ => self.dq_so_far.as_ref(),
        }
    }

    /// The tensors of a kernel over the rows of one side.
    fn arguments(&self, side: Side, names: Names) -> Vec<Argument> {
        let group = self.forward.q.shape()[1] / self.forward.k.shape()[1];
        let argument = |&name: &&'static str| {
            // Lists of tokens have the heads of their block mask.
            let of_blocks = ["blocks", "full_blocks", "tokens"].contains(&name) && self.forward.block_group() == group;
            let of_keys = ["k", "v", "dk", "dv"].contains(&name) || of_blocks;
            let (group, spread) = match side {
                Side::Queries => (if of_keys { group } else { 1 }, 1),
                Side::Keys => (1, if of_keys { 1 } else { group }),
            };
            let kind = match name {
                "dq" | "dk" | "dv" => AccessKind::Store4,
                "bias" | "mask" | "dlse" => AccessKind::Load1,
                "lse" | "blocks" | "full_blocks" | "tokens" => AccessKind::LoadBits,
                "dbias" => AccessKind::StoreBits,
                _ => AccessKind::Load4,
            };
            let whole = self.forward.packed.is_some() && BY_SEQUENCE.contains(&name);
            Some(Argument::new(name, self.operand(name, side)?, kind, Heads { group, spread, whole }))
        };
        names.iter().filter_map(argument).collect()
    }

    /// The tensors of the gradient of the bias. Work goes by the bias's own batch entries and heads, each of which may stand
    /// for all.
    fn bias_arguments(&self) -> Vec<Argument> {
        let (pairs, bias) = (self.forward.pairs(), self.forward.bias_shape());
        let mut arguments = self.arguments(Side::Queries, OF_BIAS);
        for argument in arguments.iter_mut().filter(|argument| argument.name != "dbias") {
            argument.heads.spread = if bias[1] == pairs[1] { 1 } else { pairs[1] };
            // Tokens of packed sequences lie in one batch entry; bias and mask have one for each sequence.
            let tokens = !BY_SEQUENCE.contains(&argument.name);
            argument.heads.whole = bias[0] != pairs[0] || (tokens && self.forward.packed.is_some());
        }
        arguments
    }

    /// The passes for queries, and for keys and values.
    fn stages(&self, builder: &mut Builder, of_queries: &Setup, of_keys: &Setup) -> Result<Vec<Stage>> {
        let (head_dim, value_dim) = (self.forward.q.shape()[3], self.forward.v.shape()[3]);
        let stage = |builder: &mut Builder, pass: Pass, names: Names, flops: usize| {
            let setup = if pass == Pass::Queries { of_queries } else { of_keys };
            Stage::plan(builder, setup, pass, self.arguments(pass.side(), names), 2.0 * flops as f64)
        };
        let names = if self.forward.token_lists.is_some() { OF_QUERIES_WITH_LISTS } else { OF_QUERIES };
        let mut stages = vec![stage(builder, Pass::Queries, names, 2 * head_dim + value_dim)?];
        // Where a device binds too few buffers for both gradients, each comes alone.
        let before = builder.clone();
        match stage(builder, Pass::KeysAndValues, OF_KEYS_AND_VALUES, 2 * (head_dim + value_dim)) {
            Err(Error::Limit { limit: "maxStorageBuffersPerShaderStage", .. }) => {
                *builder = before;
                stages.push(stage(builder, Pass::Keys, OF_KEYS, 2 * head_dim + value_dim)?);
                stages.push(stage(builder, Pass::Values, OF_VALUES, head_dim + 2 * value_dim)?);
            }
            both => stages.push(both?),
        }
        Ok(stages)
    }

    /// What the gradients know of every row.
    fn delta(&self, caps: &Caps, params: &ScoreParams, stats: usize) -> Result<Step> {
        let [batch, heads, queries, _] = self.forward.q.shape();
        let value_dim = self.forward.v.shape()[3];
        let arguments = self.arguments(Side::Queries, OF_DELTA);
        let tiles = queries.div_ceil(DELTA_THREADS as usize);
        let flops = 2.0 * f64::from(DELTA_THREADS) * value_dim as f64;
        let parts = cut(caps, &arguments, Part::whole([batch, heads, tiles]), flops)?;
        let table = Binding::Table { name: "stats", ty: "vec2f", length: None, write: true };
        let width = value_dim as u32;
        let constants = vec![("WG", DELTA_THREADS), ("HEAD_DIM_V", width), ("DV4", width.div_ceil(4))];
        let files = vec![file::PARAMS, file::DELTA, file::ELEMENT];
        let (side, bias) = (Side::Queries, BiasDivision::default());
        let division = Division { tiles, sequences: 0, map: [0; 2], scored: false, side, bias };
        let shapes = &self.forward;
        let uniforms = |part: &Part| uniforms(params, shapes, division, part);
        let optional = vec![("dlse", AccessKind::Load1)];
        let shader = Shader { optional, ..Shader::of("delta", constants, files, None) };
        Step::new(caps, shader, arguments, vec![(table, Table::Scratch(stats))], parts, uniforms).fit(caps)
    }
}
