//! What runs: decided without a GPU.

use super::results::Results;
use super::steps::{Between, segments, top_k};
use super::{HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReductionParams};
use crate::program::shader::AccessKind;
use crate::program::{Argument, Builder, EACH, Heads, Operand, Part, Program, Rule, Step, within_parts};
use crate::softmax::stage::{Cells, Pass, Setup, Stage};
use crate::softmax::{AttentionShapes, NAMES, Outputs, Portable, Sizes, SoftmaxParams, Tiling};
use crate::{Caps, DType, Layout, Result, Shapes};
use std::fmt::Write;

impl ScoreReductionParams {
    /// The program that runs. Its tensors are named like the fields of [`crate::ScoreReductionInputs`] and [`crate::ReducedScores`]: those
    /// of the attention except its output, the log-sum-exp `lse` that it wrote, `segments`; `values` and `indices`, [batch (for packed
    /// sequences: sequences), groups of heads, groups of queries, groups of keys or `top_k`].
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] if the work needs more than the
    /// device offers.
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.check()?;
        let (scores, visibility) = (self.attention.scores(), self.attention.visibility()?);
        scores.check(caps)?;
        shapes.check_names(&[NAMES[0], &["segments", "values", "indices"]].concat(), NAMES[1])?;
        let mut builder = Builder::new(caps, shapes)?;
        let attention = AttentionShapes::new(&mut builder, shapes, Outputs::LseRead)?;
        attention.check()?;
        visibility.0.check(&attention)?;
        let results = Results::new(&mut builder, self, &attention)?;
        builder.hook_buffers(&scores.hooks())?;
        // Beside the tile: PASS / BR rows of cells, 8 bytes each.
        let sizes = attention.sizes("score reduction", 64);
        let sizes = Sizes { dims: [sizes.dims[0], 1], ..sizes };
        let engine = Tiling::Portable(Portable::plan(caps, sizes)?);
        let (by_segments, groups) = (matches!(self.keys, KeyGroups::Segments(_)), self.groups(&attention));
        // Segments are made of tokens.
        let first_keys = if by_segments { attention.pairs()[3] } else { groups[2] };
        let behind = by_segments || self.top_k.is_some();
        let cells = self.cells(&attention, [engine.rows(), engine.cols()].map(|n| n as usize), first_keys, behind);
        let between = self.between(&mut builder, &attention, first_keys)?;
        let setup = Setup {
            caps,
            visibility: &*visibility.0,
            params: &scores,
            shapes: &attention,
            engine: &engine,
            cells: Some(cells),
            splits: 1,
            stats: None,
            prefix: "",
            alone: true,
        };
        let flops = 2.0 * attention.q.shape()[3] as f64;
        let with_keys = self.reduction == Reduction::ArgMax;
        let values = between.tokens.as_ref().unwrap_or(&results.values);
        let indices = between.of_tokens.as_ref().or(results.indices.as_ref().filter(|_| with_keys));
        let arguments = arguments(&attention, &cells, values, indices);
        let stage = Stage::plan(&mut builder, &setup, Pass::Reduction, arguments, flops)?;
        let mut words = setup.heading().replacen("flash", "score reduction", 1);
        let slices = stage.parts.len();
        let _ = write!(words, "; {slices} slice{}", if slices == 1 { "" } else { "s" });
        if !behind {
            stage.add_slices(&mut builder, &[]);
            return builder.finish(words);
        }
        // One batch entry and head after the other, be there keys or not: all share what lies between the kernels.
        let (batch, heads) = (attention.pairs()[0], groups[0]);
        within_parts(caps, "score reduction", batch.saturating_mul(heads) as f64)?;
        let each = (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))).filter(|_| groups[1] > 0);
        let places: Vec<Part> = each.map(|(b, h)| Part { batches: b..b + 1, heads: h..h + 1, tiles: 0..1 }).collect();
        let adds = matches!(self.reduction, Reduction::Sum | Reduction::Count { .. });
        let mut steps = vec![];
        if let Some(of_keys) = &results.segments {
            let problem = builder.scratch_bytes("segments: problem", 8 * batch as u64)?;
            builder.check(problem, Rule::Segments { batch, count: groups[2] });
            steps.push(segments(caps, &places, &between, &results, of_keys, problem, adds)?);
        }
        if let Some(k) = self.top_k {
            steps.push(top_k(caps, &places, &between, &results, [groups[2], k])?);
        }
        steps.iter().for_each(|step| words += &format!("; then {}", step.shader.name));
        let mut kernels = vec![(stage.work.start, &stage.main)];
        kernels.extend(steps.iter().map(|step| (builder.add(step).start, step)));
        let of_place = |place: &Part| {
            let own = |part: &Part| part.batches == place.batches && part.heads == place.heads;
            let dispatches = |&(start, step): &(usize, &Step)| {
                let all = step.parts.iter().enumerate().filter(|(_, part)| own(part));
                all.map(|(i, _)| start + i).collect::<Vec<_>>()
            };
            (stage.first.first().unwrap_or(&stage.schedule).clone(), kernels.iter().flat_map(dispatches).collect())
        };
        builder.regroup(stage.work.start, places.iter().map(of_place).collect());
        if places.is_empty() {
            stage.add_schedule(&mut builder);
        }
        builder.finish(words)
    }
}

impl ScoreReductionParams {
    /// Groups of heads, queries and keys of a sequence.
    pub(super) fn groups(&self, shapes: &AttentionShapes) -> [usize; 3] {
        let ([_, heads, queries, keys], heads_kv) = (shapes.pairs(), shapes.k.shape()[1]);
        let heads = match self.heads {
            HeadGroups::Each => heads,
            HeadGroups::PerKvHead => heads_kv,
            HeadGroups::All => 1,
        };
        let queries = match self.queries {
            QueryGroups::Blocks(size) => queries.div_ceil(size),
            QueryGroups::All => queries.min(1),
        };
        let keys = match self.keys {
            KeyGroups::Blocks(size) => keys.div_ceil(size),
            KeyGroups::All => 1,
            KeyGroups::Segments(count) => count,
        };
        [heads, queries, keys]
    }

    /// Of the results.
    pub(super) fn shape(&self, shapes: &AttentionShapes) -> [usize; 4] {
        let [heads, queries, keys] = self.groups(shapes);
        [shapes.pairs()[0], heads, queries, self.top_k.unwrap_or(keys)]
    }

    fn mode(&self) -> (u32, u32) {
        match self.reduction {
            Reduction::Max => (0, 0),
            Reduction::Sum => (1, 0),
            Reduction::Count { above } => (2, above.to_bits()),
            Reduction::ArgMax => (3, 0),
        }
    }

    /// What lies between the kernels. `keys`: groups of keys that the first kernel makes.
    fn between(&self, builder: &mut Builder, shapes: &AttentionShapes, keys: usize) -> Result<Between> {
        let ([heads, rows, groups], batch) = (self.groups(shapes), shapes.pairs()[0]);
        let by_segments = matches!(self.keys, KeyGroups::Segments(_));
        let behind = by_segments || self.top_k.is_some();
        let caps = builder.caps;
        let mut one = |there: bool, name: &'static str, dtype: DType, cols: usize| {
            // One batch entry and head after the other.
            let layout = Layout { strides: [0, 0, cols], ..Layout::heads_first(dtype, [batch, heads, rows, cols]) };
            let (what, bytes) = ("score reduction: what one head has between two steps", layout.byte_span()?.end);
            if there {
                caps.within(what, "maxStorageBufferBindingSize", bytes, caps.binding_bytes)?;
                return builder.scratch(name, layout).map(Some);
            }
            Ok(None)
        };
        Ok(Between {
            tokens: one(behind, "of tokens", DType::F32, keys)?,
            of_tokens: one(behind && self.reduction == Reduction::ArgMax, "keys of tokens", DType::U32, keys)?,
            segments: one(by_segments && self.top_k.is_some(), "of segments", DType::F32, groups)?,
        })
    }

    /// How cells lie in tiles. `keys`: groups of keys that the first kernel makes.
    fn cells(&self, shapes: &AttentionShapes, tile: [usize; 2], keys: usize, apart: bool) -> Cells {
        let [_, _, all_queries, all_keys] = shapes.pairs();
        // Of a group: its size within a tile, and its tiles.
        let group = |size: Option<usize>, all: usize, tile: usize| match size {
            Some(size) => (size.min(tile), size.min(all).div_ceil(tile).max(1)),
            None => (tile, all.div_ceil(tile).max(1)),
        };
        let of_queries = if let QueryGroups::Blocks(size) = self.queries { Some(size) } else { None };
        let of_keys = match self.keys {
            KeyGroups::Blocks(size) => Some(size),
            KeyGroups::All => None,
            KeyGroups::Segments(_) => Some(1),
        };
        let (height, query_tiles) = group(of_queries, all_queries, tile[0]);
        let (width, key_tiles) = group(of_keys, all_keys, tile[1]);
        let [heads, queries, _] = self.groups(shapes);
        Cells {
            within: [height, width],
            groups: [heads, queries, keys],
            together: [shapes.q.shape()[1] / heads, query_tiles, key_tiles],
            mode: self.mode(),
            apart,
        }
    }
}

/// The tensors of the first kernel.
fn arguments(shapes: &AttentionShapes, cells: &Cells, values: &Operand, indices: Option<&Operand>) -> Vec<Argument> {
    let (heads_q, heads_kv, groups) = (shapes.q.shape()[1], shapes.k.shape()[1], cells.groups[0]);
    let whole = shapes.packed.is_some();
    let of_queries = Heads { group: 1, spread: heads_q / groups, whole };
    // Key heads to a group of heads, or groups to a key head.
    let of_keys = Heads { group: groups.div_ceil(heads_kv), spread: heads_kv.div_ceil(groups), whole };
    let all = [
        ("q", Some(&shapes.q), AccessKind::Load4, of_queries),
        ("k", Some(&shapes.k), AccessKind::Load4, of_keys),
        ("lse", Some(&shapes.lse), AccessKind::LoadBits, of_queries),
        ("bias", shapes.bias.as_ref(), AccessKind::Load1, of_queries),
        ("mask", shapes.mask.as_ref(), AccessKind::Load1, of_queries),
        ("values", Some(values), AccessKind::StoreBits, EACH),
        ("indices", indices, AccessKind::StoreBits, EACH),
    ];
    all.into_iter()
        .filter_map(|(name, operand, kind, heads)| Some(Argument::new(name, operand?, kind, heads)))
        .collect()
}
