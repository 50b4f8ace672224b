//! A real model's queries, keys and values, with the output that they must give.

use super::{AttentionCase, Scores};
use crate::error::require;
use crate::reference::FlashReference;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use std::sync::OnceLock;

/// The case in a safetensors file: f32 `q`, `k`, `v` and `out` as [batch, heads, sequence, head_dim], `lse` [batch, heads,
/// sequence], and i32 `seqlens_k`, one per batch entry. What comes out is compared with the file's `out` and `lse`.
///
/// # Errors
/// [`Error::Argument`] that names the file, the tensor and what is wrong with it.
pub fn activations(path: &Path) -> Result<AttentionCase> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| Error::argument(&name, e, "a readable file"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::argument(&name, e, "a safetensors file"))?;
    let tensor = |tensor: &str, dtype: Dtype, rank: usize| -> Result<(Vec<usize>, Vec<u8>)> {
        let what = format!("{name}: {tensor}");
        let view = file.tensor(tensor).map_err(|e| Error::argument(&what, e, "in the file"))?;
        require(view.dtype() == dtype, &what, view.dtype(), dtype)?;
        require(view.shape().len() == rank, &what, format!("{:?}", view.shape()), format!("of rank {rank}"))?;
        Ok((view.shape().to_vec(), view.data().to_vec()))
    };
    let floats = |what: &str, rank: usize| {
        tensor(what, Dtype::F32, rank).map(|(shape, data)| (shape, bytemuck::pod_collect_to_vec::<u8, f32>(&data)))
    };
    let [(q_shape, q), (k_shape, k), (v_shape, v)] = [floats("q", 4)?, floats("k", 4)?, floats("v", 4)?];
    let [(out_shape, out), (lse_shape, lse)] = [floats("out", 4)?, floats("lse", 3)?];
    let (_, lengths) = tensor("seqlens_k", Dtype::I32, 1)?;
    let lengths: Vec<i32> = bytemuck::pod_collect_to_vec(&lengths);
    let seqlens: Vec<usize> = lengths.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
    for (i, (&n, keys)) in seqlens.iter().zip(std::iter::repeat(k_shape[2])).enumerate() {
        require(n <= keys, &format!("{name}: seqlens_k[{i}]"), lengths[i], format!("within 0..={keys}"))?;
    }
    let expected = [q_shape[0], q_shape[1], q_shape[2], v_shape[3]];
    let fits = k_shape[..3] == v_shape[..3] && k_shape[3] == q_shape[3] && k_shape[0] == q_shape[0];
    let fits = fits && q_shape[1].is_multiple_of(k_shape[1].max(1)) && seqlens.len() == q_shape[0];
    let fits = fits && out_shape == expected && lse_shape == expected[..3];
    let shapes = format!("q {q_shape:?}, k {k_shape:?}, v {v_shape:?}, out {out_shape:?}, lse {lse_shape:?}");
    require(fits, &name, shapes, "of shapes that fit together")?;
    let mut case = AttentionCase {
        label: "real model",
        batch: q_shape[0],
        heads: (q_shape[1], k_shape[1]),
        lengths: (q_shape[2], k_shape[2]),
        dims: (q_shape[3], v_shape[3]),
        seqlens_k: Some(seqlens),
        scores: Scores::Given([q, k, v]),
        ..AttentionCase::default()
    };
    let expected = case.reference().clone();
    let [out, lse] = [out, lse].map(|values| values.into_iter().map(f64::from).collect());
    let known = case.known.get_mut().expect("the reference has filled it");
    known.expected = OnceLock::from(FlashReference { out, lse, ..expected });
    Ok(case)
}
