//! Where the elements of a tensor lie in its buffer.

use crate::error::require;
use crate::{DType, Error, Result};
use std::ops::Range;

/// Largest head dimension and value width.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Largest sequence: positions and their differences are 32-bit integers in the shader.
pub(crate) const MAX_SEQUENCE: usize = 1 << 30;
/// Largest slope of a head: its product with a distance is finite, with room for what else a score has.
pub(crate) const MAX_SLOPE: f32 = 1e28;
/// Most batch entries or packed sequences, and most heads: the host makes tables with a row for each.
pub(crate) const MAX_BATCH: usize = 1 << 22;
pub(crate) const MAX_HEADS: usize = 1 << 20;

/// Where the elements of a [batch, heads, sequence, head_dim] tensor are in a buffer. All numbers count elements, not
/// bytes; the elements of one row are contiguous.
///
/// ```
/// use wgpu_attention::{DType, Layout};
/// let (batch, heads, n, d) = (2, 12, 100, 64);
/// let heads_last = Layout::heads_last(DType::F16, [batch, heads, n, d]);
/// assert_eq!(heads_last.strides, [n * heads * d, d, heads * d]);
/// // The fourth head alone, seen as a tensor: any strides and offset will do.
/// assert_eq!(heads_last.narrow(1, 3..4)?.offset, 3 * d);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Layout {
    /// Type of the elements.
    pub dtype: DType,
    /// [batch, heads, sequence, head_dim].
    pub shape: [usize; 4],
    /// Distance between neighbours along batch, heads and sequence. Zero repeats an input along that dimension.
    pub strides: [usize; 3],
    /// The first element, counted from the start of the buffer.
    pub offset: usize,
}

impl Layout {
    /// Rows one after another, [batch, heads, sequence, head_dim] in memory. Rows are padded to whole words of 4 bytes,
    /// because rows of outputs start on whole words.
    pub fn heads_first(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let row = Self::padded(dtype, dim);
        let head = row.saturating_mul(rows);
        Self { dtype, shape, strides: [head.saturating_mul(heads), head, row], offset: 0 }
    }

    /// [batch, sequence, heads, head_dim] in memory, as in many models; `shape` is [batch, heads, sequence, head_dim]
    /// here too. Rows are padded as in [`Layout::heads_first`].
    pub fn heads_last(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let head = Self::padded(dtype, dim);
        let row = head.saturating_mul(heads);
        Self { dtype, shape, strides: [row.saturating_mul(rows), head, row], offset: 0 }
    }

    /// Queries, keys and values of one projection: [batch, sequence, heads_q + 2 · heads_kv, head_dim] in memory, the heads of q
    /// first, then those of k, then those of v. `shape` is [batch, heads_q, sequence, head_dim]. Rows are not padded.
    ///
    /// ```
    /// use wgpu_attention::{DType, Layout};
    /// // 32 query heads share 8 key and value heads: a row of the projection has (32 + 2 · 8) · 128 numbers.
    /// let [q, k, v] = Layout::packed_qkv(DType::F16, [1, 32, 512, 128], 8);
    /// assert_eq!((q.shape, k.shape), ([1, 32, 512, 128], [1, 8, 512, 128]));
    /// assert_eq!((q.strides, v.strides[2]), ([512 * 6144, 128, 6144], 6144));
    /// assert_eq!((q.offset, k.offset, v.offset), (0, 32 * 128, 40 * 128));
    /// ```
    pub fn packed_qkv(dtype: DType, shape: [usize; 4], heads_kv: usize) -> [Self; 3] {
        let [batch, heads_q, rows, dim] = shape;
        let row = heads_q.saturating_add(heads_kv.saturating_mul(2)).saturating_mul(dim);
        let strides = [row.saturating_mul(rows), dim, row];
        let part = |heads: usize, before: usize| Self {
            dtype,
            shape: [batch, heads, rows, dim],
            strides,
            offset: before.saturating_mul(dim),
        };
        [part(heads_q, 0), part(heads_kv, heads_q), part(heads_kv, heads_q.saturating_add(heads_kv))]
    }

    /// The elements whose index along `axis` (0: batch, 1: heads, 2: sequence, 3: head_dim) is in `range`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an axis or a range that does not exist.
    ///
    /// ```
    /// use wgpu_attention::{DType, Layout};
    /// let cache = Layout::heads_first(DType::F16, [1, 8, 4096, 128]);
    /// let filled = cache.clone().narrow(2, 0..100)?; // the first 100 rows of each head
    /// assert_eq!((filled.shape, &filled.strides), ([1, 8, 100, 128], &cache.strides));
    /// # Ok::<(), wgpu_attention::Error>(())
    /// ```
    pub fn narrow(self, axis: usize, range: Range<usize>) -> Result<Self> {
        require(axis < 4, "axis", axis, "0 (batch), 1 (heads), 2 (sequence) or 3 (head_dim)")?;
        let bound = format!("within 0..{}, the size of axis {axis}", self.shape[axis]);
        let fits = range.start <= range.end && range.end <= self.shape[axis];
        require(fits, "range", format!("{range:?}"), bound)?;
        let stride = self.strides.get(axis).copied().unwrap_or(1);
        let mut shape = self.shape;
        shape[axis] = range.len();
        let offset = self.offset.saturating_add(range.start.saturating_mul(stride));
        Ok(Self { shape, offset, ..self })
    }

    fn padded(dtype: DType, dim: usize) -> usize {
        let per_word = 4 / dtype.bytes() as usize;
        dim.checked_next_multiple_of(per_word).unwrap_or(usize::MAX)
    }

    /// The same, starting at element `offset` of the buffer.
    pub fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// The same elements, repeated by a stride of zero along every dimension where this layout has size 1 and `shape` has more. The last
    /// dimension has no stride and stays 1: a bias or a mask is then repeated along the keys.
    ///
    /// # Errors
    /// [`Error::Argument`] if the shapes differ elsewhere.
    pub fn expand(self, shape: [usize; 4]) -> Result<Self> {
        let fits = (0..4).all(|i| self.shape[i] == shape[i] || self.shape[i] == 1);
        let bound = format!("{shape:?}, or 1 in any dimension");
        require(fits, "shape", format!("{:?}", self.shape), bound)?;
        let strides = std::array::from_fn(|i| if self.shape[i] == shape[i] { self.strides[i] } else { 0 });
        Ok(Self { shape: [shape[0], shape[1], shape[2], self.shape[3]], strides, ..self })
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The elements from the first to the last, as positions in the buffer; `None` if they do not fit 2^64.
    pub(crate) fn span(&self) -> Option<Range<u64>> {
        self.part_span(&(0..self.shape[0]), &(0..self.shape[1]))
    }

    /// The same in bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] if they do not fit 2^64.
    pub(crate) fn byte_span(&self) -> Result<Range<u64>> {
        let bytes = self.dtype.bytes();
        let span = self.span().and_then(|s| Some(s.start.checked_mul(bytes)?..s.end.checked_mul(bytes)?));
        span.filter(|s| s.end < u64::MAX - 16).ok_or_else(|| {
            let value = format!("shape {:?}, strides {:?}, offset {}", self.shape, self.strides, self.offset);
            Error::argument("layout", value, "within 2^64 bytes")
        })
    }

    /// The same for some batches and heads.
    pub(crate) fn part_span(&self, batch: &Range<usize>, heads: &Range<usize>) -> Option<Range<u64>> {
        let start = self.offset as u64;
        if self.is_empty() || batch.is_empty() || heads.is_empty() {
            return Some(start..start);
        }
        let at = |indices: [usize; 3]| {
            indices
                .iter()
                .zip(self.strides)
                .try_fold(start, |sum, (&i, stride)| sum.checked_add((i as u64).checked_mul(stride as u64)?))
        };
        let last = at([batch.end - 1, heads.end - 1, self.shape[2] - 1])?;
        Some(at([batch.start, heads.start, 0])?..last.checked_add(self.shape[3] as u64)?)
    }

    /// Whether rows of four-element groups can be loaded whole.
    pub(crate) fn is_wide(&self) -> bool {
        let used = (0..3).filter(|&i| self.shape[i] > 1).all(|i| self.strides[i].is_multiple_of(4));
        used && self.shape[3].is_multiple_of(4) && self.offset.is_multiple_of(4)
    }

    /// What an output needs beyond an input: no two elements in one place, and whole words.
    pub(crate) fn check_output(&self, name: &str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // Each step is longer than all that lies within it: the row, and what goes by shorter steps.
        let within = |i: usize| {
            let shorter = (0..3).filter(|&j| (self.strides[j], j) < (self.strides[i], i));
            shorter.fold(self.shape[3], |sum, j| sum.saturating_add(self.strides[j].saturating_mul(self.shape[j] - 1)))
        };
        require(
            (0..3).all(|i| self.shape[i] <= 1 || self.strides[i] >= within(i)),
            &format!("{name}.strides"),
            format!("{:?} for shape {:?}", self.strides, self.shape),
            "such that no two elements of an output overlap",
        )?;
        let per_word = 4 / self.dtype.bytes() as usize;
        let multiple = if per_word == 2 { "even".into() } else { format!("a multiple of {per_word}") };
        let bound = format!("{multiple}: rows of outputs start on whole words");
        let odd = (0..3).find(|&i| self.shape[i] > 1 && !self.strides[i].is_multiple_of(per_word));
        if let Some(i) = odd {
            return Err(Error::argument(format!("{name}.strides[{i}]"), self.strides[i], bound));
        }
        require(self.offset.is_multiple_of(per_word), &format!("{name}.offset"), self.offset, bound)?;
        Ok(())
    }
}
