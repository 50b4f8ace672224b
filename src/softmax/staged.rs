//! The forward pass of engine `processor` where there are no subgroups (in browsers, wgpu does not ask for them) or small ones.

use super::Sizes;
use crate::{Caps, Result};
use std::fmt;

/// Tile sizes; `shaders/engines/staged/products.wgsl` says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staged {
    pub rows: u32,
    row_part: u32,
    threads: u32,
    width: u32,
    /// Bytes of workgroup memory that a family's files use.
    beside: u32,
}

/// Columns of a tile.
pub(super) const COLS: u32 = 2;
/// Threads where there are rows enough.
const THREADS: u32 = 32;
/// From how many floating-point operations of the forward pass on a thread has two rows, four and eight. SwiftShader in Chromium 156, B 1,
/// H 8, N 1024, D 64, f32, two cores, in ms, dense attention and nothing else; engine `portable` in the same page took 652 to 756, its
/// first run 3012 to 3615:
///
/// | rows × columns | forward | first |
/// |---|---|---|
/// | 2 × 2 | 732 | 1233 |
/// | 4 × 1 | 650 | 1148 |
/// | 4 × 2 | 492 | 1191 |
/// | 4 × 4 | 444 | 1837 |
/// | 6 × 2 | 325 | 1269 |
/// | 8 × 1 | 355 | 1342 |
/// | 8 × 2 | 290 | 1678 |
///
/// The whole kernel, 8 × 2, in a program on SwiftShader: 406; columns by broadcasts in subgroups of 4: 639; `portable`: 1437.
const FLOPS: [f64; 3] = [3e7, 2e8, 1e9];
/// Rows of a thread times their vec4 at most: what is compiled grows with it.
const MOST: u32 = 128;

impl Staged {
    /// For drivers whose subgroups are too few threads to share loads (SwiftShader's have 4), and which do not count a loop's rounds.
    pub fn serves(caps: &Caps) -> bool {
        caps.subgroup < 8 && caps.loop_rounds().is_none()
    }

    /// Tile sizes for a forward pass. A row's bits do not depend on them.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if the device has less than core WebGPU promises.
    pub fn plan(caps: &Caps, sizes: Sizes) -> Result<Self> {
        let steps = FLOPS.iter().filter(|&&flops| sizes.flops >= flops).count();
        let most = (MOST / Self::width(sizes)).max(1);
        Self::with_rows(caps, (THREADS, (1 << steps).min(1 << most.ilog2())), sizes)
    }

    /// Tile sizes for 8 or 16 rows.
    ///
    /// # Errors
    /// Those of [`Staged::plan`].
    pub fn few(caps: &Caps, sizes: Sizes, rows: u32) -> Result<Self> {
        Self::with_rows(caps, (rows, 1), sizes)
    }

    fn width(sizes: Sizes) -> u32 {
        sizes.widest().div_ceil(4) as u32
    }

    fn with_rows(caps: &Caps, (threads, row_part): (u32, u32), sizes: Sizes) -> Result<Self> {
        let rows = threads * row_part;
        let found = Self { rows, row_part, threads, width: Self::width(sizes), beside: sizes.beside * rows };
        let (memory, what) = (u64::from(found.memory()), sizes.what);
        caps.within(what, "maxComputeInvocationsPerWorkgroup", threads.into(), caps.invocations.into())?;
        caps.within(what, "maxComputeWorkgroupStorageSize", memory, caps.workgroup_memory.into())?;
        Ok(found)
    }

    /// Bytes of workgroup memory: columns of both kinds and what is set aside of them, and a flag.
    fn memory(&self) -> u32 {
        48 * COLS * self.width + 4 + self.beside
    }

    /// The constants that the shader files use.
    pub fn constants(&self, head_dim: usize, value_dim: usize) -> Vec<(&'static str, u32)> {
        vec![
            ("BR", self.rows),
            ("BC", COLS),
            ("RT", self.row_part),
            ("CT", COLS),
            ("WG", self.threads),
            ("WIDTH", self.width),
            ("OV", self.width),
            ("WORDS", self.width.div_ceil(8)),
            ("HEAD_DIM", head_dim as u32),
            ("D4", head_dim.div_ceil(4) as u32),
            ("HEAD_DIM_V", value_dim as u32),
            ("DV4", value_dim.div_ceil(4) as u32),
        ]
    }
}

impl fmt::Display for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "processor: {} × {COLS} tiles, {} threads with {} × {COLS} scores each, columns staged in workgroup memory, {} bytes of it",
            self.rows,
            self.threads,
            self.row_part,
            self.memory()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Staged;
    use crate::Caps;
    use crate::softmax::Sizes;

    #[test]
    fn every_width_fits_core_webgpu() {
        for width in 1..=256 {
            for flops in [0.0, 1e8, 1e12] {
                let sizes = Sizes { what: "attention", dims: [width, 1], beside: 24, flops };
                for found in [Staged::plan(&Caps::core(), sizes), Staged::few(&Caps::core(), sizes, 16)] {
                    let found = found.expect("it fits");
                    assert!(found.width * found.row_part <= 128 && found.rows == found.threads * found.row_part);
                }
            }
        }
    }
}
