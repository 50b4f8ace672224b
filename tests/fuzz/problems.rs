//! Calls of every kernel: such as fit together, with something wrong in many of them.

use super::hooks;
use super::source::Source;
use pollster::block_on;
use wgpu_attention::{
    Attention, AttentionParams, BlockGrid, BlockSparseParams, Caps, Causal, DType, FlashParams, Gpu, HeadBlocks,
    HeadGroups, KeyGroups, Layout, LinearAlgorithm, LinearAttention, LinearParams, Merge, NeighborhoodAxis,
    NeighborhoodParams, Pool, Prepared, Program, QueryGroups, Reduction, Result, Rotary, RotaryParams, ScoreReduction,
    ScoreReductionParams, SeerDecodeGate, SeerDecodeGateParams, SeerGate, SeerGateParams, Selector, Shapes, Window,
};

type Plan = Box<dyn Fn(&Caps, &Shapes) -> Result<Program>>;
type Prepare = Box<dyn Fn(&Gpu, &Shapes) -> Result<Prepared>>;

/// A kernel with its params, and what it is called with.
pub struct Problem {
    pub words: String,
    pub plan: Plan,
    pub prepare: Prepare,
    pub shapes: Shapes,
}

/// Shapes that are made, and spoilt.
#[derive(Default)]
struct Draft {
    tensors: Vec<(String, Layout)>,
    numbers: Vec<(String, Vec<usize>)>,
    wanted: Vec<String>,
}

impl Draft {
    fn tensor(&mut self, s: &mut Source, name: impl Into<String>, dtype: DType, shape: [usize; 4]) {
        self.tensors.push((name.into(), s.layout(dtype, shape)));
    }

    /// An output that may be brought, wanted or left out.
    fn output(&mut self, s: &mut Source, name: &str, dtype: DType, shape: [usize; 4]) {
        match s.below(3) {
            0 => self.tensors.push((name.into(), Layout::heads_first(dtype, shape))),
            1 => self.wanted.push(name.into()),
            _ => {}
        }
    }

    fn numbers(&mut self, name: &str, numbers: impl Into<Vec<usize>>) {
        self.numbers.push((name.into(), numbers.into()));
    }

    /// Lengths or offsets, on the host or on the GPU.
    fn counts(&mut self, s: &mut Source, on_gpu: bool, name: &str, numbers: Vec<usize>) {
        match on_gpu != s.odd(8) {
            true => self.tensors.push((name.into(), Layout::heads_first(DType::U32, [1, 1, 1, numbers.len()]))),
            false => self.numbers.push((name.into(), numbers)),
        }
    }

    fn spoil(&mut self, s: &mut Source) {
        let any = |s: &mut Source, count: usize| (count > 0).then(|| s.below(count));
        match s.below(8) {
            0 | 1 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                let (which, n) = (s.below(4), s.number());
                self.tensors[i].1.shape[which] = n;
            }
            2 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                let (which, n) = (s.below(4), s.number());
                let layout = &mut self.tensors[i].1;
                *layout.strides.get_mut(which).unwrap_or(&mut layout.offset) = n;
            }
            3 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                self.tensors[i].1.dtype = s.pick(&[DType::F32, DType::F16, DType::Bf16, DType::U8, DType::U32]);
            }
            4 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                self.tensors.swap_remove(i);
            }
            5 => {
                let (name, dtype) = (s.name(), s.token_type());
                let shape = [(); 4].map(|()| s.small());
                self.tensors.push((name, Layout::heads_first(dtype, shape)));
            }
            6 => {
                let Some(i) = any(s, self.numbers.len()) else { return };
                let numbers = &mut self.numbers[i].1;
                match (s.below(3), any(s, numbers.len())) {
                    (0, _) | (_, None) => numbers.push(s.number()),
                    (1, Some(at)) => drop(numbers.remove(at)),
                    (_, Some(at)) => numbers[at] = s.number(),
                }
            }
            _ => {
                let (name, count) = (s.name(), s.below(4));
                let numbers: Vec<usize> = (0..count).map(|_| s.number()).collect();
                self.numbers.push((name, numbers));
            }
        }
    }

    fn shapes(self) -> Shapes {
        let shapes = Shapes::new(self.tensors);
        let shapes = self.numbers.into_iter().fold(shapes, |shapes, (name, numbers)| shapes.numbers(name, numbers));
        self.wanted.into_iter().fold(shapes, Shapes::wanted)
    }
}

/// Sizes of one attention problem.
struct Sizes {
    batch: usize,
    heads: [usize; 2],
    rows: [usize; 2],
    widths: [usize; 2],
    dtype: DType,
}

impl Sizes {
    fn new(s: &mut Source) -> Self {
        let heads_kv = s.pick(&[1, 2, 3]);
        let width = |s: &mut Source| s.pick(&[1, 2, 4, 8, 8, 16, 20, 32, 33]);
        let d = width(s);
        Self {
            batch: s.pick(&[0, 1, 1, 2, 3]),
            heads: [heads_kv * s.pick(&[1, 1, 2, 4]), heads_kv],
            rows: [s.small(), s.small()],
            widths: [d, if s.one_in(3) { width(s) } else { d }],
            dtype: s.token_type(),
        }
    }

    fn q(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.widths[0]]
    }

    fn k(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.rows[1], self.widths[0]]
    }

    fn v(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.rows[1], self.widths[1]]
    }

    fn out(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.widths[1]]
    }

    fn lse(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], 1]
    }

    fn pairs(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.rows[1]]
    }
}

/// Ascending offsets of a few sequences.
fn offsets(s: &mut Source, count: usize, rows: usize) -> Vec<usize> {
    let mut offsets: Vec<usize> = (0..count).map(|_| s.below(rows + 1)).collect();
    offsets.push(0);
    offsets.sort_unstable();
    offsets
}

/// The shapes of an attention call, forward or backward.
fn attention_shapes(s: &mut Source, sizes: &mut Sizes, backward: bool) -> Draft {
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

fn causal(s: &mut Source) -> Option<Causal> {
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

impl Problem {
    pub fn any(s: &mut Source) -> Self {
        let ((words, plan, prepare), mut draft) = match s.below(12) {
            0 | 1 => flash(s),
            2 | 3 => neighborhood(s),
            4 | 5 => block_sparse(s),
            6 => score_reduction(s),
            7 => gate(s),
            8 => decode_gate(s),
            9 => linear(s),
            10 => merge(s),
            _ => rotary(s),
        };
        for _ in 0..if s.wild { s.pick(&[0, 1, 1, 2, 3]) } else { 0 } {
            draft.spoil(s);
        }
        let mut shapes = draft.shapes();
        if let Some(names) = s.maybe(16, |s| [s.pick(&["q", "out", "dq"]), s.pick(&["k", "lse", "dk", "q"])]) {
            shapes = shapes.clone().in_one_buffer(&names).unwrap_or(shapes);
        }
        Self { words, plan, prepare, shapes }
    }
}

type Drafted = ((String, Plan, Prepare), Draft);

fn flash(s: &mut Source) -> Drafted {
    let (mut sizes, backward) = (Sizes::new(s), s.one_in(3));
    let draft = attention_shapes(s, &mut sizes, backward);
    (attention(flash_params(s, sizes.heads[0]), backward), draft)
}

fn neighborhood(s: &mut Source) -> Drafted {
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

fn block_sparse(s: &mut Source) -> Drafted {
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

fn score_reduction(s: &mut Source) -> Drafted {
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

fn pools(s: &mut Source) -> Vec<Pool> {
    let mut all = vec![Pool::Max, Pool::Min, Pool::Avg];
    if s.odd(6) {
        return (0..s.below(5)).map(|_| s.pick(&all)).collect();
    }
    all.rotate_left(s.below(3));
    all.truncate(1 + s.below(3));
    all
}

fn selector(s: &mut Source) -> Selector {
    match s.below(4) {
        0 => Selector::Threshold(f64::from(s.float())),
        1 => Selector::Density(f64::from(s.float())),
        2 => Selector::TopP(f64::from(s.float())),
        _ => Selector::Budget(128 + s.number().min(usize::MAX - 128)),
    }
}

fn gate(s: &mut Source) -> Drafted {
    let mut sizes = Sizes::new(s);
    let mut draft = attention_shapes(s, &mut sizes, false);
    let unused = ["v", "out", "lse", "bias", "mask", "additional_k", "additional_v"];
    draft.tensors.retain(|(name, _)| !unused.contains(&name.as_str()) && (s.odd(8) || !name.contains("seqlens")));
    draft.numbers.retain(|(name, _)| s.odd(8) || !name.starts_with("max"));
    draft.wanted.clear();
    let params = SeerGateParams {
        block: [1 << s.below(8), 1 << s.below(8)],
        pool_q: pools(s),
        pool_k: pools(s),
        rope_theta: s.maybe(2, Source::float),
        causal: causal(s),
        selector: selector(s),
        sink: s.one_in(2),
        diagonal: s.one_in(2),
        last_rows_dense: s.one_in(2),
    };
    let (d, gate_dim, weights) = (sizes.widths[0], s.pick(&[2, 8, 16, 7]), s.token_type());
    let heads = s.pick(&sizes.heads);
    draft.tensor(s, "wk", weights, [1, heads, params.pool_k.len() * d, gate_dim]);
    if s.one_in(2) {
        draft.tensor(s, "wq", weights, [1, sizes.heads[0], params.pool_q.len() * d, gate_dim]);
    }
    for name in ["logits", "scores"].into_iter().filter(|_| s.one_in(2)) {
        draft.wanted.push(name.into());
    }
    let (words, own) = (format!("{params:?}"), params.clone());
    let prepare: Prepare = Box::new(move |gpu, shapes| block_on(SeerGate::new(gpu, own.clone())?.prepare(shapes)));
    let training = draft.wanted.is_empty() && s.one_in(2);
    let plan: Plan = Box::new(move |caps, shapes| {
        if training {
            let each = params.plan_training(1.0, 0, caps, shapes);
            if matches!(each, Err(wgpu_attention::Error::Internal { .. })) {
                return each.map(|[first, ..]| first);
            }
        }
        params.plan(caps, shapes)
    });
    ((words, plan, prepare), draft)
}

fn decode_gate(s: &mut Source) -> Drafted {
    let mut sizes = Sizes::new(s);
    sizes.rows[0] = s.pick(&[1, 1, 2, 8]);
    let Sizes { batch, heads: [hq, hkv], rows: [_, keys], widths: [d, _], .. } = sizes;
    let params = SeerDecodeGateParams {
        block: 1 << s.below(8),
        pool_k: pools(s),
        rope_theta: s.maybe(2, Source::float),
        norm_epsilon: if s.one_in(4) { s.float() } else { 1e-6 },
        selector: selector(s),
        sink: s.one_in(2),
    };
    let (gate_dim, weights) = (s.pick(&[2, 8, 16, 7]), s.token_type());
    let mut draft = Draft::default();
    let compression = s.one_in(3);
    draft.tensor(s, "wk", weights, [1, hkv, params.pool_k.len() * d, gate_dim]);
    draft.tensor(s, "wq", weights, [1, hkv, hq / hkv * d, gate_dim]);
    for name in ["norm_q", "norm_k"].into_iter().filter(|_| s.one_in(3)) {
        draft.tensors.push((name.into(), Layout::heads_first(weights, [1, 1, 1, gate_dim])));
    }
    let blocks = keys.div_ceil(params.block);
    draft.tensor(s, "compressed", DType::F32, [batch, hkv, blocks, gate_dim]);
    if compression {
        draft.tensor(s, "k", sizes.dtype, sizes.k());
        let before: Vec<usize> = (0..batch).map(|_| s.below(keys + 1)).collect();
        let after: Vec<usize> = before.iter().map(|n| n + s.below(keys + 2)).collect();
        draft.numbers("before", before);
        draft.numbers("after", after);
    } else {
        draft.tensor(s, "q", sizes.dtype, sizes.q());
        draft.numbers("keys", [keys]);
        if s.one_in(2) {
            let lengths: Vec<usize> = (0..batch).map(|_| s.below(keys + 1)).collect();
            let on_gpu = s.one_in(2);
            draft.counts(s, on_gpu, "seqlens_k", lengths);
        }
        draft.wanted.extend(["logits", "scores"].into_iter().filter(|_| s.one_in(2)).map(String::from));
    }
    let (words, own) = (format!("{params:?} {}", if compression { "compression" } else { "" }), params.clone());
    let prepare: Prepare = Box::new(move |gpu, shapes| {
        let gate = SeerDecodeGate::new(gpu, own.clone())?;
        if compression { block_on(gate.prepare_compression(shapes)) } else { block_on(gate.prepare(shapes)) }
    });
    let plan: Plan = Box::new(move |caps, shapes| match compression {
        true => params.plan_compression(caps, shapes),
        false => params.plan(caps, shapes),
    });
    ((words, plan, prepare), draft)
}

fn linear(s: &mut Source) -> Drafted {
    let (mut sizes, backward) = (Sizes::new(s), s.one_in(3));
    let most = s.pick(&[1, 2, 4]);
    let heads = [s.pick(&[1, most]), s.pick(&[1, most]), most];
    let mut draft = Draft::default();
    let tokens = if s.one_in(4) { s.pick(&[0, 128, 300]) } else { sizes.rows[0] };
    let mut entries = sizes.batch;
    if s.one_in(3) {
        sizes.batch = 1;
        let count = s.below(4);
        entries = count;
        let offsets = offsets(s, count, tokens);
        draft.numbers("cu_seqlens", offsets);
    } else if s.one_in(3) {
        let lengths: Vec<usize> = (0..entries).map(|_| s.below(tokens + 1)).collect();
        draft.numbers("seqlens", lengths);
    }
    let [d, dv] = sizes.widths;
    let batch = sizes.batch;
    let [q, k, v] = [0, 1, 2].map(|i| [batch, heads[i], tokens, [d, d, dv][i]]);
    for (name, shape) in [("q", q), ("k", k), ("v", v)] {
        draft.tensor(s, name, sizes.dtype, shape);
    }
    let (out, state) = ([batch, most, tokens, dv], [entries, most, d, dv]);
    let gated = s.one_in(3);
    if gated {
        draft.tensor(s, "g", DType::F32, [batch, most, tokens, 1]);
    }
    let initial = s.below(3);
    if initial == 1 {
        draft.tensor(s, "h0", DType::F32, state);
    }
    if backward {
        draft.tensor(s, "dout", sizes.dtype, out);
        if s.one_in(2) {
            draft.tensor(s, "dht", DType::F32, state);
        }
        for (name, shape) in [("dq", q), ("dk", k), ("dv", v)] {
            draft.output(s, name, sizes.dtype, shape);
        }
    } else {
        draft.output(s, "o", sizes.dtype, out);
        match initial {
            2 => draft.tensors.push(("state".into(), Layout::heads_first(DType::F32, state))),
            _ => draft.output(s, "ht", DType::F32, state),
        }
        if s.one_in(6) {
            draft.wanted.push("snapshots".into());
        }
    }
    use LinearAlgorithm::{OnePass, Recurrent, ThreePass};
    let params = LinearParams {
        causal: (gated && !s.odd(8)) || s.below(4) > 0,
        reverse: s.one_in(2),
        scale: s.maybe(3, Source::float),
        slopes: s.maybe(4, |s| (0..most).map(|_| s.float()).collect()).filter(|_| !gated || s.odd(8)),
        algorithm: s.pick(&[None, Some(Recurrent), Some(OnePass), Some(ThreePass)]),
        chunk: s.maybe(4, |s| if s.odd(3) { s.number() } else { 32 * (1 + s.below(8)) }),
    };
    let (words, own) = (format!("{params:?} {}", if backward { "backward" } else { "" }), params.clone());
    let prepare: Prepare = Box::new(move |gpu, shapes| {
        let attention = LinearAttention::new(gpu, own.clone())?;
        if backward { block_on(attention.prepare_backward(shapes)) } else { block_on(attention.prepare(shapes)) }
    });
    let plan: Plan = Box::new(move |caps, shapes| match backward {
        true => params.plan_backward(caps, shapes),
        false => params.plan(caps, shapes),
    });
    ((words, plan, prepare), draft)
}

fn merge(s: &mut Source) -> Drafted {
    let sizes = Sizes::new(s);
    let mut draft = Draft::default();
    for i in 0..if s.odd(8) { 0 } else { s.pick(&[1, 2, 3, 5]) } {
        draft.tensor(s, format!("parts[{i}].out"), sizes.dtype, sizes.out());
        draft.tensor(s, format!("parts[{i}].lse"), DType::F32, sizes.lse());
    }
    draft.output(s, "out", sizes.dtype, sizes.out());
    draft.output(s, "lse", DType::F32, sizes.lse());
    let prepare: Prepare = Box::new(|gpu, shapes| block_on(Merge::new(gpu).prepare(shapes)));
    (("merge".into(), Box::new(|caps, shapes| shapes.plan_merge(caps)), prepare), draft)
}

fn rotary(s: &mut Source) -> Drafted {
    let mut sizes = Sizes::new(s);
    let params = RotaryParams {
        theta: if s.one_in(3) { s.float() } else { 10_000.0 },
        interleaved: s.one_in(2),
        dim: s.maybe(2, |s| if s.odd(3) { s.number() } else { 2 * s.small() }),
    };
    let width = sizes.widths[0];
    if !s.odd(3) {
        sizes.widths[0] = params.dim.unwrap_or(width + width % 2).max(width).min(256);
    }
    let mut draft = Draft::default();
    draft.tensor(s, "x", sizes.dtype, sizes.q());
    match s.below(3) {
        0 => {
            let batch = s.pick(&[sizes.batch, 1]);
            draft.tensor(s, "positions", DType::U32, [batch, 1, 1, sizes.rows[0]]);
        }
        1 => {
            let numbers = [s.number(), s.number()];
            draft.numbers("positions", numbers);
        }
        _ => {}
    }
    draft.output(s, "out", sizes.dtype, sizes.q());
    let (words, own, backward) = (format!("{params:?}"), params.clone(), s.one_in(3));
    let prepare: Prepare = Box::new(move |gpu, shapes| {
        let rotary = Rotary::new(gpu, own.clone())?;
        if backward { block_on(rotary.prepare_backward(shapes)) } else { block_on(rotary.prepare(shapes)) }
    });
    let plan: Plan = Box::new(move |caps, shapes| match backward {
        true => params.plan_backward(caps, shapes),
        false => params.plan(caps, shapes),
    });
    ((words, plan, prepare), draft)
}
