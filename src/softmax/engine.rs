//! The engines that go over tiles: which one a device gets, and its tile sizes.

use super::{Portable, Processor, Sizes, Staged, staged};
use crate::error::require;
use crate::program::shader::{WrittenOut, file};
use crate::{Caps, Engine, Result};
use std::fmt;

/// An engine with its tile sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tiling {
    Portable(Portable),
    Processor(Processor),
    Staged(Staged),
}

impl Tiling {
    /// The device's engine for the forward pass.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if the device has less than core WebGPU promises; [`crate::Error::Argument`] for an engine without the
    /// subgroups that it needs.
    pub fn plan(caps: &Caps, sizes: Sizes) -> Result<Self> {
        match engine(caps)? {
            Engine::Processor if Staged::serves(caps) => Staged::plan(caps, sizes).map(Self::Staged),
            Engine::Processor if Processor::takes(caps, sizes) => Ok(Self::Processor(Processor::plan(caps, sizes))),
            _ => Portable::plan(caps, sizes).map(Self::Portable),
        }
    }

    /// What a device with more than default limits would take in its place, where that is another, in words.
    pub fn held_back(&self, caps: &Caps, sizes: Sizes) -> Option<String> {
        if cfg!(target_arch = "wasm32") {
            return None; // a page gets all that its adapter has
        }
        let best = Self::plan(&caps.beyond_default(), sizes).ok().filter(|best| best != self)?;
        Some(format!("; with more than the default limits and features (`Gpu::device_descriptor`) it could be {best}"))
    }

    /// For 8 or 16 rows, for which the family's files use no workgroup memory: many workgroups share the keys. Where tiles may be
    /// passed over, each of them first goes over all tiles of so many columns, twice.
    ///
    /// # Errors
    /// Those of [`Tiling::plan`].
    pub fn few(caps: &Caps, sizes: Sizes, rows: u32, columns: usize) -> Result<Self> {
        let sizes = Sizes { beside: 0, ..sizes };
        if engine(caps)? == Engine::Processor {
            if Staged::serves(caps) {
                return Staged::few(caps, sizes, rows).map(Self::Staged);
            }
            if let Some(found) = Processor::few(caps, sizes, rows, columns) {
                return Ok(Self::Processor(found));
            }
        }
        Portable::few(caps, sizes, rows).map(Self::Portable)
    }

    /// For gradients: both widths are summed up.
    ///
    /// # Errors
    /// Those of [`Tiling::plan`].
    pub fn gradients(caps: &Caps, sizes: Sizes) -> Result<Self> {
        match engine(caps)? {
            Engine::Processor if Processor::takes(caps, sizes) => Ok(Self::Processor(Processor::plan(caps, sizes))),
            _ => Portable::gradients(caps, sizes).map(Self::Portable),
        }
    }

    /// The same for 8 or 16 rows.
    ///
    /// # Errors
    /// Those of [`Tiling::plan`].
    pub fn gradients_of_few(caps: &Caps, sizes: Sizes, rows: u32) -> Result<Self> {
        let on_processor = engine(caps)? == Engine::Processor;
        if let Some(found) = Processor::few(caps, sizes, rows, 0).filter(|_| on_processor) {
            return Ok(Self::Processor(found));
        }
        Portable::few(caps, Sizes { dims: [sizes.dims[0], sizes.widest()], ..sizes }, rows).map(Self::Portable)
    }

    /// Rows of a tile.
    pub fn rows(&self) -> u32 {
        match self {
            Self::Portable(Portable { rows, .. })
            | Self::Processor(Processor { rows, .. })
            | Self::Staged(Staged { rows, .. }) => *rows,
        }
    }

    /// Columns of a tile.
    pub fn cols(&self) -> u32 {
        match self {
            Self::Portable(Portable { cols, .. }) | Self::Processor(Processor { cols, .. }) => *cols,
            Self::Staged(_) => staged::COLS,
        }
    }

    /// The constants that the shader files use.
    pub fn constants(&self, head_dim: usize, value_dim: usize) -> Vec<(&'static str, u32)> {
        match self {
            Self::Portable(portable) => portable.constants(head_dim, value_dim),
            Self::Processor(processor) => processor.constants(head_dim, value_dim),
            Self::Staged(staged) => staged.constants(head_dim, value_dim),
        }
    }

    /// As users know it.
    pub fn name(&self) -> Engine {
        match self {
            Self::Portable(_) => Engine::Portable,
            Self::Processor(_) | Self::Staged(_) => Engine::Processor,
        }
    }

    /// How rows and columns are multiplied.
    pub fn products(&self) -> &'static [&'static str] {
        match self {
            Self::Portable(_) => &[file::PORTABLE_PRODUCTS],
            Self::Processor(_) => &[file::PROCESSOR_REGISTERS, file::PROCESSOR_PRODUCTS],
            Self::Staged(_) => &[file::PROCESSOR_REGISTERS, file::STAGED_PRODUCTS],
        }
    }

    /// How weighted columns are added up.
    pub fn sums(&self) -> &'static str {
        match self {
            Self::Portable(_) => file::PORTABLE_SUMS,
            Self::Processor(_) => file::PROCESSOR_SUMS,
            Self::Staged(_) => file::STAGED_SUMS,
        }
    }

    /// How the threads of a row come to its maximum and its sum.
    pub fn row_values(&self) -> &'static str {
        match self {
            Self::Portable(_) => file::PORTABLE_ROWS,
            Self::Processor(_) | Self::Staged(_) => file::PROCESSOR_ROWS,
        }
    }

    /// What the threads know of a tile's columns for gradients.
    pub fn stats(&self) -> &'static str {
        match self {
            Self::Portable(_) => file::PORTABLE_STATS,
            Self::Processor(_) | Self::Staged(_) => file::PROCESSOR_STATS,
        }
    }

    /// Which loops of the files are written out.
    pub fn written_out(&self, caps: &Caps) -> WrittenOut {
        match self {
            Self::Processor(_) | Self::Staged(_) => WrittenOut::Each,
            Self::Portable(_) if caps.wants_unrolled() => WrittenOut::Every,
            Self::Portable(_) => WrittenOut::None,
        }
    }
}

/// The device's engine, if it runs there.
fn engine(caps: &Caps) -> Result<Engine> {
    let runs = caps.engine == Engine::Portable || Caps::serves_processor(caps.subgroup);
    require(runs, "caps.subgroup", caps.subgroup, "0 or a power of two from 4 to 64 for engine processor")?;
    Ok(caps.engine)
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Portable(portable) => portable.fmt(f),
            Self::Processor(processor) => processor.fmt(f),
            Self::Staged(staged) => staged.fmt(f),
        }
    }
}
