//! The texts of all kernels, for compilers that are not here.

use super::choose::selection;
use super::compress::compression;
use super::{SeerDecodeGateParams, Sizes};
use crate::gate::frame::Frame;
use crate::gate::step::{Chain, Part, Places};
use crate::packed::Side;
use crate::{BlockGrid, Caps, DType, Layout, Result};

/// The text of every kernel of these params, with or without norms, with its name.
pub(crate) fn decode_texts(
    caps: &Caps,
    params: &SeerDecodeGateParams,
    normed: [bool; 2],
    dtype: DType,
) -> Result<Vec<(String, String)>> {
    let sizes = Sizes { heads_kv: 2, group: 3, head_dim: 20, gate_dim: 12 };
    let blocks = 5;
    let frame = params.frame(vec![[0, 2, 0, 70]], [2, blocks], normed, &sizes);
    let [q, k] = [6, 2].map(|heads| Layout::heads_first(dtype, [1, heads, blocks * params.block, sizes.head_dim]));
    let mut places = Places::default();
    let norm = Layout::heads_first(dtype, [1, 1, 1, sizes.gate_dim]);
    let grid = BlockGrid { batch: 1, heads: 2, queries: 2, keys: blocks * params.block, block: frame.block };
    let given = [
        (Part::Q, q),
        (Part::K, k),
        (Part::Wq, frame.weights(Side::Queries)),
        (Part::Wk, frame.weights(Side::Keys)),
        (Part::NormQ, norm.clone()),
        (Part::NormK, norm),
        (Part::PooledK, frame.pooled(Side::Keys)),
        (Part::VectorsQ, frame.vectors(Side::Queries)),
        (Part::VectorsK, frame.vectors(Side::Keys)),
        (Part::Logits, frame.logits()),
        (Part::Scores, frame.logits()),
        (Part::Chosen, Layout::heads_first(DType::U32, grid.shape())),
    ];
    for (part, layout) in given {
        places.own(part, layout);
    }
    let tasks = [compression(&frame), selection(&frame, true), selection(&frame, false)].into_iter().flatten();
    let steps = tasks.map(|task| task.plan(caps, &frame, &places)).collect::<Result<_>>()?;
    let chain = Chain { steps, between: vec![] };
    let mut texts: Vec<_> = chain.wgsl().into_iter().map(|(name, text)| (name.to_string(), text)).collect();
    let frame = Frame { past: true, complete: false, forced: 0, ..frame };
    texts.extend(frame.texts(caps, &places)?);
    Ok(texts)
}
