//! A kernel that visits tiles, with what it needs before it: the map of tiles that masks hide, the table of sequences.
//! The forward pass is one stage, the gradient of queries another, that of keys and values a third.

mod parts;

use super::visibility::Visibility;
use super::{AttentionShapes, ScoreParams, Tiling};
use crate::error::require;
use crate::packed::Side;
use crate::program::shader::{AccessKind, file};
use crate::program::{Argument, Builder, Part, Step, cut, is_written, within_parts};
use crate::{Caps, Engine, Result};
use parts::{Parts, TileMap, Work, slopes};
use std::ops::Range;

/// What a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    /// Gradient of queries.
    Queries,
    /// Gradients of keys and values.
    KeysAndValues,
    /// One of them alone.
    Keys,
    Values,
    /// Gradient of the bias.
    Bias,
    /// Score reduction.
    Reduction,
}

impl Pass {
    pub fn side(self) -> Side {
        match self {
            Pass::KeysAndValues | Pass::Keys | Pass::Values => Side::Keys,
            _ => Side::Queries,
        }
    }

    /// What it computes, in words; nothing for the forward pass.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "",
            Pass::Queries => "dq",
            Pass::KeysAndValues => "dk dv",
            Pass::Keys => "dk",
            Pass::Values => "dv",
            Pass::Bias => "dbias",
            Pass::Reduction => "score reduction",
        }
    }

    /// The kernel's name in an engine.
    fn kernel(self, engine: &Tiling) -> String {
        format!("{} {}", engine.name(), self.name()).trim_end().into()
    }

    fn files(self, engine: &Tiling) -> Vec<&'static str> {
        let gradients = [engine.sums(), file::GRADIENTS];
        match self {
            Pass::Forward => {
                let sums = [engine.sums(), engine.row_values(), file::STATE_SOFTMAX, file::EPILOGUE_FINAL];
                [&[file::FORWARD, file::SIDES_FORWARD, file::WORKGROUPS_SPLIT], &sums[..]].concat()
            }
            Pass::Queries => [&gradients[..], &[file::DQ, file::SIDES_DQ]].concat(),
            Pass::KeysAndValues | Pass::Keys | Pass::Values => {
                [&gradients[..], &[engine.stats(), file::DKV, file::SIDES_DKV, file::DK, file::DV]].concat()
            }
            Pass::Bias => [&gradients[..], &[file::DBIAS, file::SIDES_DQ]].concat(),
            Pass::Reduction => vec![file::REDUCE_SCORES, file::SIDES_SCORES, file::REDUCTION_VALUE],
        }
    }

    /// Tensors that may not be there.
    fn optional(self) -> Vec<(&'static str, AccessKind)> {
        match self {
            Pass::Queries => vec![("dq_so_far", AccessKind::Load4)],
            Pass::KeysAndValues | Pass::Keys | Pass::Values => {
                vec![("dk", AccessKind::Store4), ("dv", AccessKind::Store4)]
            }
            Pass::Reduction => vec![("indices", AccessKind::StoreBits)],
            Pass::Forward | Pass::Bias => vec![],
        }
    }

    /// Whether it goes by tiles of keys, not by what a tile of queries visits: it has no use for a map of visits.
    fn by_keys_of_all(self) -> bool {
        matches!(self, Pass::Bias | Pass::Reduction)
    }

    /// Whether it needs what the gradients know of every row.
    fn has_stats(self) -> bool {
        !matches!(self, Pass::Forward | Pass::Reduction)
    }
}

/// The cells of a score reduction, and how they lie in tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cells {
    /// Queries and keys of a cell within a tile.
    pub within: [usize; 2],
    /// Groups of heads, of queries and of keys.
    pub groups: [usize; 3],
    /// Heads, tiles of queries and tiles of keys that go together.
    pub together: [usize; 3],
    /// `MODE_…` of the shader, and the bits of its bound.
    pub mode: (u32, u32),
    /// Whether each batch entry and head is a part or several of its own.
    pub apart: bool,
}

/// What all stages of a call are planned for: params and tensors that are checked to fit together.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub caps: &'a Caps,
    pub visibility: &'a dyn Visibility,
    pub params: &'a ScoreParams,
    pub shapes: &'a AttentionShapes,
    pub engine: &'a Tiling,
    /// What goes together in a score reduction.
    pub cells: Option<Cells>,
    /// Parts of what a tile visits, each a workgroup's.
    pub splits: usize,
    /// What the rows' statistics for gradients are in.
    pub stats: Option<usize>,
    /// Names of scratch buffers begin with this.
    pub prefix: &'static str,
    /// Whether its pass is the only one of the program.
    pub alone: bool,
}

impl Setup<'_> {
    /// Family, tiles and engine in words.
    pub fn heading(&self) -> String {
        let tiles = self.visibility.describe(self.shapes, self.engine);
        let tiles = tiles.map_or(String::new(), |tiles| format!("{tiles}; "));
        format!("{}, {tiles}{}", self.visibility.family(), self.engine)
    }
}

/// A stage as planned, its kernels added.
#[derive(Debug)]
pub(crate) struct Stage {
    pub pass: Pass,
    pub main: Step,
    pub parts: Vec<Part>,
    /// The dispatches of the main kernel, one for each part, and what goes before each.
    pub work: Range<usize>,
    pub first: Vec<Vec<usize>>,
    /// What makes the table of sequences from what lies on the GPU, and tells what is wrong there.
    pub schedule: Vec<usize>,
    /// Why tiles are skipped or not, where masks are asked.
    pub masks: Option<String>,
}

/// Tiles of a word of the tile map: two bits each.
const TILES_PER_WORD: usize = 16;

/// Whether a workgroup may go over so many columns on a device that bounds loops: by what was found to come out right there, and a
/// quarter of that besides.
fn check_rounds(setup: &Setup, pass: Pass, columns: usize) -> Result<()> {
    let Some(available) = setup.caps.loop_rounds() else { return Ok(()) };
    // Where workgroups share the keys, each goes over all tiles first.
    let available = if setup.splits > 1 { available / 2 } else { available };
    let by_width = match setup.shapes.q.shape()[3].max(setup.shapes.v.shape()[3]) {
        1..=16 if setup.engine.name() == Engine::Portable => 80,
        ..=64 => 160,
        _ => 320,
    };
    let by_tile = if pass.has_stats() { 2 * by_width } else { by_width };
    let what = format!("{} attention over {columns} tokens in one loop", setup.visibility.family());
    setup.caps.within(&what, "rounds of llvmpipe's loops", (columns.div_ceil(64) * by_tile) as u64, available)
}

impl Stage {
    /// Plans a pass. A pair of a row and a column costs `flops_per_pair`. Full blocks come last among the arguments: they are
    /// left out where no mask is asked.
    pub fn plan(
        builder: &mut Builder,
        setup: &Setup,
        pass: Pass,
        mut arguments: Vec<Argument>,
        flops_per_pair: f64,
    ) -> Result<Self> {
        let Setup { caps, params, shapes, engine, visibility, .. } = *setup;
        let heads_q = shapes.q.shape()[1];
        let slopes = slopes(params, heads_q)?;
        let side = pass.side();
        let name = format!("{}{}", setup.prefix, pass.kernel(engine));
        // All passes look at the same lengths.
        let checked = setup.alone || pass == Pass::Queries;
        let schedule = shapes.schedule(builder, &name, (side, engine.rows() as usize), checked)?;
        let mut parts = Parts { setup: *setup, pass, slopes, schedule, map: None };
        let Work { batches, heads, group, tiles, cols, visited } = parts.work();
        arguments.retain(|argument| argument.name != "full_blocks" || parts.chain().masks_hide());
        check_rounds(setup, pass, cols.max(visited * engine.cols() as usize) * group / setup.splits)?;
        let tile_flops = f64::from(engine.rows()) * (cols * group) as f64 * flops_per_pair;
        for name in ["blocks", "full_blocks"] {
            // What loops are bounded by must be the same for a whole workgroup: a compiler sees that of what is only read.
            let found = arguments.iter().find(|a| a.name == name);
            let written = found.is_some_and(|a| is_written(&arguments, a.operand.buffer));
            let bound = "in a buffer that nothing writes to";
            require(!written, "block_mask", format!("its {name} in the buffer of an output"), bound)?;
        }
        let wholes = match setup.cells {
            Some(Cells { apart: true, .. }) => {
                within_parts(caps, visibility.family(), batches.saturating_mul(heads) as f64)?;
                let each = (0..batches).flat_map(|b| (0..heads).map(move |h| (b, h)));
                each.map(|(b, h)| Part { batches: b..b + 1, heads: h..h + 1, tiles: 0..tiles }).collect()
            }
            _ => vec![Part::whole([batches, heads, tiles])],
        };
        let mut slices = vec![];
        for whole in wholes {
            slices.extend(cut(caps, &arguments, whole, tile_flops)?);
        }

        let words = visited.div_ceil(TILES_PER_WORD).max(1);
        let by_head = parts.masks_differ_by_head();
        let strides = if by_head { [words * heads_q, words] } else { [words, 0] };
        let map_bytes = 4 * batches.saturating_mul(tiles).saturating_mul(strides[0]) as u64;
        let chosen = visibility.choice(side).is_some();
        let masks = (parts.chain().masks_hide() && !chosen && !pass.by_keys_of_all()).then(|| {
            parts.map = Some(TileMap { strides, scratch: 0 });
            let buffers = parts.main(arguments.clone(), &[]).shader.storage_buffers();
            if buffers > u64::from(caps.storage_buffers) || map_bytes > caps.binding_bytes {
                parts.map = None;
                return format!(
                    "masks are asked in every tile: a map of what they hide would need {buffers} storage buffers of {}, \
                     and a binding of {map_bytes} bytes of {}",
                    caps.storage_buffers, caps.binding_bytes
                );
            }
            let once = if by_head { "for each head" } else { "once for all heads" };
            format!("masks are asked first, {once}, and tiles that they hide are skipped")
        });
        if let Some(map) = &mut parts.map {
            map.scratch = builder.scratch_bytes(format!("{name}: tile map"), map_bytes)?;
        }
        let main = parts.main(arguments, &slices);
        let buffers = main.shader.storage_buffers();
        caps.within(visibility.family(), "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;

        let schedule: Vec<usize> = parts.schedule.kernel.iter().flat_map(|kernel| builder.add(kernel)).collect();
        let splits = setup.splits;
        let heads_of = |part: &Part| match by_head {
            true => part.heads.start / splits * group..part.heads.end.div_ceil(splits) * group,
            false => 0..1,
        };
        // Parts that differ by their heads only may share a map.
        let mut mapped: Vec<Part> = vec![];
        let mut map_of = |part: &Part| {
            let part = Part { heads: heads_of(part), ..part.clone() };
            mapped.iter().position(|other| *other == part).unwrap_or_else(|| {
                mapped.push(part);
                mapped.len() - 1
            })
        };
        let places: Vec<usize> = slices.iter().map(&mut map_of).collect();
        let map = parts.map.is_some().then(|| builder.add(&parts.map_kernel(&mapped)));
        let before = |place: usize| schedule.iter().copied().chain(map.as_ref().map(|map| map.start + place)).collect();
        let first = places.into_iter().map(before).collect();
        let work = builder.add(&main);
        Ok(Self { pass, main, parts: slices, work, first, schedule, masks })
    }

    /// Makes each part a slice; `before` goes before them all.
    pub fn add_slices(&self, builder: &mut Builder, before: &[usize]) {
        if self.work.is_empty() {
            self.add_schedule(builder);
        }
        for (i, first) in self.work.clone().zip(&self.first) {
            builder.slice([before, first].concat(), i..i + 1);
        }
    }

    /// Without any work, what only the GPU sees is looked at all the same.
    pub fn add_schedule(&self, builder: &mut Builder) {
        if !self.schedule.is_empty() {
            builder.slice(self.schedule.clone(), self.work.start..self.work.start);
        }
    }
}
