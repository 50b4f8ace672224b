//! Calls of gates, linear attention, merge and rotary embeddings.

use super::draft::{Draft, Drafted, Plan, Prepare, Sizes, offsets};
use super::softmax::{attention_shapes, causal};
use super::source::Source;
use pollster::block_on;
use wgpu_attention::gate::{Pool, SeerDecodeGate, SeerDecodeGateParams, SeerGate, SeerGateParams, Selector};
use wgpu_attention::{
    DType, Error, FeatureMap, Layout, LinearAlgorithm, LinearAttention, LinearParams, LinearRule, Merge, Rotary,
    RotaryParams,
};

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

pub fn gate(s: &mut Source) -> Drafted {
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
            if matches!(each, Err(Error::Internal { .. })) {
                return each.map(|[first, ..]| first);
            }
        }
        params.plan(caps, shapes)
    });
    ((words, plan, prepare), draft)
}

pub fn decode_gate(s: &mut Source) -> Drafted {
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

pub fn linear(s: &mut Source) -> Drafted {
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
    use FeatureMap::{Elu1, Identity, Relu, Taylor2};
    let last = if d < 22 || s.odd(3) { Taylor2 } else { Relu };
    let feature_map = s.pick(&[Identity, Identity, Elu1, Relu, last]);
    let features = feature_map.features(d);
    let (out, state) = ([batch, most, tokens, dv], [entries, most, features, dv]);
    let rule = s.pick(&[LinearRule::Linear, LinearRule::Linear, LinearRule::Delta, LinearRule::Momentum]);
    let momentum = rule == LinearRule::Momentum;
    let gated = if momentum { s.odd(8) } else { s.one_in(3) };
    let gates = s.pick(&[1, features]);
    if gated {
        draft.tensor(s, "g", DType::F32, [batch, most, tokens, gates]);
    }
    let with_beta = if rule == LinearRule::Delta { s.one_in(2) } else { s.odd(8) };
    if with_beta {
        let own = s.pick(&[1, most]);
        draft.tensor(s, "beta", DType::F32, [batch, own, tokens, 1]);
    }
    for name in ["alpha", "eta", "theta"].into_iter().filter(|_| momentum) {
        let own = s.pick(&[1, most]);
        draft.tensor(s, name, DType::F32, [batch, own, tokens, 1]);
    }
    let normalize = if rule == LinearRule::Linear { s.one_in(4) } else { s.odd(8) };
    let sums = [entries, most, features, 1];
    let initial = s.below(3);
    if initial == 1 && normalize && s.one_in(2) {
        draft.tensor(s, "z0", DType::F32, sums);
    }
    if initial == 1 {
        draft.tensor(s, "h0", DType::F32, state);
    }
    if initial < 2 && momentum && s.one_in(2) {
        draft.tensor(s, "s0", DType::F32, state);
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
            2 => {
                draft.tensors.push(("state".into(), Layout::heads_first(DType::F32, state)));
                if momentum && !s.odd(8) {
                    draft.tensors.push(("s".into(), Layout::heads_first(DType::F32, state)));
                }
                if normalize && !s.odd(8) {
                    draft.tensors.push(("z".into(), Layout::heads_first(DType::F32, sums)));
                }
            }
            _ => draft.output(s, "ht", DType::F32, state),
        }
        if s.one_in(6) && (!(normalize || momentum) || s.odd(4)) {
            draft.wanted.push("snapshots".into());
        }
    }
    let one_by_one = (rule != LinearRule::Linear || gated && gates > 1) && !s.odd(4);
    let longest = if s.odd(8) { 300 } else { 40 };
    let chunk = s.maybe(2, |s| 1 + s.below(longest));
    let of_chunks = s.maybe(4, |s| if s.odd(3) { s.number() } else { 32 * (1 + s.below(8)) }).filter(|_| !one_by_one);
    use LinearAlgorithm::{OnePass, Recurrent, ThreePass};
    let params = LinearParams {
        rule,
        feature_map,
        l2_norm: s.one_in(4),
        normalize: normalize.then_some(1e-6).map(|epsilon| if s.odd(8) { s.float() } else { epsilon }),
        causal: ((gated || rule != LinearRule::Linear) && !s.odd(8)) || s.below(4) > 0,
        reverse: s.one_in(2),
        scale: s.maybe(3, Source::float),
        slopes: s.maybe(4, |s| (0..most).map(|_| s.float()).collect()).filter(|_| !(gated || momentum) || s.odd(8)),
        algorithm: s.pick(&[None, Some(Recurrent), Some(OnePass), Some(ThreePass)]).filter(|_| !one_by_one),
        chunk: if momentum { chunk } else { of_chunks },
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

pub fn merge(s: &mut Source) -> Drafted {
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

pub fn rotary(s: &mut Source) -> Drafted {
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
