//! What will run for given params and shapes: decided without a GPU.

use super::additional::AdditionalPlan;
use super::decode::{Few, SplitPlan};
use super::portable::Portable;
use super::stage::{Pass, Setup, Stage};
use super::tiles::Tiles;
use super::{AttentionParams, AttentionShapes, ScoreParams, check_shapes};
use crate::arguments::Argument;
use crate::shader::AccessKind;
use crate::{Caps, Layout, Result, Slice};
use std::fmt;

/// What runs and why. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionPlan {
    pub(super) stage: Stage,
    pub(super) few: Option<Few>,
    pub(super) split: Option<SplitPlan>,
    pub(super) additional: Option<AdditionalPlan>,
    slices: Vec<Slice>,
    heading: String,
}

impl AttentionPlan {
    /// Chooses variant, tile sizes and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device
    /// that has too little.
    pub fn new(caps: &Caps, params: &impl AttentionParams, shapes: &AttentionShapes) -> Result<Self> {
        Self::of(caps, &*params.tiles()?.0, &params.scores(), shapes)
    }

    pub(super) fn of(caps: &Caps, tiles: &dyn Tiles, scores: &ScoreParams, shapes: &AttentionShapes) -> Result<Self> {
        scores.check(caps)?;
        check_shapes(shapes)?;
        tiles.check(shapes)?;
        let caps = &caps.for_attention(shapes.pairs());
        let additional = AdditionalPlan::new(caps, scores, shapes)?;
        let shapes = &shapes.own_part();
        let (head_dim, value_dim) = (shapes.q.shape[3], shapes.v.shape[3]);
        caps.within("out", "maxBufferSize", shapes.out.byte_span()?.end, caps.buffer_bytes)?;
        let few = Few::of(tiles, scores, shapes);
        let as_rows = few.filter(|few| few.grouped).and_then(|_| Some((tiles.grouped(shapes)?, shapes.grouped())));
        let (tiles, shapes) = as_rows.as_ref().map_or((tiles, shapes), |(tiles, shapes)| (&**tiles, shapes));
        let engine = match few {
            Some(Few { rows, .. }) => Portable::few(caps, tiles.family(), [head_dim, value_dim], rows)?,
            None => tiles.engine(caps, tiles.family(), head_dim, value_dim)?,
        };
        let splits = few.map_or(1, |few| few.splits);
        let split = if splits > 1 { Some(SplitPlan::new(caps, splits, shapes)?) } else { None };
        let setup = Setup { caps, tiles, params: scores, shapes, engine: &engine, cells: None, splits };
        let flops = 2.0 * (head_dim + value_dim) as f64 / splits as f64;
        let stage = Stage::plan(&setup, Pass::Forward, arguments(shapes, splits, split.as_ref()), flops)?;
        let mut slices = stage.slices.clone();
        slices.extend(split.iter().flat_map(|split| split.slices.clone()));
        slices.extend(additional.iter().flat_map(AdditionalPlan::slices));
        let heading = setup.heading() + &few.map_or(String::new(), |few| few.describe());
        Ok(Self { heading, stage, few, split, additional, slices })
    }

    /// The boxes of work that are dispatched one after another. None of them takes long.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = self.stage.kernels().map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source()));
        let merge = self.split.iter().map(|split| (split.merge.shader.name.as_str(), split.merge.shader.source()));
        kernels.chain(merge).chain(self.additional.iter().flat_map(|additional| additional.plan.wgsl())).collect()
    }
}

/// The tensors that have an entry for each packed sequence.
pub(super) const BY_SEQUENCE: [&str; 4] = ["bias", "mask", "blocks", "full_blocks"];

/// The tensors, where each head is the work of so many workgroups a tile, which write parts of the result.
fn arguments(shapes: &AttentionShapes, splits: usize, split: Option<&SplitPlan>) -> Vec<Argument> {
    let group = shapes.q.shape[1] / shapes.k.shape[1];
    let [blocks, full_blocks] = shapes.block_layouts();
    let of_blocks = shapes.block_group();
    let [out, lse] = split.map_or([&shapes.out, &shapes.lse], |split| split.partial.each_ref());
    let all = [
        ("q", Some(&shapes.q), AccessKind::Load4, 1),
        ("k", Some(&shapes.k), AccessKind::Load4, group),
        ("v", Some(&shapes.v), AccessKind::Load4, group),
        ("out", Some(out), AccessKind::Store4, 1),
        ("lse", Some(lse), AccessKind::StoreBits, 1),
        ("bias", shapes.bias.as_ref(), AccessKind::Load1, 1),
        ("mask", shapes.mask.as_ref(), AccessKind::Load1, 1),
        ("additional_k", None, AccessKind::Load4, 1),
        ("additional_v", None, AccessKind::Load4, 1),
        ("blocks", blocks, AccessKind::LoadBits, of_blocks),
        ("full_blocks", full_blocks, AccessKind::LoadBits, of_blocks),
    ];
    all.into_iter()
        .zip(shapes.buffers)
        .filter_map(|((name, layout, kind, group), buffer)| {
            let whole = shapes.packed().is_some() && BY_SEQUENCE.contains(&name);
            let written = ["out", "lse"].contains(&name);
            // Parts go to buffers of our own.
            let buffer =
                if written && split.is_some() { shapes.buffers.len() + usize::from(name == "lse") } else { buffer };
            let group = if written { 1 } else { group * splits };
            Some(Argument { name, layout: layout?.clone(), kind, group, spread: 1, buffer, whole })
        })
        .collect()
}

impl fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.heading)?;
        write!(f, "; {} slice{}", self.slices().len(), if self.slices().len() == 1 { "" } else { "s" })?;
        if let Some(note) = &self.stage.masks {
            write!(f, "; {note}")?;
        }
        if !self.stage.main.shader.is_trusted() {
            write!(f, "; bounds checks stay on, because of the caller's functions")?;
        }
        if let Some(additional) = &self.additional {
            write!(f, "; additional keys by {}, merged", additional.plan)?;
        }
        for (argument, access) in self.stage.main.arguments.iter().zip(&self.stage.main.shader.accesses) {
            let Layout { shape, strides, offset, .. } = &argument.layout;
            let name = argument.name;
            if !access.wide && matches!(access.kind, AccessKind::Load4 | AccessKind::Store4) {
                write!(
                    f,
                    "; {name} moves one element at a time: width {}, strides {strides:?} and offset {offset} are not all \
                     multiples of 4",
                    shape[3]
                )?;
            }
            let first = self.stage.main.shader.accesses.iter().find(|other| other.binding == access.binding);
            if let Some(first) = first.filter(|first| first.name != name) {
                write!(f, "; {name} lies so near {} in one buffer that both are bound as words", first.name)?;
            }
        }
        Ok(())
    }
}
