//! Element types, and where the elements of a tensor lie in its buffer.

use crate::error::require;
use crate::{Error, Result};
use half::{bf16, f16};
use std::fmt;
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

/// The type of stored elements. Arithmetic is f32 whatever is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
    /// One byte: for masks, where zero is false.
    U8,
    /// 32-bit unsigned integers: offsets and indices, and masks, where zero is false.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// `values` rounded to nearest even, as stored.
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            DType::F32 => bytemuck::cast_slice(values).to_vec(),
            DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            DType::U8 => values.iter().map(|&x| x.round_ties_even() as u8).collect(),
            DType::U32 => values.iter().flat_map(|&x| (x.round_ties_even() as u32).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            DType::F32 => bytemuck::pod_read_unaligned(bytes),
            DType::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            DType::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
            DType::U8 => f32::from(bytes[0]),
            DType::U32 => bytemuck::pod_read_unaligned::<u32>(bytes) as f32,
        }
    }

    /// `x` rounded to nearest even in this type.
    pub fn round(self, x: f32) -> f32 {
        self.decode(&self.encode(&[x]))
    }
}

impl DType {
    /// Whether it holds numbers to compute with.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::U8 => "u8",
            DType::U32 => "u32",
        })
    }
}

/// Where the elements of a [batch, heads, sequence, head_dim] tensor lie in a buffer. All in elements, not bytes; the
/// elements of one row are contiguous.
///
/// ```
/// use wgpu_attention::{DType, Layout};
/// let (batch, heads, n, d) = (2, 12, 100, 64);
/// let heads_last = Layout::heads_last(DType::F16, [batch, heads, n, d]);
/// assert_eq!(heads_last.strides, [n * heads * d, d, heads * d]);
/// // One head's queries for a whole batch, seen as a tensor: any strides and offset will do.
/// let third = Layout { shape: [batch, 1, n, d], ..heads_last }.at(3 * d);
/// assert_eq!(third.offset, 192);
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
    /// because rows of outputs start there.
    pub fn heads_first(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let row = Self::padded(dtype, dim);
        let head = row.saturating_mul(rows);
        Self { dtype, shape, strides: [head.saturating_mul(heads), head, row], offset: 0 }
    }

    /// [batch, sequence, heads, head_dim] in memory, as many models have it; `shape` is [batch, heads, sequence,
    /// head_dim] here too. Rows are padded as in [`Layout::heads_first`].
    pub fn heads_last(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let head = Self::padded(dtype, dim);
        let row = head.saturating_mul(heads);
        Self { dtype, shape, strides: [row.saturating_mul(rows), head, row], offset: 0 }
    }

    fn padded(dtype: DType, dim: usize) -> usize {
        let per_word = 4 / dtype.bytes() as usize;
        dim.checked_next_multiple_of(per_word).unwrap_or(usize::MAX)
    }

    /// The same, starting at element `offset` of the buffer.
    pub fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// The same elements repeated along every dimension where this layout has one and `shape` more: a stride of zero. The last
    /// dimension has no stride and stays 1: a bias or a mask is repeated along the keys then.
    ///
    /// # Errors
    /// [`Error::Argument`] if the shapes differ elsewhere.
    pub fn expand(self, shape: [usize; 4]) -> Result<Self> {
        let fits = (0..4).all(|i| self.shape[i] == shape[i] || self.shape[i] == 1);
        let bound = format!("{shape:?}, or 1 in place of any");
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
            "such that no two elements of an output lie in one place",
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
