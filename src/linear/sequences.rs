//! Which rows of the tensors are tokens.

use crate::error::require;
use crate::packed::{self, Lengths, Offsets};
use crate::program::shader::Binding;
use crate::program::{Builder, Table, small_table};
use crate::{Result, Shapes};

/// Lengths of batch entries, or where packed sequences begin and end.
#[derive(Clone, Debug)]
pub(super) struct Sequences {
    seqlens: Option<Lengths>,
    cu_seqlens: Option<Offsets>,
}

/// The table `sequences` of `shaders/linear/shared.wgsl`: (first row, tokens) of each batch entry or sequence.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub table: (Binding, Table),
    pub entries: usize,
    /// Tokens of the longest, or the most that it may have.
    pub longest: usize,
}

impl Sequences {
    /// Those of a call whose tensors have so many batch entries and tokens.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for what does not fit.
    pub fn of(builder: &Builder, shapes: &Shapes, tensor: &str, [batch, tokens]: [usize; 2]) -> Result<Self> {
        let seqlens = packed::lengths_of(builder, shapes, "seqlens")?;
        let cu_seqlens = packed::offsets_of(builder, shapes, "cu_seqlens", "max_seqlen", tokens)?;
        let both = seqlens.is_some() && cu_seqlens.is_some();
        require(!both, "seqlens", "set", "unset with cu_seqlens, which give the lengths")?;
        packed::check_lengths_of("seqlens", seqlens.as_ref(), batch, tokens)?;
        if let Some(offsets) = &cu_seqlens {
            require(batch == 1, &format!("{tensor}.shape[0] (batch)"), batch, "1 with packed sequences")?;
            packed::check_offsets_of("cu_seqlens", "max_seqlen", offsets, tokens)?;
        }
        Ok(Self { seqlens, cu_seqlens })
    }

    pub fn are_packed(&self) -> bool {
        self.cu_seqlens.is_some()
    }

    /// Batch entries, or sequences.
    pub fn entries(&self, batch: usize) -> usize {
        self.cu_seqlens.as_ref().map_or(batch, Offsets::sequences)
    }

    /// Where they are: on the host, or by a kernel that is added.
    ///
    /// # Errors
    /// [`crate::Error::Limit`].
    pub fn rows(&self, builder: &mut Builder, [batch, tokens]: [usize; 2]) -> Result<Rows> {
        let entries = self.entries(batch);
        let host = |rows: Vec<[u32; 4]>| Rows {
            table: small_table("sequences", &rows),
            entries,
            longest: rows.iter().map(|row| row[1] as usize).max().unwrap_or(0),
        };
        Ok(match (&self.cu_seqlens, &self.seqlens) {
            (Some(Offsets::Host(offsets)), _) => {
                host(offsets.windows(2).map(|w| [w[0] as u32, (w[1] - w[0]) as u32, 0, 0]).collect())
            }
            (Some(Offsets::Gpu { offsets, max_seqlen }), _) => {
                let table = packed::one_side(builder, "cu_seqlens", offsets, [entries, tokens], Some(*max_seqlen))?;
                Rows { table, entries, longest: *max_seqlen }
            }
            (None, Some(Lengths::Host(lengths))) => {
                host(lengths.iter().map(|&length| [0, length as u32, 0, 0]).collect())
            }
            (None, Some(Lengths::Gpu(lengths))) => {
                let table = packed::one_side(builder, "seqlens", lengths, [entries, tokens], None)?;
                Rows { table, entries, longest: tokens }
            }
            (None, None) => host(vec![[0, tokens as u32, 0, 0]; batch]),
        })
    }
}
