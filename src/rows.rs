//! Rows by index: gathered, or scattered and summed. Each is the other's gradient.
//!
//! `y[l] = x[index[l]]`, and `x[n] = Σ y[l] over index[l] = n`, in ascending l. No atomic additions: a scatter goes through a chain of the rows
//! that name each row, so that its bits are the same every time.

use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, EACH, Heads, Operand, Part, Program, Rule, Step, Table, cut};
use crate::{Caps, DType, Layout, Result, Shapes};

/// Threads of a workgroup.
const THREADS: usize = 256;
/// Rows of an index that one workgroup goes over in a dispatch: its threads look at that many others.
const BLOCK: usize = 64 * THREADS;

/// The uniform struct of `shaders/rows/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    first: [u32; 3],
    rows: u32,
    count: u32,
    pad: [u32; 3],
}

/// What becomes of the rows that have the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RowReduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// Whether rows are gathered, or scattered.
///
/// ```
/// use wgpu_attention::plan::{Caps, Shapes};
/// use wgpu_attention::{DType, Layout, RowReduction, RowsParams};
/// // 100 rows of each of 8 heads to 64, those of one index as their mean.
/// let (y, index) = (Layout::heads_first(DType::F16, [1, 8, 100, 64]), Layout::heads_first(DType::U32, [1, 1, 1, 100]));
/// let shapes = Shapes::new([("y", y), ("index", index)]).numbers("rows", [64]);
/// let program = RowsParams { reduce: Some(RowReduction::Mean) }.plan(&Caps::core(), &shapes)?;
/// assert_eq!(program.tensor("x").unwrap().layout.shape, [1, 8, 64, 64]);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct RowsParams {
    /// How rows of one index are put together. Unset: rows are gathered instead.
    pub reduce: Option<RowReduction>,
}

/// The tensors of a call.
struct Ends {
    x: Operand,
    y: Operand,
    index: Operand,
    count: Option<Operand>,
}

impl RowsParams {
    /// The program that gathers rows, or scatters them. Its tensors: `x` [batch, heads, rows, width], `y` [batch, heads, count, width], of any
    /// types, and `index`, u32 [batch or 1, heads or 1, 1, count], of rows of x; `u32::MAX` is none.
    ///
    /// Without [`RowsParams::reduce`] it reads x and index and writes y: `y[l] = x[index[l]]`, 0 where there is none. `count`, u32 [as index, rows],
    /// divides each row of x, if it is there: the gradient of [`RowReduction::Mean`].
    ///
    /// With it, it reads y and index and writes x, with as many rows as the number `rows` says, or as x has if that is there: 0 where no index
    /// names a row. `count` is written, if it is there or wanted: how many do.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for shapes and types that do not fit; [`crate::Error::Limit`].
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&["x", "y", "index", "count"], &["rows"])?;
        let mut builder = Builder::new(caps, shapes)?;
        let ends = self.ends(&mut builder, shapes)?;
        let [batch, heads, rows, width] = ends.x.shape();
        let count = ends.y.shape()[2];
        let kernels = Kernels { ends: &ends, counts: [rows, count] };
        kernels.check(&mut builder)?;
        let [index_batch, index_heads, ..] = ends.index.shape();
        let constants = vec![
            ("WG", THREADS as u32),
            ("WIDTH", width as u32),
            ("D4", width.div_ceil(4).max(1) as u32),
            ("INDEX_GROUP", (heads / index_heads.max(1)).max(1) as u32),
        ];
        let tiles = |rows: usize| rows.saturating_mul(width.div_ceil(4)).div_ceil(THREADS);
        let Some(reduce) = self.reduce else {
            let optional = vec![("count", AccessKind::LoadBits)];
            let arguments = vec![
                kernels.argument("x", &ends.x, AccessKind::Load4),
                kernels.argument("y", &ends.y, AccessKind::Store4),
                kernels.argument("index", &ends.index, AccessKind::LoadBits),
            ];
            let divided = ends.count.as_ref().map(|count| kernels.argument("count", count, AccessKind::LoadBits));
            let arguments = arguments.into_iter().chain(divided).collect();
            let shader = Shader { optional, ..Shader::of("rows gathered", constants, files(file::ROWS_GATHER), None) };
            let work = Part::whole([batch, heads, tiles(count)]);
            kernels.add(&mut builder, shader, arguments, vec![work], (8 * THREADS) as f64)?;
            return builder.finish("rows gathered, four elements a thread");
        };
        let [chain, next] = kernels.chain(&mut builder)?;
        let mean = u32::from(reduce == RowReduction::Mean);
        let shared = u32::from(index_batch < batch);
        let constants = [constants, vec![("MEAN", mean), ("SHARED_BATCH", shared)]].concat();
        let optional = vec![("count", AccessKind::StoreBits)];
        let shader = Shader { optional, ..Shader::of("rows scattered", constants, files(file::ROWS_SCATTER), None) };
        let arguments = vec![
            kernels.argument("x", &ends.x, AccessKind::Store4),
            kernels.argument("y", &ends.y, AccessKind::Load4),
            kernels.argument("chain", &chain, AccessKind::LoadBits),
            kernels.argument("next", &next, AccessKind::LoadBits),
        ];
        let counted = ends.count.as_ref().map(|count| kernels.argument("count", count, AccessKind::StoreBits));
        let arguments = arguments.into_iter().chain(counted).collect();
        let flops = 8.0 * THREADS as f64 * (1.0 + count as f64 / rows.max(1) as f64);
        kernels.add(&mut builder, shader, arguments, vec![Part::whole([batch, heads, tiles(rows)])], flops)?;
        builder.finish("rows scattered: chains of the rows that name a row, then their sums, four elements a thread")
    }

    /// What is read and written, checked.
    fn ends(&self, builder: &mut Builder, shapes: &Shapes) -> Result<Ends> {
        let index = builder.input("index")?;
        let given = builder.input(if self.reduce.is_some() { "y" } else { "x" })?;
        let ([batch, heads, own, width], dtype) = (given.shape(), given.layout.dtype);
        let [index_batch, index_heads, one, count] = index.shape();
        let shares = |own: usize, all: usize| own == all || own == 1 && all > 0;
        let fits = shares(index_batch, batch) && shares(index_heads, heads) && one == 1;
        let bound = format!("[{batch} or 1, {heads} or 1, 1, as many as y has rows]");
        require(fits, "index.shape", format!("{:?}", index.shape()), bound)?;
        require(index.layout.dtype == DType::U32, "index.dtype", index.layout.dtype, "u32")?;
        index.layout.byte_span()?;
        let of_width = format!("{}.shape[3] (width)", if self.reduce.is_some() { "y" } else { "x" });
        require((1..=MAX_WIDTH).contains(&width), &of_width, width, format!("within 1..={MAX_WIDTH}"))?;
        let numbers = shapes.get_numbers("rows");
        let (x, y) = match self.reduce {
            None => {
                require(numbers.is_none(), "rows", "set", "unset where rows are gathered")?;
                (given, builder.output("y", Layout::heads_first(dtype, [batch, heads, count, width]))?)
            }
            Some(_) => {
                let bound = format!("{count}, as many as the index has");
                require(own == count, "y.shape[2] (rows)", own, bound)?;
                let rows = match (numbers, builder.tensor("x")) {
                    (None, Some(x)) => x.shape()[2],
                    (Some(&[rows]), None) => rows,
                    (Some(numbers), None) => {
                        return Err(crate::Error::argument("rows", format!("{numbers:?}"), "one number"));
                    }
                    (None, None) => return Err(crate::Error::argument("rows", "unset", "set, or x given")),
                    (Some(numbers), Some(_)) => {
                        return Err(crate::Error::argument("rows", format!("{numbers:?}"), "unset where x is given"));
                    }
                };
                require(rows <= MAX_SEQUENCE, "rows", rows, format!("at most {MAX_SEQUENCE}"))?;
                (builder.output("x", Layout::heads_first(dtype, [batch, heads, rows, width]))?, given)
            }
        };
        let rows = x.shape()[2];
        let of_count = [index_batch, index_heads, 1, rows];
        let counted = self.reduce.is_some();
        let count_of_rows = || Layout::heads_first(DType::U32, of_count);
        let count_of = if counted { builder.output_if("count", count_of_rows)? } else { builder.tensor("count") };
        for (name, end, wanted) in [("x", &x, [batch, heads, rows, width]), ("y", &y, [batch, heads, count, width])] {
            let bound = format!("{wanted:?}");
            require(end.shape() == wanted, &format!("{name}.shape"), format!("{:?}", end.shape()), bound)?;
            require(end.layout.dtype.is_float(), &format!("{name}.dtype"), end.layout.dtype, "f32, f16 or bf16")?;
            require(
                wanted[2] <= MAX_SEQUENCE,
                &format!("{name}.shape[2] (rows)"),
                wanted[2],
                format!("at most {MAX_SEQUENCE}"),
            )?;
            end.layout.byte_span()?;
        }
        if let Some(count) = &count_of {
            require(count.shape() == of_count, "count.shape", format!("{:?}", count.shape()), format!("{of_count:?}"))?;
            require(count.layout.dtype == DType::U32, "count.dtype", count.layout.dtype, "u32")?;
            count.layout.byte_span()?;
        }
        let written = if counted { ("x", &x) } else { ("y", &y) };
        written.1.layout.check_output(written.0)?;
        if let Some(count) = count_of.as_ref().filter(|_| counted) {
            count.layout.check_output("count")?;
        }
        Ok(Ends { x, y, index, count: count_of })
    }
}

/// Elements of a row at most.
const MAX_WIDTH: usize = 1 << 16;

fn files(own: &'static str) -> Vec<&'static str> {
    vec![file::ROWS, file::ELEMENT, own]
}

struct Kernels<'a> {
    ends: &'a Ends,
    /// Rows of x and of y.
    counts: [usize; 2],
}

impl Kernels<'_> {
    /// A tensor for each head of x, or for those that share an index.
    fn argument(&self, name: &'static str, operand: &Operand, kind: AccessKind) -> Argument {
        let group = (self.ends.x.shape()[1] / operand.shape()[1].max(1)).max(1);
        Argument::new(name, operand, kind, Heads { group, ..EACH })
    }

    fn add(
        &self,
        builder: &mut Builder,
        shader: Shader,
        arguments: Vec<Argument>,
        work: Vec<Part>,
        flops: f64,
    ) -> Result<()> {
        let mut parts = vec![];
        for part in work {
            parts.extend(cut(builder.caps, &arguments, part, flops)?);
        }
        let step = Step::new(builder.caps, shader, arguments, vec![], parts, self.params()).fit(builder.caps)?;
        builder.add_sliced(&step);
        Ok(())
    }

    fn params(&self) -> impl Fn(&Part) -> Params {
        let [rows, count] = self.counts.map(|n| n as u32);
        move |part: &Part| Params { first: part.first(), rows, count, pad: [0; 3] }
    }

    /// The kernel that finds an index that is out of range.
    fn check(&self, builder: &mut Builder) -> Result<()> {
        let [batch, heads, _, count] = self.ends.index.shape();
        let [rows, _] = self.counts;
        self.check_loops(builder.caps, count.div_ceil(THREADS))?;
        let problem = builder.scratch_bytes("rows: problem", 8 * (batch * heads).max(1) as u64)?;
        builder.check(problem, Rule::Rows { heads, rows });
        let arguments = vec![Argument::new("index", &self.ends.index, AccessKind::LoadBits, EACH)];
        let constants = vec![("WG", THREADS as u32), ("HEADS", heads as u32), ("INDEX_GROUP", 1)];
        let shader = Shader::of("rows checked", constants, files(file::ROWS_CHECK), None);
        let binding = Binding::Table { name: "problem", ty: "u32", length: None, write: true };
        let tables = vec![(binding, Table::Scratch(problem))];
        let parts = cut(builder.caps, &arguments, Part::whole([batch, heads, 1]), count as f64)?;
        let step = Step::new(builder.caps, shader, arguments, tables, parts, self.params()).fit(builder.caps)?;
        builder.add_sliced(&step);
        Ok(())
    }

    /// The first row of y that names each row of x, and the next one after each.
    fn chain(&self, builder: &mut Builder) -> Result<[Operand; 2]> {
        let [batch, heads, _, count] = self.ends.index.shape();
        let [rows, _] = self.counts;
        // A chain may have all rows.
        self.check_loops(builder.caps, count.max(rows.div_ceil(THREADS) + BLOCK))?;
        let words = |n: usize| Layout::heads_first(DType::U32, [batch, heads, 1, n]);
        let chain = builder.scratch("rows: chain", words(rows))?;
        let next = builder.scratch("rows: next", words(count))?;
        let arguments = vec![
            Argument::new("index", &self.ends.index, AccessKind::LoadBits, EACH),
            Argument::new("chain", &chain, AccessKind::UpdateBits, EACH),
            Argument::new("next", &next, AccessKind::StoreBits, EACH),
        ];
        let constants = vec![("WG", THREADS as u32), ("BLOCK", BLOCK as u32), ("INDEX_GROUP", 1)];
        let shader = Shader::of("rows chained", constants, files(file::ROWS_CHAIN), None);
        let block = |tile: usize| Part { batches: 0..batch, heads: 0..heads, tiles: tile..tile + 1 };
        let blocks = (0..count.div_ceil(BLOCK).max(1)).map(block).collect();
        self.add(builder, shader, arguments, blocks, (THREADS * count.min(BLOCK) + rows) as f64)?;
        Ok([chain, next])
    }

    fn check_loops(&self, caps: &Caps, rounds: usize) -> Result<()> {
        let Some(available) = caps.loop_rounds() else { return Ok(()) };
        let what = format!("an index of {} rows", self.ends.index.shape()[3]);
        caps.within(&what, "rounds of llvmpipe's loops", rounds as u64, available)
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(Params, file::ROWS, first rows count);
    }
}
