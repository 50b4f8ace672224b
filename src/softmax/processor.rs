//! The engine `processor`: for adapters whose shaders run on a CPU, where a load costs as much as dozens of multiplications.

use crate::Caps;
use std::fmt;

/// Tile sizes of the `processor` engine; `shaders/engines/processor/scores.wgsl` says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Processor {
    pub rows: u32,
    pub cols: u32,
    row_part: u32,
    /// Threads of a subgroup, which is a workgroup.
    threads: u32,
    /// Bytes of workgroup memory that a family's files use.
    beside: u32,
}

impl Processor {
    /// Tile sizes for a head dimension and a value width.
    pub fn plan(caps: &Caps, [head_dim, value_dim]: [usize; 2], beside: u32) -> Self {
        let (row_part, cols) = match head_dim.max(value_dim) {
            0..=32 => (4, 8),
            33..=64 => (2, 8),
            65..=128 => (2, 4),
            _ => (1, 4),
        };
        Self::with_tile(caps, row_part, cols, beside)
    }

    /// Tile sizes for 8 or 16 rows.
    pub fn few(caps: &Caps, dims: [usize; 2], rows: u32) -> Self {
        let cols = if dims[0].max(dims[1]) > 128 { 4 } else { 8 };
        Self::with_tile(caps, rows.div_ceil(caps.subgroup), cols, 0)
    }

    fn with_tile(caps: &Caps, row_part: u32, cols: u32, beside: u32) -> Self {
        let threads = caps.subgroup;
        let rows = threads * row_part;
        Self { rows, cols: cols.min(threads), row_part, threads, beside: beside * rows }
    }

    /// The constants that the shader files use.
    pub fn constants(&self, head_dim: usize, value_dim: usize) -> Vec<(&'static str, u32)> {
        // Threads that load one column between them, and vec4 of it that each of them loads.
        let parts = self.threads / self.cols;
        let [d4, v4] = [head_dim, value_dim].map(|width| width.div_ceil(4) as u32);
        let [d_each, v_each] = [d4, v4].map(|width| width.div_ceil(parts));
        vec![
            ("BR", self.rows),
            ("BC", self.cols),
            ("RT", self.row_part),
            ("CT", self.cols),
            ("WG", self.threads),
            ("PARTS", parts),
            ("DL", d_each),
            ("OL", v_each),
            ("OV", v_each * parts),
            ("ROW_D4", d_each * parts),
            ("HEAD_DIM", head_dim as u32),
            ("D4", d4),
            ("HEAD_DIM_V", value_dim as u32),
            ("DV4", v4),
        ]
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "processor: {} × {} tiles, {} threads with {} × {} scores each, columns handed round by subgroup broadcasts, {} \
             bytes of workgroup memory",
            self.rows, self.cols, self.threads, self.row_part, self.cols, self.beside
        )
    }
}
