//! Tensors: a GPU buffer, an element type, a shape, strides and an offset.

use crate::error::require;
use crate::{Error, Gpu, Result};
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;

/// The type of stored elements. Arithmetic is f32 whatever is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// `values` rounded to nearest even, as stored.
    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            DType::F32 => bytemuck::cast_slice(values).to_vec(),
            DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            DType::F32 => bytemuck::pod_read_unaligned(bytes),
            DType::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            DType::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
        }
    }

    /// `x` rounded to nearest even in this type.
    pub fn round(self, x: f32) -> f32 {
        self.decode(&self.encode(&[x]))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        })
    }
}

/// Where the elements of a [batch, heads, sequence, head_dim] tensor lie in a buffer. All in elements, not bytes; the
/// elements of one row are contiguous.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Rows one after another, [batch, heads, sequence, head_dim] in memory. An odd row of 16-bit elements is padded by
    /// one element, because rows of outputs start on whole words.
    pub fn heads_first(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let row = Self::padded(dtype, dim);
        let head = row.saturating_mul(rows);
        Self { dtype, shape, strides: [head.saturating_mul(heads), head, row], offset: 0 }
    }

    /// [batch, sequence, heads, head_dim] in memory, as many models have it; `shape` is [batch, heads, sequence,
    /// head_dim] here too. Odd rows of 16-bit elements are padded as in [`Layout::heads_first`].
    pub fn heads_last(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, heads, rows, dim] = shape;
        let head = Self::padded(dtype, dim);
        let row = head.saturating_mul(heads);
        Self { dtype, shape, strides: [row.saturating_mul(rows), head, row], offset: 0 }
    }

    fn padded(dtype: DType, dim: usize) -> usize {
        dim.saturating_add((dtype.bytes() == 2 && dim % 2 == 1).into())
    }

    /// The same, starting at element `offset` of the buffer.
    pub fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The elements from the first to the last, as positions in the buffer; `None` if they do not fit 2^64.
    pub(crate) fn span(&self) -> Option<Range<u64>> {
        self.part_span(&(0..self.shape[0]), &(0..self.shape[1]))
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
        let mut dims: Vec<(usize, usize)> = (0..3).map(|i| (self.strides[i], self.shape[i])).collect();
        dims.retain(|&(_, n)| n > 1);
        dims.sort_unstable();
        let mut inner = self.shape[3];
        for (stride, n) in dims {
            require(
                stride >= inner,
                &format!("{name}.strides"),
                format!("{:?} for shape {:?}", self.strides, self.shape),
                "such that no two elements of an output lie in one place",
            )?;
            inner = stride.saturating_mul(n - 1).saturating_add(inner);
        }
        if self.dtype.bytes() == 2 {
            let even = "even: rows of 16-bit outputs start on whole words";
            let odd = (0..3).find(|&i| self.shape[i] > 1 && self.strides[i] % 2 == 1);
            if let Some(i) = odd {
                return Err(Error::argument(format!("{name}.strides[{i}]"), self.strides[i], even));
            }
            require(self.offset.is_multiple_of(2), &format!("{name}.offset"), self.offset, even)?;
        }
        Ok(())
    }
}

/// A tensor on the GPU. It shares its buffer with whoever else holds that buffer; cloning copies no data.
#[derive(Clone, Debug)]
pub struct Tensor {
    gpu: Gpu,
    buffer: wgpu::Buffer,
    layout: Layout,
}

impl Tensor {
    /// Uploads `values` ([batch, heads, sequence, head_dim], last index fastest), rounded to `dtype`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many values as the shape says; [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn upload(gpu: &Gpu, shape: [usize; 4], dtype: DType, values: &[f32]) -> Result<Self> {
        let tensor = Self::empty(gpu, Layout::heads_first(dtype, shape)).await?;
        tensor.write(values).await?;
        Ok(tensor)
    }

    /// A tensor with a buffer of its own, zero until something is written.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layout that leaves 2^64; [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn empty(gpu: &Gpu, layout: Layout) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let bytes = byte_span(&layout)?.end;
        let buffer = gpu.buffer("tensor", bytes, usage, &[]).await?;
        Self::wrap(gpu, &buffer, layout)
    }

    /// A view of a buffer that the caller made on `gpu`'s device; no data is touched.
    ///
    /// # Errors
    /// [`Error::Argument`] if the layout leaves the buffer, if the buffer's size is not a multiple of 4, or if it lacks
    /// the usage `STORAGE`.
    pub fn wrap(gpu: &Gpu, buffer: &wgpu::Buffer, layout: Layout) -> Result<Self> {
        let span = byte_span(&layout)?;
        require(
            buffer.usage().contains(wgpu::BufferUsages::STORAGE),
            "buffer.usage",
            format!("{:?}", buffer.usage()),
            "STORAGE, with others as needed",
        )?;
        let size = buffer.size();
        require(size.is_multiple_of(4), "buffer.size", size, "a multiple of 4")?;
        if span.end.next_multiple_of(4) > size && !layout.is_empty() {
            let Layout { shape, strides, offset, .. } = layout;
            let needed = format!("at least {} for shape {shape:?}, strides {strides:?}, offset {offset}", span.end);
            return Err(Error::argument("buffer.size", size, needed));
        }
        Ok(Self { gpu: gpu.clone(), buffer: buffer.clone(), layout })
    }

    /// Another view of the same buffer.
    ///
    /// # Errors
    /// Those of [`Tensor::wrap`].
    pub fn view(&self, layout: Layout) -> Result<Self> {
        Self::wrap(&self.gpu, &self.buffer, layout)
    }

    /// The buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Type, shape, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// [batch, heads, sequence, head_dim].
    pub fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }

    /// The device that it lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Writes `values` (last index fastest) where the layout puts them, rounded to the tensor's type. What lies between
    /// the rows keeps its contents, but for the one element that pads an odd row of 16-bit elements.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many values as elements, if rows overlap or do not start on whole words, or
    /// if the buffer lacks the usage `COPY_DST`; [`Error::DeviceLost`].
    pub async fn write(&self, values: &[f32]) -> Result<()> {
        self.gpu.alive()?;
        self.layout.check_output("tensor")?;
        let count: usize = self.layout.shape.iter().product();
        require(values.len() == count, "values.len()", values.len(), format!("{count} for {:?}", self.layout.shape))?;
        let usage = self.buffer.usage();
        let needed = wgpu::BufferUsages::COPY_DST;
        require(usage.contains(needed), "buffer.usage", format!("{usage:?}"), "COPY_DST, to be written")?;
        let ((), popped) = self.gpu.scoped(|_| self.write_rows(values));
        self.gpu.refused("write", popped.await).await
    }

    fn write_rows(&self, values: &[f32]) {
        // Rows that follow one another go in one write.
        let mut run: (usize, Vec<u8>) = (0, Vec::new());
        for (values, start) in values.chunks_exact(self.layout.shape[3].max(1)).zip(self.row_starts(0)) {
            if start != run.0 + run.1.len() {
                self.gpu.queue().write_buffer(&self.buffer, run.0 as u64, &run.1);
                run = (start, Vec::new());
            }
            run.1.extend(self.layout.dtype.encode(values));
            run.1.resize(run.1.len().next_multiple_of(4), 0);
        }
        self.gpu.queue().write_buffer(&self.buffer, run.0 as u64, &run.1);
    }

    /// The values, last index fastest, once all work submitted so far is done. On native this blocks the thread while the
    /// GPU works.
    ///
    /// # Errors
    /// [`Error::Argument`] if the buffer lacks the usage `COPY_SRC`; [`Error::DeviceLost`], [`Error::Timeout`],
    /// [`Error::OutOfMemory`].
    pub async fn read(&self) -> Result<Vec<f32>> {
        let usage = self.buffer.usage();
        let needed = wgpu::BufferUsages::COPY_SRC;
        require(usage.contains(needed), "buffer.usage", format!("{usage:?}"), "COPY_SRC, to be read")?;
        if self.layout.is_empty() {
            return Ok(Vec::new());
        }
        let span = byte_span(&self.layout)?;
        let start = span.start - span.start % 4;
        let bytes = self.gpu.read(&self.buffer, start, span.end.next_multiple_of(4)).await?;
        let size = self.layout.dtype.bytes() as usize;
        let row = self.layout.shape[3] * size;
        let rows = self.row_starts(start).flat_map(|at| bytes[at..at + row].chunks_exact(size));
        Ok(rows.map(|element| self.layout.dtype.decode(element)).collect())
    }

    /// Where each row starts, in bytes from `start`.
    fn row_starts(&self, start: u64) -> impl Iterator<Item = usize> {
        let Layout { dtype, shape, strides, offset } = self.layout.clone();
        let rows =
            (0..shape[0]).flat_map(move |b| (0..shape[1]).flat_map(move |h| (0..shape[2]).map(move |n| [b, h, n])));
        rows.map(move |[b, h, n]| {
            let element = offset + b * strides[0] + h * strides[1] + n * strides[2];
            (element as u64 * dtype.bytes() - start) as usize
        })
    }
}

fn byte_span(layout: &Layout) -> Result<Range<u64>> {
    let bytes = layout.dtype.bytes();
    let span = layout.span().and_then(|s| Some(s.start.checked_mul(bytes)?..s.end.checked_mul(bytes)?));
    span.filter(|s| s.end < u64::MAX - 16).ok_or_else(|| {
        let value = format!("shape {:?}, strides {:?}, offset {}", layout.shape, layout.strides, layout.offset);
        Error::argument("layout", value, "within 2^64 bytes")
    })
}
