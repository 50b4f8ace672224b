//! The engine `processor`: for adapters whose shaders run on a CPU, where a load costs as much as dozens of multiplications.

use super::Sizes;
use crate::Caps;
use std::fmt;

/// Tile sizes of the `processor` engine; `shaders/engines/processor/products.wgsl` says what each means.
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

/// Tile sizes for one kind of driver.
struct Driver {
    /// The widest head dimension or value width: wider ones go by engine `portable`.
    widest: usize,
    /// Columns of a tile for widths up to 64, and beyond.
    cols: [u32; 2],
    /// From how many floating-point operations of the forward pass on a thread has two rows, and four.
    flops: [f64; 2],
}

/// Few threads to a subgroup, gradients only ([`super::Staged`] is the forward pass): SwiftShader has 4. Long texts compile slowly there.
/// B 1, H 2, N 512, D 64, f32, two cores, in ms:
///
/// | rows × columns | gradients | first |
/// |---|---|---|
/// | 1 × 1 | 862 | 1760 |
/// | 2 × 1 | 512 | 2253 |
/// | 4 × 1 | 381 | 4637 |
/// | 1 × 4 | 756 | 3806 |
/// | 2 × 4 | 346 | 5359 |
/// | 4 × 2 | 291 | 14691 |
const SMALL_SUBGROUPS: Driver = Driver { widest: 64, cols: [1, 1], flops: [3e7, 2e8] };

/// Mesa's llvmpipe has 8. Version 22.3, B 1, H 8, N 1024, f32, two cores, in ms:
///
/// | D | rows × columns | forward | backward | first forward | first backward |
/// |---|---|---|---|---|---|
/// | 32 | 2 × 8 | 70 | 183 | 934 | 2845 |
/// | | 4 × 8 | 39 | 129 | 1335 | 4269 |
/// | | 8 × 8 | 43 | 137 | 3223 | 12846 |
/// | 64 | 2 × 4 | 140 | 413 | 1212 | 3203 |
/// | | 2 × 8 | 137 | 402 | 1439 | 5762 |
/// | | 4 × 4 | 113 | 382 | 2526 | 7090 |
/// | | 4 × 8 | 87 | 298 | 3460 | 11077 |
/// | 128 | 2 × 4 | 305 | 972 | 1602 | 7579 |
/// | | 4 × 4 | 241 | 826 | 4049 | 15211 |
const LARGE_SUBGROUPS: Driver = Driver { widest: 256, cols: [8, 4], flops: [3e7, 1e9] };

impl Processor {
    /// Whether the device has subgroups, and runs it for rows so wide.
    pub fn takes(caps: &Caps, sizes: Sizes) -> bool {
        caps.subgroup > 0 && sizes.widest() <= Self::driver(caps).widest
    }

    /// Tile sizes for a forward pass or gradients.
    pub fn plan(caps: &Caps, sizes: Sizes) -> Self {
        // More rows make a call faster, and its shader slower to compile. A row's bits do not depend on how many there are.
        let steps = Self::driver(caps).flops.iter().filter(|&&flops| sizes.flops >= flops).count() as u32;
        let row_part = (1 << steps).min(if sizes.widest() > 128 { 2 } else { 4 });
        Self::with_tile(caps, row_part, sizes)
    }

    /// Tile sizes for 8 or 16 rows, if the device runs it, and its loops may go twice over the tiles of so many columns and over the
    /// map besides.
    pub fn few(caps: &Caps, sizes: Sizes, rows: u32, columns: usize) -> Option<Self> {
        if !Self::takes(caps, sizes) {
            return None;
        }
        let found = Self::with_tile(caps, rows.div_ceil(caps.subgroup), sizes);
        let rounds = 4 * columns as u64 / u64::from(found.cols);
        caps.loop_rounds().is_none_or(|most| rounds <= most / 2).then_some(found)
    }

    fn driver(caps: &Caps) -> Driver {
        if caps.subgroup < 8 { SMALL_SUBGROUPS } else { LARGE_SUBGROUPS }
    }

    fn with_tile(caps: &Caps, row_part: u32, sizes: Sizes) -> Self {
        let [narrow, wide] = Self::driver(caps).cols;
        let cols = if sizes.widest() > 64 { wide } else { narrow };
        let threads = caps.subgroup;
        let rows = threads * row_part;
        Self { rows, cols: cols.min(threads), row_part, threads, beside: sizes.beside * rows }
    }

    /// The constants that the shader files use.
    pub fn constants(&self, head_dim: usize, value_dim: usize) -> Vec<(&'static str, u32)> {
        // Threads that load one column between them, and vec4 of it that each of them loads.
        let parts = self.threads / self.cols;
        let [d4, v4] = [head_dim, value_dim].map(|width| width.div_ceil(4) as u32);
        let loads = d4.max(v4).div_ceil(parts);
        vec![
            ("BR", self.rows),
            ("BC", self.cols),
            ("RT", self.row_part),
            ("CT", self.cols),
            ("WG", self.threads),
            ("PARTS", parts),
            ("LOADS", loads),
            ("WIDTH", loads * parts),
            ("OV", loads * parts),
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
