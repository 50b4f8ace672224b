//! What runs: decided without a GPU.

use super::steps::{Source, Step};
use super::{HeadGroups, KeyGroups, QueryGroups, ReducedScores, Reduction, ScoreReductionInputs, ScoreReductionParams};
use crate::arguments::{Argument, number_buffers};
use crate::error::{require, require_set};
use crate::shader::AccessKind;
use crate::softmax::stage::{Cells, Pass, Setup, Stage};
use crate::softmax::{AttentionShapes, Portable, Sees, check_shapes};
use crate::{Caps, DType, Layout, Result, Slice, Tensor};
use std::ops::Range;

/// Types, shapes and strides of a score reduction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScoreReductionShapes {
    /// Those of the attention.
    pub attention: AttentionShapes,
    /// The segment of each key.
    pub segments: Option<Layout>,
    /// The values that are written, f32.
    pub values: Layout,
    /// The indices that are written, u32, where there are any.
    pub indices: Option<Layout>,
    /// Which of q, k, lse, bias, mask, segments, values, indices lie in one buffer: those with the same number.
    pub buffers: [usize; 8],
}

/// In the order of [`ScoreReductionShapes::buffers`].
pub(super) fn slots<'a>(inputs: &ScoreReductionInputs<'a>, to: &'a ReducedScores) -> [Option<&'a Tensor>; 8] {
    let ScoreReductionInputs { attention, lse, segments } = inputs;
    let indices = to.indices.as_ref();
    let (q, k) = (Some(attention.q), Some(attention.k));
    [q, k, Some(*lse), attention.bias, attention.mask, *segments, Some(&to.values), indices]
}

impl ScoreReductionShapes {
    /// As the inputs are, with results of their own.
    pub fn of_inputs(params: &ScoreReductionParams, inputs: &ScoreReductionInputs) -> Self {
        let attention = &inputs.attention;
        let attention = crate::AttentionInputs { additional_k: None, additional_v: None, ..*attention };
        // What attention writes is not looked at; its log-sum-exp is read.
        let attention = AttentionShapes { lse: inputs.lse.layout().clone(), ..AttentionShapes::of_inputs(&attention) };
        Self::planned(params, attention, inputs.segments.map(|segments| segments.layout().clone()))
    }

    /// For attention of these shapes, with results of their own.
    pub fn planned(params: &ScoreReductionParams, attention: AttentionShapes, segments: Option<Layout>) -> Self {
        let shape = params.shape(&attention);
        Self {
            segments,
            values: Layout::heads_first(DType::F32, shape),
            indices: params.has_indices().then(|| Layout::heads_first(DType::U32, shape)),
            attention,
            buffers: std::array::from_fn(|i| i),
        }
    }

    /// As the tensors are.
    pub fn of(params: &ScoreReductionParams, inputs: &ScoreReductionInputs, to: &ReducedScores) -> Self {
        Self {
            values: to.values.layout().clone(),
            indices: to.indices.as_ref().map(|indices| indices.layout().clone()),
            buffers: number_buffers(slots(inputs, to)),
            ..Self::of_inputs(params, inputs)
        }
    }
}

impl ScoreReductionParams {
    /// Groups of heads, queries and keys of a sequence.
    fn groups(&self, shapes: &AttentionShapes) -> [usize; 3] {
        let ([_, heads, queries, keys], heads_kv) = (shapes.pairs(), shapes.k.shape[1]);
        let heads = match self.heads {
            HeadGroups::Each => heads,
            HeadGroups::OfKeyHead => heads_kv,
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
    fn shape(&self, shapes: &AttentionShapes) -> [usize; 4] {
        let [heads, queries, keys] = self.groups(shapes);
        [shapes.pairs()[0], heads, queries, self.top_k.unwrap_or(keys)]
    }

    fn check_results(&self, shapes: &ScoreReductionShapes) -> Result<()> {
        let ScoreReductionShapes { attention, segments, values, indices, .. } = shapes;
        let [batch, _, _, keys] = attention.pairs();
        let wanted = self.shape(attention);
        let [.., groups] = self.groups(attention);
        if let Some(k) = self.top_k {
            let bound = format!("at most {groups}, the groups of keys");
            require(k <= groups.max(1), "top_k", k, bound)?;
        }
        let by_segments = matches!(self.keys, KeyGroups::Segments(_));
        require_set("segments", segments.is_some(), by_segments, "as keys are grouped")?;
        if let Some(segments) = segments {
            let fits = [[batch, 1, 1, keys], [1, 1, 1, keys]].contains(&segments.shape);
            let bound = format!("[{batch} or 1, 1, 1, {keys}], by k");
            require(fits, "segments.shape", format!("{:?}", segments.shape), bound)?;
            require(segments.dtype == DType::U32, "segments.dtype", segments.dtype, "u32")?;
            segments.byte_span()?;
        }
        require_set("indices", indices.is_some(), self.has_indices(), "as the reduction has indices or not")?;
        for (name, layout, dtype) in [("values", Some(values), DType::F32), ("indices", indices.as_ref(), DType::U32)] {
            let Some(layout) = layout else { continue };
            let bound = format!("{wanted:?}, by q, k and the groups");
            require(layout.shape == wanted, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == dtype, &format!("{name}.dtype"), layout.dtype, dtype)?;
            layout.byte_span()?;
            layout.check_output(name)?;
        }
        Ok(())
    }

    fn mode(&self) -> (u32, u32) {
        match self.reduction {
            Reduction::Max => (0, 0),
            Reduction::Sum => (1, 0),
            Reduction::Count { above } => (2, above.to_bits()),
            Reduction::ArgMax => (3, 0),
        }
    }
}

/// What runs. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreReductionPlan {
    pub(super) stage: Stage,
    /// What comes after it.
    pub(super) steps: Vec<Step>,
    /// The slices of the stage that belong to each slice of the steps: one batch entry and head after the other.
    pub(super) parts: Vec<Range<usize>>,
    /// Between the stage and the steps: values, and keys where they matter; then values between two steps.
    pub(super) scratch: [Option<Layout>; 3],
    /// How many segments there are.
    pub(super) segments: usize,
    heading: String,
}

impl ScoreReductionPlan {
    /// Chooses tile sizes and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device that has
    /// too little.
    pub fn new(caps: &Caps, params: &ScoreReductionParams, shapes: &ScoreReductionShapes) -> Result<Self> {
        params.check()?;
        let attention = &shapes.attention;
        check_shapes(attention)?;
        let (scores, order) = (params.attention.scores(), params.attention.tiles()?);
        scores.check(caps)?;
        order.0.check(attention)?;
        params.check_results(shapes)?;
        // Beside the tile: PASS / BR rows of cells, 8 bytes each.
        let engine = Portable::plan(caps, "score reduction", attention.q.shape[3], 1, 64)?;
        let (by_segments, groups) = (matches!(params.keys, KeyGroups::Segments(_)), params.groups(attention));
        let with_keys = params.reduction == Reduction::ArgMax;
        // Segments are made of tokens.
        let first_keys = if by_segments { attention.pairs()[3] } else { groups[2] };
        let behind = by_segments || params.top_k.is_some();
        let cells = params.cells(attention, [engine.rows, engine.cols].map(|n| n as usize), first_keys, behind);

        let (batch, heads) = (attention.pairs()[0], groups[0]);
        let between = |dtype: DType, cols: usize| Layout {
            // One batch entry and head after the other.
            strides: [0, 0, cols],
            ..Layout::heads_first(dtype, [batch, heads, groups[1], cols])
        };
        let tokens = behind.then(|| between(DType::F32, first_keys));
        let of_tokens = (behind && with_keys).then(|| between(DType::U32, first_keys));
        let segments = (by_segments && params.top_k.is_some()).then(|| between(DType::F32, groups[2]));
        let scratch = [tokens, of_tokens, segments];
        for layout in scratch.iter().flatten() {
            let (what, bytes) = ("score reduction: what one head has between two steps", layout.byte_span()?.end);
            caps.within(what, "maxStorageBufferBindingSize", bytes, caps.binding_bytes)?;
        }
        let values = scratch[0].clone().unwrap_or(shapes.values.clone());
        let indices = scratch[1].clone().or(shapes.indices.clone().filter(|_| with_keys));
        let setup = Setup {
            caps,
            tiles: &*order.0,
            params: &scores,
            shapes: attention,
            engine: &engine,
            cells: Some(cells),
            splits: 1,
        };
        let flops = 2.0 * attention.q.shape[3] as f64;
        let stage = Stage::plan(&setup, Pass::Reduction, arguments(shapes, &cells, values, indices, behind), flops)?;

        // One batch entry and head after the other, be there keys or not.
        let each = (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))).filter(|_| behind && groups[1] > 0);
        let places: Vec<Slice> = each.map(|(b, h)| Slice { batches: b..b + 1, heads: h..h + 1, tiles: 0..1 }).collect();
        let mut next = 0;
        let part = |place: &Slice| {
            let own = |slice: &&Slice| slice.batches == place.batches && slice.heads == place.heads;
            let start = next;
            next += stage.slices[start..].iter().take_while(own).count();
            start..next
        };
        let parts: Vec<Range<usize>> = places.iter().map(part).collect();
        let adds = matches!(params.reduction, Reduction::Sum | Reduction::Count { .. });
        let (mut steps, mut from) = (vec![], Source::Scratch(0));
        let results = [(Source::Values, Some(&shapes.values)), (Source::Indices, shapes.indices.as_ref())];
        if let (Some(of_keys), Some(tokens)) = (&shapes.segments, &scratch[0]) {
            let mut tensors = vec![(from, tokens)];
            tensors.extend(scratch[1].as_ref().map(|layout| (Source::Scratch(1), layout)));
            tensors.push((Source::Segments, of_keys));
            match &scratch[2] {
                Some(layout) => tensors.push((Source::Scratch(2), layout)),
                None => tensors.extend(results.iter().filter_map(|&(source, layout)| Some((source, layout?)))),
            }
            steps.push(Step::segments(caps, &places, &tensors, [groups[1], first_keys, groups[2]], adds)?);
            from = Source::Scratch(2);
        }
        if let (Some(k), Some(layout)) = (params.top_k, scratch[if by_segments { 2 } else { 0 }].as_ref()) {
            let mut tensors = vec![(from, layout)];
            tensors.extend(results.iter().filter_map(|&(source, layout)| Some((source, layout?))));
            steps.push(Step::top_k(caps, &places, &tensors, [groups[1], groups[2], k])?);
        }
        let heading = setup.heading().replacen("flash", "score reduction", 1);
        Ok(Self { stage, steps, parts, scratch, segments: groups[2], heading })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = self.stage.kernels().chain(self.steps.iter().map(|step| &step.kernel));
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

impl std::fmt::Display for ScoreReductionPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slices = self.stage.slices.len();
        write!(f, "{}; {slices} slice{}", self.heading, if slices == 1 { "" } else { "s" })?;
        self.steps.iter().try_for_each(|step| write!(f, "; then {}", step.kernel.shader.name))
    }
}

impl ScoreReductionParams {
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
            together: [shapes.q.shape[1] / heads, query_tiles, key_tiles],
            mode: self.mode(),
            apart,
        }
    }
}

/// The tensors of the first kernel.
fn arguments(
    shapes: &ScoreReductionShapes,
    cells: &Cells,
    values: Layout,
    indices: Option<Layout>,
    scratch: bool,
) -> Vec<Argument> {
    let AttentionShapes { q, k, lse, bias, mask, .. } = &shapes.attention;
    let (heads_q, heads_kv, groups) = (q.shape[1], k.shape[1], cells.groups[0]);
    let packed = shapes.attention.packed().is_some();
    let spread = heads_q / groups;
    // Key heads to a group of heads, or groups to a key head.
    let of_keys = (groups.div_ceil(heads_kv), heads_kv.div_ceil(groups));
    // No tensor of the caller's lies in a buffer of our own.
    let own = |i: usize| if scratch { shapes.buffers.len() + i } else { shapes.buffers[i] };
    let [of_q, of_k, of_lse, of_bias, of_mask, ..] = shapes.buffers;
    let all = [
        ("q", Some(q.clone()), AccessKind::Load4, (1, spread), of_q, packed),
        ("k", Some(k.clone()), AccessKind::Load4, of_keys, of_k, packed),
        ("lse", Some(lse.clone()), AccessKind::LoadBits, (1, spread), of_lse, packed),
        ("bias", bias.clone(), AccessKind::Load1, (1, spread), of_bias, packed),
        ("mask", mask.clone(), AccessKind::Load1, (1, spread), of_mask, packed),
        ("values", Some(values), AccessKind::StoreBits, (1, 1), own(6), false),
        ("indices", indices, AccessKind::StoreBits, (1, 1), own(7), false),
    ];
    let argument = |(name, layout, kind, (group, spread), buffer, whole)| {
        Some(Argument { name, layout: Option::<Layout>::clone(&layout)?, kind, group, spread, buffer, whole })
    };
    all.into_iter().filter_map(argument).collect()
}
