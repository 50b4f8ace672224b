//! Calls of softmax attention and of score reductions.

use super::draft::{Draft, Drafted, Plan, Prepare, Sizes, offsets};
use super::hooks;
use super::source::Source;
use pollster::block_on;
use wgpu_attention::plan::{AttentionParams, Shapes};
use wgpu_attention::score_reduction::{
    HeadGroups, KeyGroups, QueryGroups, Reduction, ScoreReduction, ScoreReductionParams,
};
use wgpu_attention::{
    Attention, BlockGrid, BlockSparseParams, Causal, DType, FlashParams, HeadBlocks, Layout, NeighborhoodAxis,
    NeighborhoodParams, Window,
};

/// The shapes of an attention call, forward or backward.
pub fn attention_shapes(s: &mut Source, sizes: &mut Sizes, backward: bool) -> Draft {
    let mut draft = Draft::default();
    let (packed, on_gpu) = (s.one_in(4), s.one_in(3));
    if packed {
        sizes.batch = 1;
        let count = s.below(5);
        for (side, rows) in ["q", "k"].into_iter().zip(sizes.rows) {
            let offsets = offsets(s, count, rows);
            draft.counts(s, on_gpu, &format!("cu_seqlens_{side}"), offsets);
            if (on_gpu && s.one_in(2)) || s.odd(8) {
                draft.numbers(&format!("max_seqlen_{side}"), [s.below(rows + 1)]);
            }
        }
    } else {
        for (side, rows) in ["q", "k"].into_iter().zip(sizes.rows) {
            if s.one_in(4) {
                let lengths: Vec<usize> = (0..sizes.batch).map(|_| s.below(rows + 1)).collect();
                draft.counts(s, on_gpu, &format!("seqlens_{side}"), lengths);
            }
        }
    }
    for (name, shape) in [("q", sizes.q()), ("k", sizes.k()), ("v", sizes.v())] {
        draft.tensor(s, name, sizes.dtype, shape);
    }
    let repeated = |s: &mut Source, shape: [usize; 4]| {
        let mut layout = Layout::heads_first(s.token_type(), shape);
        (0..3).for_each(|i| layout.strides[i] = if s.one_in(3) { 0 } else { layout.strides[i] });
        layout
    };
    if let Some(bias) = s.maybe(5, |s| repeated(s, sizes.pairs())) {
        draft.tensors.push(("bias".into(), bias));
    }
    if let Some(mask) = s.maybe(5, |s| repeated(s, sizes.pairs())) {
        draft.tensors.push(("mask".into(), Layout { dtype: s.pick(&[DType::U8, DType::U32]), ..mask }));
    }
    let additional = s.maybe(6, Source::small);
    if let Some(count) = additional {
        for (name, width) in ["additional_k", "additional_v"].into_iter().zip(sizes.widths) {
            draft.tensor(s, name, sizes.dtype, [sizes.batch, sizes.heads[1], count, width]);
        }
    }
    if !backward {
        draft.output(s, "out", sizes.dtype, sizes.out());
        draft.output(s, "lse", DType::F32, sizes.lse());
        return draft;
    }
    draft.tensor(s, "out", sizes.dtype, sizes.out());
    draft.tensor(s, "lse", DType::F32, sizes.lse());
    draft.tensor(s, "dout", sizes.dtype, sizes.out());
    if s.one_in(3) {
        draft.tensor(s, "dlse", DType::F32, sizes.lse());
    }
    for (name, shape) in [("dq", sizes.q()), ("dk", sizes.k()), ("dv", sizes.v())] {
        draft.output(s, name, sizes.dtype, shape);
    }
    if s.one_in(6) {
        draft.output(s, "dbias", DType::F32, sizes.pairs());
    }
    draft
}

pub fn causal(s: &mut Source) -> Option<Causal> {
    s.pick(&[None, Some(Causal::BottomRight), Some(Causal::TopLeft)])
}

fn flash_params(s: &mut Source, heads: usize) -> FlashParams {
    FlashParams {
        causal: causal(s),
        window: Window { left: s.maybe(4, Source::number), right: s.maybe(4, Source::number) },
        scale: s.maybe(4, Source::float),
        softcap: s.maybe(5, Source::float),
        alibi_slopes: s.maybe(6, |s| (0..heads).map(|_| s.float()).collect()),
        score_mod: s.maybe(8, hooks::score).into_iter().collect(),
        mask_mod: s.maybe(8, hooks::mask).into_iter().collect(),
    }
}

fn attention<P: AttentionParams + 'static>(params: P, backward: bool) -> (String, Plan, Prepare) {
    let (words, own) = (format!("{params:?} {}", if backward { "backward" } else { "forward" }), params.clone());
    let plan: Plan = Box::new(move |caps, shapes| match backward {
        true => params.plan_backward(caps, shapes),
        false => params.plan(caps, shapes),
    });
    let prepare: Prepare = Box::new(move |gpu, shapes| {
        let attention = Attention::new(gpu, own.clone())?;
        match backward {
            true => block_on(attention.prepare_backward(shapes)),
            false => block_on(attention.prepare(shapes)),
        }
    });
    (words, plan, prepare)
}

pub fn flash(s: &mut Source) -> Drafted {
    let (mut sizes, backward) = (Sizes::new(s), s.one_in(3));
    let draft = attention_shapes(s, &mut sizes, backward);
    (attention(flash_params(s, sizes.heads[0]), backward), draft)
}

pub fn neighborhood(s: &mut Source) -> Drafted {
    let (mut sizes, backward) = (Sizes::new(s), s.one_in(3));
    let count = s.pick(&[1, 2, 3]);
    let mut axes: Vec<NeighborhoodAxis> = (0..count)
        .map(|_| {
            let length = 2 + s.below([100, 12, 6][count - 1]);
            let window = 2 + s.below(length - 1);
            let (stride, dilation) = (1 + s.below(window), 1 + s.below(length / window));
            NeighborhoodAxis { length, window, stride, dilation, causal: s.one_in(3) }
        })
        .collect();
    let tokens = axes.iter().map(|axis| axis.length).product();
    sizes.rows = [tokens, tokens];
    if s.odd(4) {
        let (axis, n) = (s.below(count), s.number());
        match s.below(4) {
            0 => axes[axis].length = n,
            1 => axes[axis].window = n,
            2 => axes[axis].stride = n,
            _ => axes[axis].dilation = n,
        }
    }
    let mut draft = attention_shapes(s, &mut sizes, backward);
    let whole = !s.odd(4);
    draft
        .tensors
        .retain(|(name, _)| !(whole && (name.contains("seqlens") || ["bias", "mask"].contains(&name.as_str()))));
    draft.numbers.retain(|(name, _)| !(whole && name.contains("seqlen")));
    let FlashParams { scale, score_mod, mask_mod, .. } = flash_params(s, 0);
    (attention(NeighborhoodParams { axes, scale, score_mod, mask_mod }, backward), draft)
}

fn head(s: &mut Source, listed: bool) -> HeadBlocks {
    let kinds = if listed || s.odd(6) { 3 } else { 2 };
    match s.below(kinds) {
        0 => HeadBlocks::Dense,
        1 => HeadBlocks::Streaming { sink: s.number(), local: s.number() },
        _ => HeadBlocks::Listed,
    }
}

pub fn block_sparse(s: &mut Source) -> Drafted {
    let (mut sizes, backward) = (Sizes::new(s), s.one_in(3));
    let mut draft = attention_shapes(s, &mut sizes, backward);
    let Sizes { batch, heads, rows: [queries, keys], .. } = sizes;
    let block = |s: &mut Source| 1usize << s.below(8);
    let grid = BlockGrid {
        batch: s.pick(&[batch, 1]),
        heads: s.pick(&[heads[0], heads[1], 1]),
        queries,
        keys,
        block: [block(s), block(s)],
    };
    let listed = s.below(4) > 0;
    if listed {
        let layout = Layout::heads_first(DType::U32, grid.shape());
        draft.tensors.push(("block_mask.chosen".into(), layout.clone()));
        draft.tensors.extend(s.maybe(3, |_| ("block_mask.full".to_string(), layout)));
        draft.numbers("block_mask.block", grid.block);
        draft.numbers("block_mask.blocks", grid.blocks());
    }
    if !listed || s.one_in(3) {
        let heads: Vec<HeadBlocks> = (0..heads[0]).map(|_| head(s, listed)).collect();
        let of_heads = Shapes::default().heads(&heads);
        draft.numbers("block_mask.heads", of_heads.get_numbers("block_mask.heads").unwrap_or_default());
    }
    let FlashParams { causal, scale, softcap, score_mod, mask_mod, .. } = flash_params(s, 0);
    (attention(BlockSparseParams { causal, scale, softcap, score_mod, mask_mod }, backward), draft)
}

pub fn score_reduction(s: &mut Source) -> Drafted {
    let mut sizes = Sizes::new(s);
    let mut draft = attention_shapes(s, &mut sizes, false);
    draft.tensors.retain(|(name, _)| !["out", "lse"].contains(&name.as_str()) || s.odd(20));
    draft.wanted.clear();
    draft.tensor(s, "lse", DType::F32, sizes.lse());
    let group = |s: &mut Source| if s.odd(6) { s.number() } else { 1 << s.below(8) };
    let mut params = ScoreReductionParams {
        attention: flash_params(s, sizes.heads[0]),
        reduction: match s.below(4) {
            0 => Reduction::Max,
            1 => Reduction::Sum,
            2 => Reduction::Count { above: s.float() },
            _ => Reduction::ArgMax,
        },
        heads: s.pick(&[HeadGroups::Each, HeadGroups::PerKvHead, HeadGroups::All]),
        queries: if s.one_in(2) { QueryGroups::All } else { QueryGroups::Blocks(group(s)) },
        keys: match s.below(3) {
            0 => KeyGroups::All,
            1 => KeyGroups::Blocks(group(s)),
            _ => KeyGroups::Segments(if s.one_in(5) { s.number() } else { s.small() }),
        },
        top_k: s.maybe(4, |s| if s.one_in(5) { s.number() } else { s.small() }),
    };
    if params.reduction == Reduction::ArgMax && !s.odd(4) {
        params.top_k = None;
    }
    if matches!(params.keys, KeyGroups::Segments(_)) {
        let batch = s.pick(&[sizes.batch, 1]);
        draft.tensor(s, "segments", DType::U32, [batch, 1, 1, sizes.rows[1]]);
    }
    let (words, own) = (format!("{params:?}"), params.clone());
    let prepare: Prepare =
        Box::new(move |gpu, shapes| block_on(ScoreReduction::new(gpu, own.clone())?.prepare(shapes)));
    ((words, Box::new(move |caps, shapes| params.plan(caps, shapes)), prepare), draft)
}
