//! Which rows of the tensors are tokens.

use crate::error::require;
use crate::packed::{check_host_lengths, check_offsets};
use crate::{Result, Shapes};

/// Lengths of batch entries, or where packed sequences begin and end.
pub(super) struct Sequences {
    seqlens: Option<Vec<usize>>,
    cu_seqlens: Option<Vec<usize>>,
}

impl Sequences {
    pub fn of(shapes: &Shapes) -> Self {
        let [seqlens, cu_seqlens] =
            ["seqlens", "cu_seqlens"].map(|name| shapes.get_numbers(name).map(<[usize]>::to_vec));
        Self { seqlens, cu_seqlens }
    }

    pub fn are_packed(&self) -> bool {
        self.cu_seqlens.is_some()
    }

    /// Batch entries, or sequences.
    pub fn entries(&self, batch: usize) -> usize {
        self.cu_seqlens.as_ref().map_or(batch, |offsets| offsets.len().saturating_sub(1))
    }

    /// (first row, tokens) of each batch entry or sequence, of tensors with so many of either.
    pub fn rows(&self, [batch, tokens]: [usize; 2]) -> Vec<[u32; 4]> {
        match (&self.cu_seqlens, &self.seqlens) {
            (Some(offsets), _) => offsets.windows(2).map(|w| [w[0] as u32, (w[1] - w[0]) as u32, 0, 0]).collect(),
            (None, Some(lengths)) => lengths.iter().map(|&length| [0, length as u32, 0, 0]).collect(),
            (None, None) => vec![[0, tokens as u32, 0, 0]; batch],
        }
    }

    /// Whether they fit a tensor with so many batch entries and tokens.
    ///
    /// # Errors
    /// [`crate::Error::Argument`].
    pub fn check(&self, tensor: &str, [batch, tokens]: [usize; 2]) -> Result<()> {
        let both = self.seqlens.is_some() && self.cu_seqlens.is_some();
        require(!both, "seqlens", "set", "unset with cu_seqlens, which give the lengths")?;
        self.seqlens.iter().try_for_each(|lengths| check_host_lengths("seqlens", lengths, batch, tokens))?;
        let Some(offsets) = &self.cu_seqlens else { return Ok(()) };
        require(batch == 1, &format!("{tensor}.shape[0] (batch)"), batch, "1 with packed sequences")?;
        check_offsets("cu_seqlens", offsets, tokens)
    }
}
