//! The list of flash attention cases.

use super::data::DTYPES;
use super::flash_few::few_queries;
use super::{AttentionCase, KnownHook, Scores};
use crate::{Causal, DType, FlashParams, Window};

const HEAD_DIMS: [usize; 12] = [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256];
const LENGTHS: [(usize, usize); 15] = [
    (1, 1),
    (1, 3),
    (2, 1),
    (1, 239),
    (239, 1),
    (3, 799),
    (799, 3),
    (127, 512),
    (127, 513),
    (113, 203),
    (108, 256),
    (256, 512),
    (512, 256),
    (1023, 1024),
    (1024, 1023),
];

/// The catalogue: the shapes that break kernels, every feature, every type, inputs that exercise the rescale.
pub fn flash_cases() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    for (i, &d) in HEAD_DIMS.iter().enumerate() {
        let (heads, lengths) = ([(6, 6), (6, 2), (6, 1)][i % 3], (70 + i, 131));
        let scores = Scores::Normal([1.0, 3.0, 6.0][i % 3]);
        let params = FlashParams { causal: (i % 2 == 1).then_some(Causal::BottomRight), ..FlashParams::default() };
        let dtypes = [DTYPES[i % 3]; 3];
        cases.push(AttentionCase {
            label: "head dim",
            heads,
            lengths,
            dims: (d, d),
            params,
            dtypes,
            scores,
            ..case(i)
        });
    }
    for (i, &lengths) in LENGTHS.iter().enumerate() {
        let heads = if lengths.0 * lengths.1 > 100_000 { (2, 1) } else { [(6, 6), (6, 2), (6, 1)][i % 3] };
        for (label, causal) in
            [("lengths", None), ("causal", Some(Causal::BottomRight)), ("causal top-left", Some(Causal::TopLeft))]
        {
            let params = FlashParams { causal, ..FlashParams::default() };
            let scores = Scores::Normal([3.0, 6.0, 1.0][i % 3]);
            cases.push(AttentionCase { label, heads, lengths, params, scores, ..case(i) });
        }
    }
    for (i, additional) in [1, 70, 129].into_iter().enumerate() {
        let params = FlashParams {
            causal: Some(Causal::BottomRight),
            softcap: (i == 1).then_some(20.0),
            alibi_slopes: (i == 2).then(|| vec![0.1, 0.2, 0.0, -0.1]),
            ..FlashParams::default()
        };
        cases.push(AttentionCase {
            label: "additional keys",
            batch: 2,
            heads: (4, 2),
            lengths: (90, 80),
            params,
            additional,
            seqlens_q: (i == 0).then(|| vec![90, 7]),
            seqlens_k: (i == 1).then(|| vec![0, 70]),
            on_gpu: i == 0,
            bias: (i == 2).then_some([true, false, false, false]),
            scores: Scores::Normal(3.0),
            ..case(450 + i).of_type(DTYPES[i])
        });
    }
    cases.extend(masks());
    cases.extend(values());
    cases.extend(scores());
    cases.extend(storage());
    cases.extend(hooks());
    cases.extend(packed());
    cases.extend(few_queries());
    cases
}

fn case(i: usize) -> AttentionCase {
    AttentionCase { seed: 1000 + 10 * i as u64, ..AttentionCase::default() }
}

fn masks() -> Vec<AttentionCase> {
    let window = |left, right, causal| FlashParams { window: Window { left, right }, causal, ..FlashParams::default() };
    let mut cases = Vec::new();
    for (i, (params, lengths)) in [
        (window(Some(20), Some(0), None), (150, 150)),
        (window(Some(0), Some(0), None), (130, 130)),
        (window(Some(3), Some(90), None), (100, 260)),
        (window(None, Some(5), None), (200, 90)),
        (window(Some(70), None, Some(Causal::BottomRight)), (90, 230)),
        (window(Some(70), None, Some(Causal::TopLeft)), (90, 130)),
        (window(Some(2), Some(2), Some(Causal::TopLeft)), (40, 200)),
        (window(Some(usize::MAX), Some(usize::MAX), None), (65, 129)),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(AttentionCase { label: "window", lengths, params, scores: Scores::Normal(3.0), ..case(100 + i) });
    }
    for (i, causal) in [None, Some(Causal::BottomRight), Some(Causal::TopLeft)].into_iter().enumerate() {
        cases.push(AttentionCase {
            label: "padding",
            batch: 4,
            lengths: (90, 140),
            seqlens_q: Some(vec![90, 1, 0, 65]),
            seqlens_k: Some(vec![140, 64, 3, 0]),
            on_gpu: i == 1,
            params: FlashParams { causal, ..FlashParams::default() },
            scores: Scores::Normal(3.0),
            ..case(110 + i)
        });
    }
    cases.push(AttentionCase { label: "no keys", lengths: (70, 0), ..case(120) });
    cases.push(AttentionCase { label: "no queries", lengths: (0, 70), ..case(121) });
    cases.push(AttentionCase { label: "no batch", batch: 0, ..case(122) });
    cases
}

fn values() -> Vec<AttentionCase> {
    let lengths = (100, 200);
    let scaled = |scale| FlashParams { scale: Some(scale), ..FlashParams::default() };
    let causal = || FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    let mut cases = vec![
        AttentionCase { label: "peaked", lengths, scores: Scores::Peaked, params: causal(), ..case(200) },
        AttentionCase { label: "scale 0", lengths, params: scaled(0.0), ..case(201) },
        AttentionCase { label: "scale -0.3", lengths, params: scaled(-0.3), ..case(202) },
        AttentionCase { label: "values wider", lengths, dims: (24, 72), scores: Scores::Normal(3.0), ..case(203) },
        AttentionCase { label: "values narrower", lengths, dims: (192, 5), scores: Scores::Normal(3.0), ..case(204) },
        AttentionCase { label: "width 1", lengths, dims: (1, 1), scores: Scores::Normal(6.0), ..case(205) },
    ];
    for (i, logit) in [-1e4, -2.5e5].into_iter().enumerate() {
        cases.push(AttentionCase {
            label: "low logits",
            lengths,
            scores: Scores::Around(logit),
            params: causal(),
            ..case(210 + i)
        });
    }
    for (i, amplitude) in [1.0, 3.0, 6.0].into_iter().enumerate() {
        let scores = Scores::Normal(amplitude);
        cases.push(AttentionCase {
            label: "amplitude",
            lengths: (130, 600),
            scores,
            params: causal(),
            ..case(220 + i)
        });
    }
    cases
}

fn scores() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    // Amplitude 6 gives scores of some hundreds: the caps bite.
    for (i, (softcap, causal, lengths)) in [
        (Some(5.0), None, (130, 200)),
        (Some(50.0), Some(Causal::BottomRight), (200, 130)),
        (Some(0.01), Some(Causal::TopLeft), (70, 90)),
    ]
    .into_iter()
    .enumerate()
    {
        let params = FlashParams { softcap, causal, ..FlashParams::default() };
        cases.push(AttentionCase { label: "softcap", lengths, params, scores: Scores::Normal(6.0), ..case(240 + i) });
    }
    for (i, (softcap, causal)) in
        [(None, None), (None, Some(Causal::BottomRight)), (Some(20.0), Some(Causal::TopLeft))].into_iter().enumerate()
    {
        // The slopes of the paper for 6 heads, and a negative one.
        let slopes = (1..=6).map(|h| if h == 4 { -0.02 } else { 2f32.powf(-8.0 * h as f32 / 6.0) }).collect();
        cases.push(AttentionCase {
            label: if softcap.is_some() { "softcap and ALiBi" } else { "ALiBi" },
            batch: 2,
            heads: (6, 2),
            lengths: (150, 210),
            seqlens_q: Some(vec![150, 70]),
            seqlens_k: Some(vec![180, 210]),
            params: FlashParams { softcap, causal, alibi_slopes: Some(slopes), ..FlashParams::default() },
            scores: Scores::Normal(3.0),
            ..case(250 + i)
        });
    }
    for (i, (bias, mask)) in [
        (Some([false, false, false, false]), None),
        (Some([true, true, false, false]), None),
        (Some([false, true, true, false]), None),
        (None, Some([false, false, false, false])),
        (None, Some([true, false, true, false])),
        (Some([true, false, false, false]), Some([false, true, false, false])),
        // One value for all keys.
        (Some([false, false, false, true]), Some([true, false, false, true])),
        (Some([false, true, true, true]), None),
    ]
    .into_iter()
    .enumerate()
    {
        let causal = (i % 2 == 1).then_some(Causal::BottomRight);
        let label = match (bias, mask) {
            (Some(_), Some(_)) => "bias and mask",
            (Some(_), None) => "bias",
            _ => "mask",
        };
        cases.push(AttentionCase {
            label,
            batch: 2,
            heads: (4, 2),
            lengths: (90, 151),
            seqlens_k: (i % 3 == 0).then(|| vec![151, 77]),
            on_gpu: i == 3,
            params: FlashParams { causal, ..FlashParams::default() },
            bias,
            mask,
            scores: Scores::Normal(3.0),
            ..case(260 + i).of_type(DTYPES[i % 3])
        });
    }
    cases.push(AttentionCase {
        label: "everything",
        batch: 2,
        heads: (4, 2),
        lengths: (150, 150),
        seqlens_q: Some(vec![150, 90]),
        seqlens_k: Some(vec![110, 150]),
        params: FlashParams {
            causal: Some(Causal::TopLeft),
            window: Window { left: Some(100), right: None },
            scale: Some(0.2),
            softcap: Some(15.0),
            alibi_slopes: Some(vec![0.5, 0.25, 0.0, -0.01]),
            ..FlashParams::default()
        },
        bias: Some([true, false, false, false]),
        mask: Some([false, true, false, false]),
        scores: Scores::Normal(3.0),
        ..case(270)
    });
    cases
}

fn storage() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    let params = || FlashParams { causal: Some(Causal::BottomRight), ..FlashParams::default() };
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let base = |j: usize| AttentionCase {
            batch: 2,
            heads: (4, 2),
            lengths: (70, 90),
            params: params(),
            scores: Scores::Normal(3.0),
            ..case(300 + 10 * i + j).of_type(dtype)
        };
        cases.push(AttentionCase { label: "strided", strided: true, ..base(0) });
        cases.push(AttentionCase { label: "strided", strided: true, dims: (33, 17), ..base(1) });
        cases.push(AttentionCase { label: "odd width", dims: (31, 59), ..base(2) });
        cases.push(AttentionCase { label: "amplitude", dims: (64, 64), scores: Scores::Normal(6.0), ..base(3) });
    }
    let dtypes = [DType::F32, DType::F16, DType::Bf16];
    cases.push(AttentionCase { label: "mixed types", dtypes, lengths: (70, 90), ..case(340) });
    let dtypes = [DType::Bf16, DType::F32, DType::F32];
    cases.push(AttentionCase { label: "mixed types", dtypes, lengths: (70, 90), dims: (20, 21), ..case(341) });
    cases
}

fn hooks() -> Vec<AttentionCase> {
    use KnownHook::{Documents, Fields, Prefix, Relative, Stripes, TanhCap};
    let mut cases = Vec::new();
    for (i, (hooks, causal, batch)) in [
        (vec![Relative], None, 1),
        (vec![TanhCap], Some(Causal::BottomRight), 1),
        (vec![Fields], None, 2),
        (vec![Documents(5)], None, 2),
        (vec![Documents(5)], Some(Causal::BottomRight), 1),
        (vec![Prefix], None, 1),
        (vec![Stripes], None, 2),
        (vec![TanhCap, Relative, Fields, Documents(3), Stripes, Prefix], Some(Causal::TopLeft), 2),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(AttentionCase {
            label: "hooks",
            batch,
            heads: (4, 2),
            lengths: (170, 210),
            params: FlashParams { causal, softcap: (i == 7).then_some(30.0), ..FlashParams::default() },
            seqlens_k: (i % 4 == 3 && batch == 2).then(|| vec![150, 210]),
            mask: (i == 7).then_some([true, true, false, false]),
            hooks,
            scores: Scores::Normal(3.0),
            ..case(400 + i).of_type(DTYPES[i % 3])
        });
    }
    cases
}

fn packed() -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    for (i, (q, k)) in [
        (vec![0, 5, 5, 70, 200, 264], vec![0, 9, 40, 105, 105, 250]),
        (vec![0, 130], vec![0, 77]),
        (vec![0, 0, 64, 128, 129], vec![0, 1, 65, 65, 194]),
        (vec![0], vec![0]),
    ]
    .into_iter()
    .enumerate()
    {
        for on_gpu in [false, true] {
            let i = 2 * i + usize::from(on_gpu);
            let causal = [None, Some(Causal::BottomRight), Some(Causal::TopLeft)][i % 3];
            let window = Window { left: (i % 4 == 1).then_some(30), right: None };
            let slopes = (i % 3 == 0).then(|| vec![0.1, 0.02, 0.0, -0.01]);
            cases.push(AttentionCase {
                label: "packed",
                heads: (4, 2),
                lengths: (q[q.len() - 1], k[k.len() - 1]),
                cu_seqlens: Some([q.clone(), k.clone()]),
                on_gpu,
                params: FlashParams { causal, window, alibi_slopes: slopes, ..FlashParams::default() },
                bias: (i % 3 == 1).then_some([false, true, false, false]),
                mask: (i % 4 >= 2).then_some([false, false, false, false]),
                hooks: if i % 4 == 1 { vec![KnownHook::Relative, KnownHook::Stripes] } else { vec![] },
                strided: i % 2 == 0,
                scores: Scores::Normal(3.0),
                ..case(420 + i).of_type(DTYPES[i % 3])
            });
        }
    }
    cases
}
