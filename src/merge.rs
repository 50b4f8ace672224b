//! Merges partial attention results over disjoint keys into one, by their log-sum-exp.
//!
//! `lse = ln Σ exp(lse_i)`, `out = Σ exp(lse_i − lse) · out_i`: ring attention (arXiv 2310.01889), cascade inference, sharded
//! key and value caches. Exact: the gradient of each part follows from the merged `out` and `lse`.

use crate::error::require;
use crate::program::shader::{AccessKind, Shader, file};
use crate::program::{Argument, Builder, EACH, Heads, Operand, Part, Program, Step, cut};
use crate::{Caps, DType, Layout, Result, Shapes};

/// Threads of a workgroup, each of which makes four elements of the output.
const THREADS: u32 = 128;

/// The uniform struct of `shaders/merge.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    first: [u32; 3],
    parts: u32,
    rows: u32,
    pad: [u32; 3],
}

/// Output and log-sum-exp.
pub(crate) type Partial = [Operand; 2];

impl Shapes {
    /// Merges `parts[i].out` [batch, heads, rows, value_dim] and `parts[i].lse` (f32 [batch, heads, rows, 1]), i = 0, 1 …, into `out`, of any
    /// type, and `lse`.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for zero parts, or shapes and types that do not fit; [`crate::Error::Limit`].
    pub fn plan_merge(&self, caps: &Caps) -> Result<Program> {
        self.check_names(&["parts[*", "out", "lse"], &[])?;
        let mut builder = Builder::new(caps, self)?;
        let mut parts = vec![];
        while let Some(out) = builder.tensor(&format!("parts[{}].out", parts.len())) {
            parts.push([out, builder.input(&format!("parts[{}].lse", parts.len()))?]);
        }
        require(!parts.is_empty(), "parts.len()", 0, "at least 1")?;
        let first = parts[0][0].layout.clone();
        let ([batch, heads, rows, _], dtype) = (first.shape, first.dtype);
        let out = builder.output("out", Layout::heads_first(dtype, first.shape))?;
        let lse = builder.output("lse", Layout::heads_first(DType::F32, [batch, heads, rows, 1]))?;
        let named = parts.iter().enumerate().map(|(i, part)| (format!("parts[{i}]."), part));
        for (name, [out, lse]) in named.chain([(String::new(), &[out.clone(), lse.clone()])]) {
            check(&name, &out.layout, &lse.layout, first.shape)?;
        }
        out.layout.check_output("out")?;
        lse.layout.check_output("lse")?;
        merge_pairs(&mut builder, &parts, [out, lse])?;
        builder.finish("merge: two parts at a time, four elements a thread")
    }
}

fn check(name: &str, out: &Layout, lse: &Layout, shape: [usize; 4]) -> Result<()> {
    let rows = [shape[0], shape[1], shape[2], 1];
    require(out.shape == shape, &format!("{name}out.shape"), format!("{:?}", out.shape), format!("{shape:?}"))?;
    require(lse.shape == rows, &format!("{name}lse.shape"), format!("{:?}", lse.shape), format!("{rows:?}"))?;
    require(out.dtype.is_float(), &format!("{name}out.dtype"), out.dtype, "f32, f16 or bf16")?;
    require(lse.dtype == DType::F32, &format!("{name}lse.dtype"), lse.dtype, "f32")?;
    out.byte_span()?;
    lse.byte_span().map(|_| ())
}

/// The first part and the second, then what has been merged so far and the next: each step a kernel, whose dispatches are slices.
pub(crate) fn merge_pairs(builder: &mut Builder, parts: &[Partial], to: Partial) -> Result<()> {
    let steps = parts.len().saturating_sub(1).max(1);
    // What has been merged so far, in turn in one of two places.
    let mut between: Vec<Partial> = vec![];
    for i in 0..(steps - 1).min(2) {
        let layout = |operand: &Operand| Layout::heads_first(DType::F32, operand.shape());
        let [out, lse] = to.each_ref().map(layout);
        between.push([
            builder.scratch(format!("merged {i}: out"), out)?,
            builder.scratch(format!("merged {i}: lse"), lse)?,
        ]);
    }
    for step in 0..steps {
        let a = if step == 0 { &parts[0] } else { &between[(step - 1) % 2] };
        let b = &parts[(step + 1).min(parts.len() - 1)];
        let result = if step + 1 == steps { &to } else { &between[step % 2] };
        let ends = [&a[0], &a[1], &b[0], &b[1], &result[0], &result[1]];
        let names = ["a", "a_lse", "b", "b_lse", "out", "lse"];
        let arguments = names.into_iter().zip(ends).map(|(name, operand)| argument(name, operand, 1)).collect();
        let step = self::step(builder.caps, file::MERGE_PAIR, arguments, parts.len().min(2))?;
        builder.add_sliced(&step);
    }
    Ok(())
}

/// The kernel that merges `parts` parts of each head, which lie one after another along the heads of one tensor.
pub(crate) fn merge_splits(caps: &Caps, parts: usize, from: &Partial, to: &Partial) -> Result<Step> {
    let names = [("a", parts), ("a_lse", parts), ("out", 1), ("lse", 1)];
    let arguments = names.into_iter().zip(from.iter().chain(to));
    let arguments = arguments.map(|((name, spread), operand)| argument(name, operand, spread));
    step(caps, file::MERGE_SPLITS, arguments.collect(), parts)
}

fn argument(name: &'static str, operand: &Operand, spread: usize) -> Argument {
    let kind = match name {
        "out" => AccessKind::Store4,
        "lse" => AccessKind::StoreBits,
        "a" | "b" => AccessKind::Load4,
        _ => AccessKind::LoadBits,
    };
    Argument::new(name, operand, kind, Heads { spread, ..EACH })
}

fn step(caps: &Caps, of_parts: &'static str, arguments: Vec<Argument>, parts: usize) -> Result<Step> {
    let out = &arguments.iter().find(|argument| argument.name == "out").expect("a merge has an output").operand;
    let [batch, heads, rows, width] = out.shape();
    let tiles = (rows * width.div_ceil(4)).div_ceil(THREADS as usize);
    let flops = f64::from(8 * THREADS) * parts as f64;
    let work = cut(caps, &arguments, Part::whole([batch, heads, tiles]), flops)?;
    let params = |part: &Part| Params { first: part.first(), parts: parts as u32, rows: rows as u32, pad: [0; 3] };
    let constants = vec![("WG", THREADS), ("HEAD_DIM_V", width as u32), ("DV4", width.div_ceil(4).max(1) as u32)];
    let files = vec![file::MERGE, of_parts, file::ELEMENT];
    let shader = Shader::of("merge", constants, files, None);
    Step::new(caps, shader, arguments, vec![], work, params).fit(caps)
}
