//! Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864): pairs of elements turn by an angle that grows with the
//! position of their row.
//!
//! `out[a] = x[a]·cos(p·f) − x[b]·sin(p·f)`, `out[b] = x[b]·cos(p·f) + x[a]·sin(p·f)`, `f = theta^(−2i/dim)` for pair i = (a, b).

use crate::arguments::{Argument, number_buffers};
use crate::dispatch::{Kernel, Launch, Scratch, check_device};
use crate::error::require;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::{Caps, DType, Gpu, Layout, Result, Slice, Tensor};

/// Threads of a workgroup, each of which makes four elements of the output.
const THREADS: u32 = 128;
/// Rows of the table of angles: for 10, 10 and 12 bits of a position.
const PARTS: [(usize, u32); 3] = [(1 << 10, 0), (1 << 10, 10), (1 << 12, 20)];

/// The uniform struct of `shaders/rotary.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Uniforms {
    x: [u32; 4],
    partner: [u32; 4],
    out: [u32; 4],
    positions: [u32; 4],
    first: [u32; 3],
    rows: u32,
    start: u32,
    step: u32,
    interleaved: u32,
    backward: u32,
}

/// Which elements turn together, of the first `dim`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RotaryPairs {
    /// i and i + dim/2 (Llama in Hugging Face's form, GPT-NeoX).
    #[default]
    HalfSplit,
    /// 2i and 2i + 1 (the paper's own, GPT-J).
    Interleaved,
}

/// What a rotary embedding computes.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryParams {
    /// Base of the angles' frequencies. Default: 10000.
    pub theta: f32,
    /// Which elements turn together.
    pub pairs: RotaryPairs,
    /// How many of a row's elements turn, an even number; the rest stays. Default: all.
    pub dim: Option<usize>,
}

impl Default for RotaryParams {
    fn default() -> Self {
        Self { theta: 10_000.0, pairs: RotaryPairs::default(), dim: None }
    }
}

/// Positions of rows.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Row i stands at start + i · step.
    Counted {
        /// That of the first row.
        start: u32,
        /// From row to row.
        step: u32,
    },
    /// u32 [batch or 1, 1, 1, rows].
    Given(&'a Tensor),
}

impl Default for Positions<'_> {
    /// 0, 1, 2 …
    fn default() -> Self {
        Self::Counted { start: 0, step: 1 }
    }
}

/// What planning looks at of [`Positions`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PositionsShape {
    /// Counted.
    Counted {
        /// That of the first row.
        start: u32,
        /// From row to row.
        step: u32,
    },
    /// u32 [batch or 1, 1, 1, rows].
    Given(Layout),
}

/// Which way rows turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotaryDirection {
    /// Forward: from x to its embedding.
    Forward,
    /// Backward: from the embedding's gradient to x's.
    Backward,
}

/// Layouts of what turns and of the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RotaryShapes {
    /// [batch, heads, rows, head_dim].
    pub x: Layout,
    /// The result, of the same shape and any type.
    pub out: Layout,
    /// Positions.
    pub positions: PositionsShape,
    /// Which way.
    pub direction: RotaryDirection,
    /// Which of x, out and the positions lie in one buffer: those with the same number.
    pub buffers: [usize; 3],
}

impl RotaryShapes {
    /// As the tensors are.
    pub fn of(x: &Tensor, out: &Tensor, positions: Positions, direction: RotaryDirection) -> Self {
        let (positions, given) = match positions {
            Positions::Counted { start, step } => (PositionsShape::Counted { start, step }, None),
            Positions::Given(tensor) => (PositionsShape::Given(tensor.layout().clone()), Some(tensor)),
        };
        let buffers = number_buffers([Some(x), Some(out), given]);
        Self { x: x.layout().clone(), out: out.layout().clone(), positions, direction, buffers }
    }

    fn check(&self, dim: usize) -> Result<()> {
        let Self { x, out, .. } = self;
        let [batch, _, rows, width] = x.shape;
        require(width > 0, "x.shape[3] (head_dim)", width, "at least 1")?;
        let bound = format!("even, within 2..={width}, the rows' width");
        require(dim.is_multiple_of(2) && (2..=width).contains(&dim), "dim", dim, bound)?;
        require(out.shape == x.shape, "out.shape", format!("{:?}", out.shape), format!("{:?}, as x", x.shape))?;
        for (name, layout) in [("x", x), ("out", out)] {
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        if let PositionsShape::Given(positions) = &self.positions {
            let fits = [[batch, 1, 1, rows], [1, 1, 1, rows]].contains(&positions.shape);
            let bound = format!("[{batch} or 1, 1, 1, {rows}], by x");
            require(fits, "positions.shape", format!("{:?}", positions.shape), bound)?;
            require(positions.dtype == DType::U32, "positions.dtype", positions.dtype, "u32")?;
            positions.byte_span()?;
        }
        out.check_output("out")
    }
}

/// Rotary position embeddings on one device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{DType, Gpu, Positions, Rotary, RotaryParams, Tensor};
/// let gpu = Gpu::request().await?;
/// let rotary = Rotary::new(&gpu, RotaryParams::default())?;
/// let x = Tensor::upload(&gpu, [1, 1, 3, 2], DType::F32, &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]).await?;
/// let out = rotary.forward(&x, Positions::default()).await?.read().await?;
/// for (p, pair) in out.chunks(2).enumerate() {
///     assert!((pair[0] - (p as f32).cos()).abs() < 1e-6 && (pair[1] - (p as f32).sin()).abs() < 1e-6);
/// }
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Rotary {
    gpu: Gpu,
    params: RotaryParams,
}

impl Rotary {
    /// Checks the params; nothing is compiled yet.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a theta that is not finite or not above 0.
    pub fn new(gpu: &Gpu, params: RotaryParams) -> Result<Self> {
        let theta = params.theta;
        require(theta.is_finite() && theta > 0.0, "theta", theta, "finite and above 0")?;
        Ok(Self { gpu: gpu.clone(), params })
    }

    /// The params.
    pub fn params(&self) -> &RotaryParams {
        &self.params
    }

    /// Compiles and uploads all that these shapes need.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for shapes and types that do not fit; [`crate::Error::Limit`],
    /// [`crate::Error::OutOfMemory`], [`crate::Error::DeviceLost`].
    pub async fn prepare(&self, shapes: &RotaryShapes) -> Result<RotaryPrepared> {
        let (kernel, slices) = kernel(self.gpu.caps(), &self.params, shapes)?;
        let dim = self.params.dim.unwrap_or(shapes.x.shape[3]);
        let tables = angles(&self.gpu, self.params.theta, dim).await?;
        let launch = Launch::prepare(&self.gpu, &kernel, &slices, &tables).await?;
        Ok(RotaryPrepared { launch, shapes: shapes.clone() })
    }

    /// The embedding in one call: allocates the result, of x's type, and submits.
    ///
    /// # Errors
    /// Those of [`Rotary::prepare`]; [`crate::Error::OtherDevice`].
    pub async fn forward(&self, x: &Tensor, positions: Positions<'_>) -> Result<Tensor> {
        self.turn(x, positions, RotaryDirection::Forward).await
    }

    /// The gradient of x from that of its embedding.
    ///
    /// # Errors
    /// Those of [`Rotary::forward`].
    pub async fn backward(&self, dout: &Tensor, positions: Positions<'_>) -> Result<Tensor> {
        self.turn(dout, positions, RotaryDirection::Backward).await
    }

    async fn turn(&self, x: &Tensor, positions: Positions<'_>, direction: RotaryDirection) -> Result<Tensor> {
        check_device("x", x, &self.gpu)?;
        if let Positions::Given(positions) = positions {
            check_device("positions", positions, &self.gpu)?;
        }
        let out = Tensor::empty(&self.gpu, Layout::heads_first(x.layout().dtype, x.shape())).await?;
        let prepared = self.prepare(&RotaryShapes::of(x, &out, positions, direction)).await?;
        let mut encoder = self.gpu.encoder();
        prepared.encode(&mut encoder, x, &out, positions)?;
        self.gpu.submit(encoder).await?;
        Ok(out.under_all(x))
    }
}

/// The table `angles`, made once for a device.
pub(crate) async fn angles(gpu: &Gpu, theta: f32, dim: usize) -> Result<Scratch> {
    let contents = || bytemuck::cast_slice(&parts_of_angles(theta, dim)).to_vec();
    let key = (ANGLES, [u64::from(theta.to_bits()), dim as u64]);
    Ok(Scratch::from([(ANGLES, gpu.table(key, contents).await?)]))
}

const ANGLES: &str = "angles";

/// (cos, sin) of every part of a position, for every pair.
fn parts_of_angles(theta: f32, dim: usize) -> Vec<[f32; 2]> {
    let frequency = |pair: usize| f64::from(theta).powf(-2.0 * pair as f64 / dim as f64);
    let frequencies: Vec<f64> = (0..dim / 2).map(frequency).collect();
    let parts = PARTS.into_iter().flat_map(|(count, shift)| (0..count as u64).map(move |n| (n << shift) as f64));
    let angle = |position: f64| frequencies.iter().map(move |f| (position * f).sin_cos());
    parts.flat_map(angle).map(|(sin, cos)| [cos as f32, sin as f32]).collect()
}

/// The one kernel, as planned.
pub(crate) fn kernel(caps: &Caps, params: &RotaryParams, shapes: &RotaryShapes) -> Result<(Kernel, Vec<Slice>)> {
    let [batch, heads, rows, width] = shapes.x.shape;
    let dim = params.dim.unwrap_or(width);
    shapes.check(dim)?;
    let [of_x, of_out, of_positions] = shapes.buffers;
    let argument = |name, layout: &Layout, kind, group, buffer| {
        let (layout, whole) = (layout.clone(), false);
        Argument { name, layout, kind, group, spread: 1, buffer, whole }
    };
    let mut arguments = vec![
        argument("x", &shapes.x, AccessKind::Load4, 1, of_x),
        argument("partner", &shapes.x, AccessKind::Load1, 1, of_x),
        argument("out", &shapes.out, AccessKind::Store4, 1, of_out),
    ];
    let (start, step) = match &shapes.positions {
        PositionsShape::Counted { start, step } => (*start, *step),
        PositionsShape::Given(layout) => {
            arguments.push(argument("positions", layout, AccessKind::LoadBits, heads.max(1), of_positions));
            (0, 0)
        }
    };
    let tiles = (rows * width.div_ceil(4)).div_ceil(THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let slices = if shapes.x.is_empty() { vec![] } else { cut(caps, &arguments, whole, f64::from(40 * THREADS))? };
    let uniforms = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Uniforms {
        x: address("x"),
        partner: address("partner"),
        out: address("out"),
        positions: address("positions"),
        first: slice.first(),
        rows: rows as u32,
        start,
        step,
        interleaved: u32::from(params.pairs == RotaryPairs::Interleaved),
        backward: u32::from(shapes.direction == RotaryDirection::Backward),
    };
    let table = Binding::Table { name: ANGLES, ty: "vec2f", length: None, write: false };
    let constants =
        vec![("WG", THREADS), ("HEAD_DIM", width as u32), ("D4", width.div_ceil(4) as u32), ("DIM", dim as u32)];
    let given = matches!(shapes.positions, PositionsShape::Given(_));
    let positions = if given { file::ROTARY_GIVEN } else { file::ROTARY_COUNTED };
    let files = vec![file::ROTARY, positions, file::ROTARY_ANGLE, file::ROW, file::ELEMENT];
    let tables = vec![(table, None)];
    let shader = Shader::of("rotary", constants, files, None);
    Ok((Kernel::sliced(caps, shader, arguments, tables, &slices, uniforms)?, slices))
}

/// An embedding compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct RotaryPrepared {
    launch: Launch,
    shapes: RotaryShapes,
}

impl RotaryPrepared {
    /// Records the embedding, or its gradient. The caller submits.
    ///
    /// # Errors
    /// [`crate::Error::Argument`], [`crate::Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is
    /// recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        x: &Tensor,
        out: &Tensor,
        positions: Positions,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("rotary"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), x, out, positions)
    }

    /// Records it into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`RotaryPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        x: &Tensor,
        out: &Tensor,
        positions: Positions,
    ) -> Result<()> {
        self.launch.gpu().alive()?;
        let given = RotaryShapes::of(x, out, positions, self.shapes.direction).positions;
        let same = match (&given, &self.shapes.positions) {
            // Where a tensor lies is checked with the other tensors.
            (PositionsShape::Given(_), PositionsShape::Given(_)) => true,
            (given, prepared) => given == prepared,
        };
        let bound = format!("as prepared: {:?}", self.shapes.positions);
        require(same, "positions", format!("{given:?}"), bound)?;
        let mut tensors = vec![x, x, out];
        if let Positions::Given(positions) = positions {
            tensors.push(positions);
        }
        self.launch.encode(pass, &tensors, 0..self.launch.slices().len())
    }
}

#[cfg(test)]
mod tests {
    use super::Uniforms;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Uniforms, file::ROTARY,
            x partner out positions first rows start step interleaved backward
        );
    }
}
