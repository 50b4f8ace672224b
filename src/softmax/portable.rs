//! The softmax engine that flash, block-sparse and neighborhood attention share: its variants and their tile sizes.

use super::Sizes;
use crate::{Caps, Result};

/// Tile sizes of the `portable` engine; `shaders/engines/portable/` says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portable {
    pub rows: u32,
    pub cols: u32,
    row_part: u32,
    col_part: u32,
    threads: u32,
    /// vec4 groups of the head dimension in one chunk.
    chunk: u32,
    /// Quads of keys whose weights pass through workgroup memory at a time.
    quads: u32,
    out_part: u32,
    /// vec4 elements of workgroup memory.
    memory: u32,
    /// Bytes of it that a family's files use besides.
    beside: u32,
}

/// Workgroup memory to use at most, so that several workgroups fit a compute unit.
const MEMORY: u32 = 17 << 10;
/// Bytes of workgroup memory beside the tile: a flag.
const FLAG: u32 = 16;

impl Portable {
    /// Tile sizes for a forward pass.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if the device has less than core WebGPU promises.
    pub fn plan(caps: &Caps, sizes: Sizes) -> Result<Self> {
        // Rows, columns and rows a thread: what keeps the output (row_part · out_part vec4) within 64 registers, and no
        // thread idle while it accumulates.
        let tile = match sizes.dims[1] {
            // SwiftShader fetches from workgroup memory word by word: the more sums for each, the better.
            0..=64 if caps.is_software_in_browser() => (64, 64, 16, 8),
            0..=32 => (64, 64, 4, 8),
            33..=64 => (64, 64, 8, 4),
            65..=96 => (64, 64, 4, 8),
            97..=128 => (64, 64, 8, 4),
            _ => (32, 64, 4, 4),
        };
        Self::with_tile(caps, sizes, tile)
    }

    /// Tile sizes for gradients, where sums are as wide as the wider of both.
    ///
    /// # Errors
    /// Those of [`Portable::plan`].
    pub fn gradients(caps: &Caps, sizes: Sizes) -> Result<Self> {
        Self::plan(caps, Sizes { dims: [sizes.dims[0], sizes.widest()], ..sizes })
    }

    fn with_tile(caps: &Caps, sizes: Sizes, (rows, cols, row_part, col_part): (u32, u32, u32, u32)) -> Result<Self> {
        let Sizes { what, dims, .. } = sizes;
        let [d4, v4] = dims.map(|width| width.div_ceil(4) as u32);
        let per_row = cols / col_part;
        let threads = rows / row_part * per_row;
        let out_part = v4.div_ceil(per_row);
        let beside = sizes.beside * rows;
        let bytes = caps.workgroup_memory.saturating_sub(beside).min(MEMORY).saturating_sub(FLAG);
        // Every place of a chunk is staged by a group of eight threads.
        let chunk = Self::chunk(d4, (bytes / 16 / (rows + cols)).min(threads / 8));
        let per_quad = rows + 4 * out_part * per_row;
        let quads = (0..=4).map(|e| (cols / 4) >> e).find(|q| q * per_quad <= bytes / 16).unwrap_or(1);
        let memory =
            (chunk * (rows + cols)).max(quads * per_quad).max((per_row + 1) * rows / 4).max(threads * col_part / 4);
        let needed = u64::from(memory * 16 + FLAG + beside);
        caps.within(what, "maxComputeWorkgroupStorageSize", needed, caps.workgroup_memory.into())?;
        caps.within(what, "maxComputeInvocationsPerWorkgroup", threads.into(), caps.invocations.into())?;
        Ok(Self { rows, cols, row_part, col_part, threads, chunk, quads, out_part, memory, beside })
    }

    /// Tile sizes for 8 or 16 rows: a few threads a workgroup, so that many workgroups share the keys.
    ///
    /// # Errors
    /// Those of [`Portable::plan`].
    pub fn few(caps: &Caps, sizes: Sizes, rows: u32) -> Result<Self> {
        Self::with_tile(caps, sizes, (rows, 64, 4, 4))
    }

    /// Chunk length that splits `d4` with little padding and few chunks, at most `most`.
    fn chunk(d4: u32, most: u32) -> u32 {
        let cost = |chunk: u32| d4.div_ceil(chunk) * (chunk + 1);
        (1..=most.clamp(1, d4)).rev().min_by_key(|&chunk| cost(chunk)).unwrap_or(1)
    }

    /// The constants that the shader files use.
    pub fn constants(&self, head_dim: usize, value_dim: usize) -> Vec<(&'static str, u32)> {
        vec![
            ("BR", self.rows),
            ("BC", self.cols),
            ("RT", self.row_part),
            ("CT", self.col_part),
            ("WG", self.threads),
            ("BD4", self.chunk),
            ("PQ", self.quads),
            ("OV", self.out_part),
            ("TILE", self.memory),
            ("HEAD_DIM", head_dim as u32),
            ("D4", head_dim.div_ceil(4) as u32),
            ("HEAD_DIM_V", value_dim as u32),
            ("DV4", value_dim.div_ceil(4) as u32),
        ]
    }
}

impl std::fmt::Display for Portable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "portable: {} × {} tiles, {} threads with {} × {} scores each, head dimension in chunks of {}, {} bytes of \
             workgroup memory",
            self.rows,
            self.cols,
            self.threads,
            self.row_part,
            self.col_part,
            4 * self.chunk,
            16 * self.memory + FLAG + self.beside
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AdapterKind;

    #[test]
    fn every_width_fits_core_webgpu() {
        let software = Caps { kind: AdapterKind::Software, ..Caps::core() }.for_attention([1, 1, 64, 64]);
        for caps in [Caps::core(), software] {
            for (head_dim, value_dim) in (1..=256).flat_map(|d| [1, 20, 32, 64, 96, 128, 200, 256, d].map(|v| (d, v))) {
                for beside in [0, 8, 16, 24] {
                    let sizes = Sizes { what: "test", dims: [head_dim, value_dim], beside, flops: 0.0 };
                    let plan = Portable::plan(&caps, sizes).expect("core WebGPU");
                    let bytes = 16 * plan.memory + FLAG + plan.beside;
                    assert!(bytes <= caps.workgroup_memory, "{head_dim} {value_dim} {beside}");
                }
            }
        }
    }
}
