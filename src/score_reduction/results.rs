//! What a score reduction writes.

use super::{KeyGroups, ScoreReductionParams};
use crate::error::{require, require_set};
use crate::program::{Builder, Operand};
use crate::softmax::AttentionShapes;
use crate::{DType, Layout, Result};

/// What is written, and the segment of each key.
pub(super) struct Results {
    pub values: Operand,
    pub indices: Option<Operand>,
    pub segments: Option<Operand>,
}

impl Results {
    pub fn new(builder: &mut Builder, params: &ScoreReductionParams, attention: &AttentionShapes) -> Result<Self> {
        let [batch, _, _, keys] = attention.pairs();
        let wanted = params.shape(attention);
        let [.., groups] = params.groups(attention);
        if let Some(k) = params.top_k {
            require(k <= groups.max(1), "top_k", k, format!("at most {groups}, the number of groups of keys"))?;
        }
        let segments = builder.tensor("segments");
        let by_segments = matches!(params.keys, KeyGroups::Segments(_));
        require_set("segments", segments.is_some(), by_segments, "to match the params' key groups")?;
        if let Some(Operand { layout, .. }) = &segments {
            let fits = [[batch, 1, 1, keys], [1, 1, 1, keys]].contains(&layout.shape);
            let bound = format!("[{batch} or 1, 1, 1, {keys}], to match k");
            require(fits, "segments.shape", format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == DType::U32, "segments.dtype", layout.dtype, "u32")?;
            layout.byte_span()?;
        }
        let values = builder.output("values", Layout::heads_first(DType::F32, wanted))?;
        let has_indices = params.has_indices();
        let of_indices = Layout::heads_first(DType::U32, wanted);
        let indices =
            if has_indices { Some(builder.output("indices", of_indices)?) } else { builder.tensor("indices") };
        require_set("indices", indices.is_some(), has_indices, "to match the reduction and top_k")?;
        for (name, operand, dtype) in [("values", Some(&values), DType::F32), ("indices", indices.as_ref(), DType::U32)]
        {
            let Some(Operand { layout, .. }) = operand else { continue };
            let bound = format!("{wanted:?}, to match q, k and the groups");
            require(layout.shape == wanted, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype == dtype, &format!("{name}.dtype"), layout.dtype, dtype)?;
            layout.byte_span()?;
            layout.check_output(name)?;
        }
        Ok(Self { values, indices, segments })
    }
}
