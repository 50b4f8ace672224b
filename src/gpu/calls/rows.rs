//! Rows by index on a device.

#[cfg(doc)]
use crate::Error;
use crate::gpu::call::{Call, present};
use crate::gpu::forward::{Cache, Found};
use crate::program::{Name, Program};
use crate::{Gpu, Prepared, Result, RowReduction, RowsParams, Shapes, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// Gathers rows by index, and scatters them, on one device: clusters of tokens, experts, proxies, permutations of a grid.
///
/// | of | the gradient is |
/// |---|---|
/// | [`Rows::gather`] | [`Rows::scatter`] of dy with [`RowReduction::Sum`] |
/// | [`Rows::scatter`] with [`RowReduction::Sum`] | [`Rows::gather`] of dx |
/// | [`Rows::scatter`] with [`RowReduction::Mean`] | [`Rows::gather_divided`] of dx by the counts of [`Rows::scatter_with_count`] |
///
/// An index may occur many times; `u32::MAX` is none. One that is neither below the number of rows nor none counts as none, and makes
/// reading a result an error. A scatter has the same bits every time: a row is the sum, in order, of those that name it, so one that most of them name
/// takes as long as they are many.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, RowReduction, Rows, Tensor};
/// let gpu = Gpu::request().await?;
/// let rows = Rows::new(&gpu);
/// let x = Tensor::upload(&gpu, [1, 1, 3, 2], DType::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).await?;
/// let index = Tensor::upload_u32(&gpu, &[2, u32::MAX, 0, 2]).await?;
/// let y = rows.gather(&x, &index).await?;
/// assert_eq!(y.read().await?, [5.0, 6.0, 0.0, 0.0, 1.0, 2.0, 5.0, 6.0]);
/// let back = rows.scatter(&y, &index, 3, RowReduction::Sum).await?;
/// assert_eq!(back.read().await?, [1.0, 2.0, 0.0, 0.0, 10.0, 12.0]);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Rows {
    gpu: Gpu,
    cache: Arc<Cache>,
}

/// What a scatter reads.
struct Scattered<'a> {
    y: &'a Tensor,
    index: &'a Tensor,
    rows: usize,
}

impl Call for Scattered<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        present([("y", Some(self.y)), ("index", Some(self.index))])
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        vec![("rows".into(), vec![self.rows].into())]
    }
}

impl Rows {
    /// Nothing is compiled yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), cache: Arc::default() }
    }

    /// What would run: see [`RowsParams::plan`].
    ///
    /// # Errors
    /// Those of [`RowsParams::plan`].
    pub fn plan(&self, params: &RowsParams, shapes: &Shapes) -> Result<Program> {
        params.plan(self.gpu.caps(), shapes)
    }

    /// Compiles and allocates all that these shapes need. A call has the tensors that [`RowsParams::plan`] names.
    ///
    /// # Errors
    /// Those of [`RowsParams::plan`]; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn prepare(&self, params: &RowsParams, shapes: impl Into<Shapes>) -> Result<Prepared> {
        Prepared::new(&self.gpu, self.plan(params, &shapes.into())?, &[]).await
    }

    /// `y[l] = x[index[l]]`, 0 where there is none: [batch, heads, count, width] from x [batch, heads, rows, width] and an index, u32 [batch or
    /// 1, heads or 1, 1, count], in one call. What was prepared for the shapes is kept.
    ///
    /// # Errors
    /// Those of [`Rows::prepare`]; [`Error::OtherDevice`].
    pub async fn gather(&self, x: &Tensor, index: &Tensor) -> Result<Tensor> {
        self.gathered(x, index, None).await
    }

    /// The same of x divided by a count for each of its rows, u32 [as index, rows]; 0 counts as 1.
    ///
    /// # Errors
    /// Those of [`Rows::gather`].
    pub async fn gather_divided(&self, x: &Tensor, index: &Tensor, count: &Tensor) -> Result<Tensor> {
        self.gathered(x, index, Some(count)).await
    }

    /// `x[n]`, the sum or the mean of `y[l]` over `index[l] = n`, 0 where there is none: [batch, heads, rows, width] from y [batch, heads, count,
    /// width]. Sums are in f32, in ascending l.
    ///
    /// # Errors
    /// Those of [`Rows::gather`].
    pub async fn scatter(&self, y: &Tensor, index: &Tensor, rows: usize, reduce: RowReduction) -> Result<Tensor> {
        Ok(self.scattered(&Scattered { y, index, rows }, reduce, &[]).await?.take("x"))
    }

    /// The same with how many rows of y each row of x has, u32 [as index, rows].
    ///
    /// # Errors
    /// Those of [`Rows::gather`].
    pub async fn scatter_with_count(
        &self,
        y: &Tensor,
        index: &Tensor,
        rows: usize,
        reduce: RowReduction,
    ) -> Result<(Tensor, Tensor)> {
        let mut found = self.scattered(&Scattered { y, index, rows }, reduce, &["count"]).await?;
        Ok((found.take("x"), found.take("count")))
    }

    async fn gathered(&self, x: &Tensor, index: &Tensor, count: Option<&Tensor>) -> Result<Tensor> {
        let call = present([("x", Some(x)), ("index", Some(index)), ("count", count)]);
        let plan = |caps: &_, shapes: &_| RowsParams { reduce: None }.plan(caps, shapes);
        Ok(self.gpu.forward(&self.cache, "gather", &plan, &[], &call, &[], &[]).await?.take("y"))
    }

    async fn scattered(&self, call: &Scattered<'_>, reduce: RowReduction, wanted: &[&'static str]) -> Result<Found> {
        let pass = match reduce {
            RowReduction::Sum => "sum",
            RowReduction::Mean => "mean",
        };
        let plan = |caps: &_, shapes: &_| RowsParams { reduce: Some(reduce) }.plan(caps, shapes);
        self.gpu.forward(&self.cache, pass, &plan, &[], call, &[], wanted).await
    }
}
