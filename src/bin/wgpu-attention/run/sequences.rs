//! Lengths and offsets of sequences, from the file.

use super::file::{Inputs, error};
use wgpu_attention::Result;

/// seqlens_q and seqlens_k.
pub fn lengths(inputs: &Inputs) -> Result<[Option<Vec<usize>>; 2]> {
    Ok([inputs.integers("seqlens_q")?, inputs.integers("seqlens_k")?])
}

/// cu_seqlens_q and cu_seqlens_k, both or none.
pub fn offsets(inputs: &Inputs) -> Result<Option<[Vec<usize>; 2]>> {
    match (inputs.integers("cu_seqlens_q")?, inputs.integers("cu_seqlens_k")?) {
        (None, None) => Ok(None),
        (Some(q), Some(k)) => Ok(Some([q, k])),
        (q, _) => {
            let (has, lacks) = if q.is_some() { ("q", "k") } else { ("k", "q") };
            let bound = format!("in the file, as cu_seqlens_{has} is");
            Err(error(inputs.what(&format!("cu_seqlens_{lacks}")), "missing", bound))
        }
    }
}

/// The longest of the sequences with these offsets.
pub fn longest(offsets: &[usize]) -> usize {
    offsets.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or(0)
}
