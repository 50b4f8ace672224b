//! How work is divided: among workgroups, threads and dispatches.

use super::LinearAlgorithm;
use crate::{Caps, Result};

/// Tokens of a chunk, where nothing else is asked for.
pub(super) const CHUNK: usize = 64;
/// Tokens of a segment of three passes, at least: as much traffic for states as for two of q, k, v and o at head_dim 128.
const SEGMENT: usize = 256;
/// Tokens that one workgroup goes over in a dispatch, in chunks; `recurrent.rs` says why not more.
const STRETCH: usize = 4096;
/// Vec4 of head_dim that pass through workgroup memory at a time.
const BD4: usize = 4;
/// How a workgroup divides a state and a chunk: `shaders/linear/chunk.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunking {
    pub chunk: usize,
    pub cols: usize,
    pub threads: usize,
    rows: usize,
    batch: usize,
    tile: usize,
}

/// How a walk goes over its tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub algorithm: LinearAlgorithm,
    pub chunking: Chunking,
    /// Whether sequences lie one after another in one batch entry.
    pub packed: bool,
}

impl Chunking {
    /// Of a chunk that is a multiple of 32.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for one that does not fit.
    pub fn new(caps: &Caps, chunk: usize, (head_dim, value_dim): (usize, usize)) -> Result<Self> {
        let cols = if value_dim > 32 { 64 } else { 32 };
        let rows_of_threads = match head_dim {
            1..=32 => 8,
            33..=192 => 16,
            _ => 32,
        };
        let rows_of_threads = chunk.div_ceil(8).next_power_of_two().max(rows_of_threads);
        let rows = head_dim.div_ceil(4 * rows_of_threads) * 4;
        let of_batch = |batch: usize| batch * (cols / 4 + rows_of_threads * rows / 4) + batch / 4 * chunk;
        let of_reading = BD4 * (2 * chunk + cols);
        let batch = [16, 8].into_iter().find(|&batch| of_batch(batch) <= 768).unwrap_or(4);
        let tile = of_batch(batch).max(of_reading);
        let found = Self { chunk, cols, threads: 8 * rows_of_threads, rows, batch, tile };
        let what = format!("chunk {chunk} of linear attention");
        caps.within(&what, "maxComputeInvocationsPerWorkgroup", found.threads as u64, caps.invocations.into())?;
        // Running sums and the edges of a chunk, beside the tile.
        let bytes = 16 * tile + 8 * chunk + 8 * (chunk + 1) + 8;
        caps.within(&what, "maxComputeWorkgroupStorageSize", bytes as u64, caps.workgroup_memory.into())?;
        Ok(found)
    }

    pub fn constants(&self) -> Vec<(&'static str, usize)> {
        let Self { chunk, cols, threads, rows, batch, tile } = *self;
        vec![
            ("WG", threads),
            ("CHUNK", chunk),
            ("COLS", cols),
            ("RD", rows),
            ("BATCH", batch),
            ("BD4", BD4),
            ("TILE", tile),
        ]
    }
}

/// The same in whole chunks.
pub(super) fn stretch_tokens(chunk: usize) -> usize {
    STRETCH.next_multiple_of(chunk)
}

/// Tokens of a segment of three passes.
pub(super) fn segment_tokens(chunk: usize) -> usize {
    SEGMENT.next_multiple_of(chunk)
}
