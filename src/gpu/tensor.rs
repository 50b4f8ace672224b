//! Tensors: a GPU buffer with a layout.

use crate::error::require;
use crate::program::Rule;
use crate::{DType, Element, Error, Gpu, Layout, Result};

/// Elements that are read of a view that repeats some.
const MOST_REPEATED: u64 = 1 << 28;

/// A tensor on the GPU. It shares its buffer with the buffer's other owners; cloning copies no data.
#[derive(Clone)]
pub struct Tensor {
    gpu: Gpu,
    buffer: wgpu::Buffer,
    layout: Layout,
    checks: Vec<DeferredCheck>,
}

/// What the kernel that wrote a tensor found wrong in indices that only the GPU has seen: asked about when the tensor is read.
#[derive(Clone)]
pub(crate) struct DeferredCheck {
    /// Its words.
    pub words: wgpu::Buffer,
    /// What they mean.
    pub rule: Rule,
}

impl DeferredCheck {
    pub async fn ask(&self, gpu: &Gpu) -> Result<()> {
        let bytes = gpu.read(&self.words, 0, self.words.size()).await?;
        self.rule.judge(&bytemuck::pod_collect_to_vec::<u8, u32>(&bytes))
    }
}

impl Tensor {
    /// Uploads `values` in the order [batch, heads, sequence, head_dim] (last index fastest), rounded to `dtype`, and stores them in
    /// that order.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many values as the shape says; [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn upload<E: Element>(gpu: &Gpu, shape: [usize; 4], dtype: DType, values: &[E]) -> Result<Self> {
        let tensor = Self::empty(gpu, Layout::heads_first(dtype, shape)).await?;
        tensor.write(values).await?;
        Ok(tensor)
    }

    /// The same for `values` in the order [batch, sequence, heads, head_dim], as in many models; they are stored in that order. `shape` is
    /// [batch, heads, sequence, head_dim] here too.
    ///
    /// # Errors
    /// Those of [`Tensor::upload`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, Gpu, Tensor, half::f16};
    /// let gpu = Gpu::request().await?;
    /// let (batch, heads, tokens, dim) = (1, 2, 3, 1);
    /// let token_by_token = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0].map(f16::from_f32);
    /// let k = Tensor::upload_heads_last(&gpu, [batch, heads, tokens, dim], DType::F16, &token_by_token).await?;
    /// assert_eq!(k.read().await?, [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]); // values are read head by head
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn upload_heads_last<E: Element>(
        gpu: &Gpu,
        shape: [usize; 4],
        dtype: DType,
        values: &[E],
    ) -> Result<Self> {
        let tensor = Self::empty(gpu, Layout::heads_last(dtype, shape)).await?;
        // A row of all heads of a token follows another in memory: heads and tokens in each other's places.
        let Layout { strides: [batch, head, row], .. } = *tensor.layout();
        let [b, h, n, d] = shape;
        let turned = Layout { shape: [b, n, h, d], strides: [batch, row, head], ..tensor.layout.clone() };
        tensor.view(turned)?.write(values).await?;
        Ok(tensor)
    }

    /// A tensor in a buffer of its own that holds `bytes`; `layout` says where the elements are in them.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layout that reaches beyond `bytes`; [`Error::OutOfMemory`], [`Error::Limit`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, Gpu, Layout, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let file = [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]; // 1 and 2 as f32
    /// let x = Tensor::upload_bytes(&gpu, Layout::heads_first(DType::F32, [1, 1, 1, 2]), &file).await?;
    /// assert_eq!(x.read().await?, [1.0, 2.0]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn upload_bytes(gpu: &Gpu, layout: Layout, bytes: &[u8]) -> Result<Self> {
        let needed = if layout.is_empty() { 0 } else { layout.byte_span()?.end };
        let size = bytes.len() as u64;
        require(size >= needed, "bytes.len()", size, format!("at least {needed}, to hold the layout"))?;
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().next_multiple_of(4), 0);
        Self::of_bytes(gpu, layout, size, &whole).await
    }

    /// A tensor with a buffer of its own, zero until something is written.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layout that reaches beyond 2^64 bytes; [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn empty(gpu: &Gpu, layout: Layout) -> Result<Self> {
        let bytes = layout.byte_span()?.end;
        Self::of_bytes(gpu, layout, bytes, &[]).await
    }

    /// A tensor in a buffer of so many bytes, which begins with these.
    pub(crate) async fn of_bytes(gpu: &Gpu, layout: Layout, size: u64, bytes: &[u8]) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        Self::wrap(gpu, &gpu.buffer("tensor", size, usage, bytes).await?, layout)
    }

    /// A view of a buffer that the caller made on `gpu`'s device; no data is touched. A buffer of another device is noticed only when it is
    /// used, through an error from the API: wgpu does not tell which device a buffer belongs to.
    ///
    /// # Errors
    /// [`Error::Argument`] if the layout reaches beyond the buffer, if the buffer's size is not a multiple of 4, or if it lacks
    /// the usage `STORAGE`.
    pub fn wrap(gpu: &Gpu, buffer: &wgpu::Buffer, layout: Layout) -> Result<Self> {
        let span = layout.byte_span()?;
        require(
            buffer.usage().contains(wgpu::BufferUsages::STORAGE),
            "buffer.usage",
            format!("{:?}", buffer.usage()),
            "STORAGE, and others as needed",
        )?;
        let size = buffer.size();
        require(size.is_multiple_of(4), "buffer.size", size, "a multiple of 4")?;
        if span.end.next_multiple_of(4) > size && !layout.is_empty() {
            let Layout { shape, strides, offset, .. } = layout;
            let needed = format!("at least {} for shape {shape:?}, strides {strides:?}, offset {offset}", span.end);
            return Err(Error::argument("buffer.size", size, needed));
        }
        Ok(Self { gpu: gpu.clone(), buffer: buffer.clone(), layout, checks: vec![] })
    }

    /// Several views of one buffer: see [`Layout::packed_qkv`].
    ///
    /// # Errors
    /// Those of [`Tensor::wrap`].
    pub fn wrap_all<const N: usize>(gpu: &Gpu, buffer: &wgpu::Buffer, layouts: [Layout; N]) -> Result<[Self; N]> {
        let all: Vec<Self> = layouts.into_iter().map(|one| Self::wrap(gpu, buffer, one)).collect::<Result<_>>()?;
        Ok(all.try_into().expect("as many as layouts"))
    }

    /// Uploads indices or offsets as [1, 1, 1, values.len()] of type u32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Limit`].
    pub async fn upload_u32(gpu: &Gpu, values: &[u32]) -> Result<Self> {
        Self::upload(gpu, [1, 1, 1, values.len()], DType::U32, values).await
    }

    /// The same tensor, which cannot be read if the check fails.
    pub(crate) fn with_check(mut self, check: DeferredCheck) -> Self {
        self.checks.push(check);
        self
    }

    /// The same with all checks of what it was made from.
    pub(crate) fn with_checks_of(mut self, from: &Tensor) -> Self {
        self.checks.extend_from_slice(&from.checks);
        self
    }

    /// Another view of the same buffer.
    ///
    /// # Errors
    /// Those of [`Tensor::wrap`].
    pub fn view(&self, layout: Layout) -> Result<Self> {
        Ok(Self::wrap(&self.gpu, &self.buffer, layout)?.with_checks_of(self))
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

    /// Writes `values` (last index fastest) where the layout puts them, rounded to the tensor's type. The gaps between
    /// the rows keep their contents, except for the one element that pads an odd row of 16-bit elements.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many values as elements, if rows overlap or do not start on whole words, or
    /// if the buffer lacks the usage `COPY_DST`; [`Error::DeviceLost`].
    pub async fn write<E: Element>(&self, values: &[E]) -> Result<()> {
        self.gpu.alive()?;
        self.layout.check_output("tensor")?;
        let count = if self.layout.is_empty() { 0 } else { self.layout.shape.iter().product() };
        require(values.len() == count, "values.len()", values.len(), format!("{count} for {:?}", self.layout.shape))?;
        let usage = self.buffer.usage();
        let needed = wgpu::BufferUsages::COPY_DST;
        require(usage.contains(needed), "buffer.usage", format!("{usage:?}"), "COPY_DST, to be written")?;
        let ((), popped) = self.gpu.scoped(|_| self.write_rows(values));
        self.gpu.queued("write", popped.await).await.map_err(|e| self.blamed(e))
    }

    fn blamed(&self, e: Error) -> Error {
        self.gpu.blamed(e, std::iter::once(("tensor", &self.buffer)))
    }

    fn write_rows<E: Element>(&self, values: &[E]) {
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
    /// [`Error::Argument`] if the buffer lacks the usage `COPY_SRC`, or if the kernel that wrote the tensor found indices on the GPU that
    /// were out of order or out of range; [`Error::DeviceLost`], [`Error::Timeout`], [`Error::OutOfMemory`].
    pub async fn read(&self) -> Result<Vec<f32>> {
        let usage = self.buffer.usage();
        let needed = wgpu::BufferUsages::COPY_SRC;
        require(usage.contains(needed), "buffer.usage", format!("{usage:?}"), "COPY_SRC, to be read")?;
        if self.layout.is_empty() {
            return Ok(Vec::new());
        }
        let span = self.layout.byte_span()?;
        let count = self.layout.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n as u64)).unwrap_or(u64::MAX);
        let most = ((span.end - span.start) / self.layout.dtype.bytes()).max(MOST_REPEATED);
        let bound = format!("smaller: a view that repeats elements may have at most {most}");
        require(count <= most, "tensor.shape", format!("{:?}", self.layout.shape), bound)?;
        for check in &self.checks {
            check.ask(&self.gpu).await?;
        }
        let start = span.start - span.start % 4;
        let read = self.gpu.read(&self.buffer, start, span.end.next_multiple_of(4)).await;
        let bytes = read.map_err(|e| self.blamed(e))?;
        let size = self.layout.dtype.bytes() as usize;
        let row = self.layout.shape[3] * size;
        let rows = self.row_starts(start).flat_map(|at| bytes[at..at + row].chunks_exact(size));
        Ok(rows.map(|element| self.layout.dtype.decode(element)).collect())
    }

    /// The values of a u32 tensor, as they are: [`Tensor::read`] gives the nearest floats.
    ///
    /// # Errors
    /// Those of [`Tensor::read`]; [`Error::Argument`] for another type.
    pub async fn read_u32(&self) -> Result<Vec<u32>> {
        let dtype = self.layout.dtype;
        require(dtype == DType::U32, "tensor.dtype", dtype, "u32")?;
        // Words are read as floats of the same bits.
        let words = Self { layout: Layout { dtype: DType::F32, ..self.layout.clone() }, ..self.clone() };
        Ok(words.read().await?.into_iter().map(f32::to_bits).collect())
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

/// Two are equal if they are the same elements of the same buffer.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.gpu == other.gpu && self.buffer == other.buffer && self.layout == other.layout
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor").field("layout", &self.layout).field("buffer", &self.buffer).finish()
    }
}
