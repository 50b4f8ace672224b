//! What runs for given params and shapes: decided without a GPU.

use super::few_queries::FewQueries;
use super::stage::{Pass, Setup, Stage};
use super::visibility::Visibility;
use super::{AttentionShapes, Dense, Outputs, ScoreParams, Tiling};
use crate::merge::{Partial, merge_pairs, merge_splits};
use crate::packed::Side;
use crate::program::shader::AccessKind;
use crate::program::{Argument, Builder, EACH, Heads, Operand, Program};
use crate::{Caps, DType, Layout, Result, Shapes};
use std::fmt::Write;

/// Tensors and numbers of a forward pass.
pub(crate) const NAMES: [&[&str]; 2] = [
    &[
        "q",
        "k",
        "v",
        "out",
        "lse",
        "bias",
        "mask",
        "additional_k",
        "additional_v",
        "block_mask.chosen",
        "block_mask.full",
        "token_lists.tokens",
        "seqlens_q",
        "seqlens_k",
        "cu_seqlens_q",
        "cu_seqlens_k",
        "buffers.*",
    ],
    &[
        "seqlens_q",
        "seqlens_k",
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "block_mask.block",
        "block_mask.blocks",
        "block_mask.heads",
        "token_lists.block",
    ],
];

/// Chooses variant, tile sizes and slices.
pub(super) fn plan(caps: &Caps, visibility: &dyn Visibility, scores: &ScoreParams, shapes: &Shapes) -> Result<Program> {
    scores.check(caps)?;
    shapes.check_names(NAMES[0], NAMES[1])?;
    let mut builder = Builder::new(caps, shapes)?;
    let shapes = AttentionShapes::new(&mut builder, shapes, Outputs::Written)?;
    shapes.check()?;
    for (name, operand) in [("out", shapes.out.as_ref()), ("lse", Some(&shapes.lse))] {
        operand.map_or(Ok(()), |operand| operand.layout.check_output(name))?;
    }
    visibility.check(&shapes)?;
    builder.hook_buffers(&scores.hooks())?;
    let (shapes, first) = shapes.with_ready_lists(&mut builder, false)?;
    let caps = &caps.for_attention(shapes.pairs());
    let end = shapes.out.as_ref().map_or(Ok(0..0), |out| out.layout.byte_span())?.end;
    caps.within("out", "maxBufferSize", end, caps.buffer_bytes)?;
    let Some(additional) = shapes.additional_part() else {
        let plan = PartPlan::new(&mut builder, caps, visibility, scores, &shapes, ("", &first))?;
        let words = plan.words(builder.slices(), None);
        return builder.finish(words);
    };
    // A second attention, dense, over keys that every query sees; merged by log-sum-exp.
    let own = partial(&mut builder, &shapes, "own")?;
    let plan = PartPlan::new(&mut builder, caps, visibility, scores, &shapes.with_outputs(&own), ("own ", &first))?;
    let before = builder.slices();
    let other = partial(&mut builder, &shapes, "additional")?;
    let (dense, scores, additional) = (Dense::default(), scores.without_places(), additional.with_outputs(&other));
    let second = PartPlan::new(&mut builder, caps, &dense, &scores, &additional, ("additional ", &[]))?;
    let second = second.words(builder.slices() - before, None);
    if let Some(out) = &shapes.out {
        merge_pairs(&mut builder, &[own, other], [out.clone(), shapes.lse.clone()])?;
    }
    let words = plan.words(builder.slices(), Some(&second));
    builder.finish(words)
}

/// Out and LSE of a part, f32.
fn partial(builder: &mut Builder, shapes: &AttentionShapes, name: &str) -> Result<Partial> {
    let out = shapes.out.as_ref().unwrap_or(&shapes.lse);
    let mut like = |what: &str, operand: &Operand| {
        builder.scratch(format!("{name} {what}"), Layout::heads_first(DType::F32, operand.shape()))
    };
    Ok([like("out", out)?, like("lse", &shapes.lse)?])
}

impl AttentionShapes {
    /// The same with results elsewhere.
    fn with_outputs(&self, [out, lse]: &Partial) -> Self {
        Self { out: Some(out.clone()), lse: lse.clone(), additional: None, ..self.clone() }
    }
}

/// Attention over one set of keys, its kernels and slices added.
struct PartPlan {
    stage: Stage,
    heading: String,
}

impl PartPlan {
    fn new(
        builder: &mut Builder,
        caps: &Caps,
        visibility: &dyn Visibility,
        scores: &ScoreParams,
        shapes: &AttentionShapes,
        (prefix, first): (&'static str, &[usize]),
    ) -> Result<Self> {
        let (head_dim, value_dim) = (shapes.q.shape()[3], shapes.v.shape()[3]);
        let few = FewQueries::of(visibility, scores, shapes);
        let as_rows = few.filter(|few| few.grouped);
        let as_rows = as_rows.and_then(|_| Some((visibility.grouped(shapes)?, shapes.grouped())));
        let (visibility, shapes) =
            as_rows.as_ref().map_or((visibility, shapes), |(visibility, shapes)| (&**visibility, shapes));
        let sizes = shapes.sizes(visibility.family(), visibility.memory_per_row());
        let engine = match few {
            Some(FewQueries { rows, .. }) => {
                let skips =
                    visibility.choice(Side::Queries).is_some() || shapes.mask.is_some() || !scores.mask_mod.is_empty();
                let columns = visibility.few(shapes).map_or(0, |few| few.columns);
                Tiling::few(caps, sizes, rows, if skips { columns } else { 0 })?
            }
            None => Tiling::plan(caps, sizes)?,
        };
        let splits = few.map_or(1, |few| few.splits);
        let to = [shapes.out.clone().unwrap_or(shapes.lse.clone()), shapes.lse.clone()];
        let parts = if splits > 1 { Some(split(builder, prefix, splits, &to)?) } else { None };
        let setup = Setup {
            caps,
            visibility,
            params: scores,
            shapes,
            engine: &engine,
            cells: None,
            splits,
            stats: None,
            prefix,
            alone: true,
        };
        let flops = 2.0 * (head_dim + value_dim) as f64 / splits as f64;
        let arguments = arguments(shapes, splits, parts.as_ref().unwrap_or(&to));
        let stage = Stage::plan(builder, &setup, Pass::Forward, arguments, flops)?;
        stage.add_slices(builder, first);
        if let Some(parts) = &parts {
            let merge = merge_splits(caps, splits, parts, &to)?;
            builder.add_sliced(&merge);
        }
        let held_back = if few.is_none() { engine.held_back(caps, sizes) } else { None };
        let heading =
            setup.heading() + &few.map_or(String::new(), |few| few.describe()) + &held_back.unwrap_or_default();
        Ok(Self { stage, heading })
    }

    /// What runs and why.
    fn words(&self, slices: usize, additional: Option<&str>) -> String {
        let shader = &self.stage.main.shader;
        let mut words = format!("{}; {slices} slice{}", self.heading, if slices == 1 { "" } else { "s" });
        if let Some(note) = &self.stage.masks {
            let _ = write!(words, "; {note}");
        }
        if !shader.is_trusted() {
            words += "; bounds checks stay on, because of the caller's functions";
        }
        if let Some(additional) = additional {
            let _ = write!(words, "; additional keys by {additional}, merged");
        }
        for (argument, access) in self.stage.main.arguments.iter().zip(&shader.accesses) {
            let Layout { shape, strides, offset, .. } = argument.layout();
            let name = argument.name;
            if !access.wide && matches!(access.kind, AccessKind::Load4 | AccessKind::Store4) {
                let _ = write!(
                    words,
                    "; {name} moves one element at a time: width {}, strides {strides:?} and offset {offset} are not all \
                     multiples of 4",
                    shape[3]
                );
            }
            let first = shader.accesses.iter().find(|other| other.binding == access.binding);
            if let Some(first) = first.filter(|first| first.name != name) {
                let _ =
                    write!(words, "; {name} lies so near {} in one buffer that both are bound as words", first.name);
            }
        }
        words
    }
}

/// Where parts of the result go, one after another along the heads.
fn split(builder: &mut Builder, prefix: &str, splits: usize, to: &Partial) -> Result<Partial> {
    let mut part = |what: &str, operand: &Operand| {
        let [batch, heads, rows, width] = operand.shape();
        let layout = Layout::heads_first(DType::F32, [batch, heads * splits, rows, width]);
        builder.scratch(format!("{prefix}parts: {what}"), layout)
    };
    Ok([part("out", &to[0])?, part("lse", &to[1])?])
}

/// The tensors that have an entry for each packed sequence.
pub(super) const BY_SEQUENCE: [&str; 4] = ["bias", "mask", "blocks", "full_blocks"];

/// The tensors, where each head is the work of so many workgroups a tile.
fn arguments(shapes: &AttentionShapes, splits: usize, [out, lse]: &Partial) -> Vec<Argument> {
    let group = shapes.q.shape()[1] / shapes.k.shape()[1];
    let ([blocks, full_blocks], of_blocks) = (shapes.blocks(), shapes.block_group());
    let (tokens, of_lists) = shapes.list_tokens().unzip();
    let of_lists = of_lists.unwrap_or(1);
    let all = [
        ("q", Some(&shapes.q), AccessKind::Load4, splits),
        ("k", Some(&shapes.k), AccessKind::Load4, group * splits),
        ("v", Some(&shapes.v), AccessKind::Load4, group * splits),
        ("out", Some(out), AccessKind::Store4, 1),
        ("lse", Some(lse), AccessKind::StoreBits, 1),
        ("bias", shapes.bias.as_ref(), AccessKind::Load1, splits),
        ("mask", shapes.mask.as_ref(), AccessKind::Load1, splits),
        ("blocks", blocks, AccessKind::LoadBits, of_blocks * splits),
        ("tokens", tokens, AccessKind::LoadBits, of_lists * splits),
        ("full_blocks", full_blocks, AccessKind::LoadBits, of_blocks * splits),
    ];
    let argument = |(name, operand, kind, group): (&'static str, Option<&Operand>, AccessKind, usize)| {
        let whole = shapes.packed.is_some() && BY_SEQUENCE.contains(&name);
        Some(Argument::new(name, operand?, kind, Heads { group, whole, ..EACH }))
    };
    all.into_iter().filter_map(argument).collect()
}
