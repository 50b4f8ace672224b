//! Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864): pairs of elements rotate by an angle that grows with the position of
//! their row.
//!
//! `out[a] = x[a]·cos(p·f) − x[b]·sin(p·f)`, `out[b] = x[b]·cos(p·f) + x[a]·sin(p·f)`, `f = theta^(−2i/dim)` for pair i = (a, b).

use crate::error::require;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, Contents, EACH, Heads, Part, Program, Step, Table, cut};
use crate::{Caps, DType, Layout, Result, Shapes};

/// Threads of a workgroup, each of which makes four elements of the output.
const THREADS: u32 = 128;

/// The uniform struct of `shaders/rotary.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Uniforms {
    first: [u32; 3],
    rows: u32,
    start: u32,
    step: u32,
    interleaved: u32,
    backward: u32,
}

/// What a rotary embedding computes.
///
/// ```
/// use wgpu_attention::RotaryParams;
/// // Llama 3's base; the first 64 elements of a head rotate, in pairs of neighbors.
/// let params = RotaryParams { theta: 500_000.0, interleaved: true, dim: Some(64) };
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct RotaryParams {
    /// Base of the angles' frequencies. Default: 10000.
    pub theta: f32,
    /// Whether neighbors rotate together: 2i and 2i + 1 of the first `dim` elements (the paper's own, GPT-J), or else i and i + dim/2
    /// (Llama in Hugging Face's form, GPT-NeoX). Default: no.
    pub interleaved: bool,
    /// How many of a row's elements rotate, an even number; the rest stay as they are. Default: all. The table of angles takes 24 KiB for
    /// each of them and must fit a binding; WebGPU's default limits allow 5,460 of them.
    pub dim: Option<usize>,
}

impl Default for RotaryParams {
    fn default() -> Self {
        Self { theta: 10_000.0, interleaved: false, dim: None }
    }
}

impl RotaryParams {
    pub(crate) fn check(&self) -> Result<()> {
        let theta = self.theta;
        require(theta.is_finite() && theta > 0.0, "theta", theta, "finite and above 0")?;
        let dim = self.dim.unwrap_or(2);
        require(dim.is_multiple_of(2) && dim > 0, "dim", dim, "even, at least 2")
    }

    /// Plans the embedding `out` of `x` [batch, heads, rows, head_dim], of the same shape and any type. `positions` is a tensor, u32 [batch
    /// or 1, heads or 1, 1, rows], or two numbers: the position of the first row and the step from row to row. Unset: 0, 1, 2 …
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for shapes and types that do not fit; [`crate::Error::Limit`].
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.plan_turn(caps, shapes, false)
    }

    /// Plans the gradient `out` of `x` from that of its embedding, which is called `x` here.
    ///
    /// # Errors
    /// Those of [`RotaryParams::plan`].
    pub fn plan_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.plan_turn(caps, shapes, true)
    }

    fn plan_turn(&self, caps: &Caps, shapes: &Shapes, backward: bool) -> Result<Program> {
        self.check()?;
        shapes.check_names(&["x", "positions", "out"], &["positions"])?;
        let mut builder = Builder::new(caps, shapes)?;
        let x = builder.input("x")?;
        let out = builder.output("out", Layout::heads_first(x.layout.dtype, x.shape()))?;
        let positions = builder.tensor("positions");
        let ([batch, heads, rows, width], dim) = (x.shape(), self.dim.unwrap_or(x.shape()[3]));
        check(dim, &x.layout, &out.layout, positions.as_ref().map(|positions| &positions.layout))?;
        let own = positions.as_ref().map_or(1, |positions| positions.shape()[1].max(1));
        let given = Heads { group: (heads / own).max(1), ..EACH };
        let mut arguments = vec![
            Argument::new("x", &x, AccessKind::Load4, EACH),
            Argument::new("partner", &x, AccessKind::Load1, EACH),
            Argument::new("out", &out, AccessKind::Store4, EACH),
        ];
        arguments.extend(positions.as_ref().map(|p| Argument::new("positions", p, AccessKind::LoadBits, given)));
        let [start, step] = counted(shapes, positions.is_some())?;
        let tiles = (rows * width.div_ceil(4)).div_ceil(THREADS as usize);
        let work = Part::whole([batch, heads, if x.layout.is_empty() { 0 } else { tiles }]);
        let parts = cut(caps, &arguments, work, f64::from(40 * THREADS))?;
        let params = |part: &Part| Uniforms {
            first: part.first(),
            rows: rows as u32,
            start,
            step,
            interleaved: u32::from(self.interleaved),
            backward: u32::from(backward),
        };
        let constants = vec![
            ("WG", THREADS),
            ("HEAD_DIM", width as u32),
            ("D4", width.div_ceil(4) as u32),
            ("DIM", dim as u32),
            ("POSITIONS_GROUP", given.group as u32),
        ];
        let files = vec![file::ROTARY, file::ROTARY_ANGLE, file::ELEMENT];
        let optional = vec![("positions", AccessKind::LoadBits)];
        let shader = Shader { optional, ..Shader::of("rotary", constants, files, None) };
        let tables = vec![angles(self.theta, dim)];
        builder.add_sliced(&Step::new(caps, shader, arguments, tables, parts, params).fit(caps)?);
        builder.finish("rotary, four elements a thread, angles from a table made in float64")
    }
}

/// The first position and the step, where they are counted.
fn counted(shapes: &Shapes, given: bool) -> Result<[u32; 2]> {
    let Some(numbers) = shapes.get_numbers("positions") else { return Ok(if given { [0, 0] } else { [0, 1] }) };
    let words: Vec<u32> = numbers.iter().filter_map(|&n| u32::try_from(n).ok()).collect();
    let fits = !given && words.len() == 2 && numbers.len() == 2;
    let bound = "start and step, both below 2^32, or unset if positions are a tensor";
    require(fits, "positions", format!("{numbers:?}"), bound)?;
    Ok([words[0], words[1]])
}

fn check(dim: usize, x: &Layout, out: &Layout, positions: Option<&Layout>) -> Result<()> {
    let [batch, heads, rows, width] = x.shape;
    require(width > 0, "x.shape[3] (head_dim)", width, "at least 1")?;
    let bound = format!("even, within 2..={width}, the width of the rows");
    require(dim.is_multiple_of(2) && (2..=width).contains(&dim), "dim", dim, bound)?;
    require(out.shape == x.shape, "out.shape", format!("{:?}", out.shape), format!("{:?}, like x", x.shape))?;
    for (name, layout) in [("x", x), ("out", out)] {
        require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
        layout.byte_span()?;
    }
    if let Some(positions) = positions {
        let [own_batch, own_heads, ..] = positions.shape;
        let fits = positions.shape == [own_batch, own_heads, 1, rows];
        let fits = fits && [1, batch].contains(&own_batch) && [1, heads].contains(&own_heads);
        let bound = format!("[{batch} or 1, {heads} or 1, 1, {rows}], to match x");
        require(fits, "positions.shape", format!("{:?}", positions.shape), bound)?;
        require(positions.dtype == DType::U32, "positions.dtype", positions.dtype, "u32")?;
        positions.byte_span()?;
    }
    out.check_output("out")
}

/// The table of rotary angles.
pub(crate) fn angles(theta: f32, dim: usize) -> (Binding, Table) {
    let binding = Binding::Table { name: "angles", ty: "vec2f", length: None, write: false };
    (binding, Table::Constant(Contents::RotaryAngles { theta, dim }))
}

#[cfg(test)]
mod tests {
    use super::Uniforms;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Uniforms, file::ROTARY,
            first rows start step interleaved backward
        );
    }
}
