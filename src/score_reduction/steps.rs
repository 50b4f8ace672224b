//! What comes behind the kernel that computes probabilities: from keys to segments, and the largest of a row.

use super::results::Results;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, EACH, Operand, Part, Step, Table, cut};
use crate::{Caps, Result};

/// The uniform struct of `shaders/reduction/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    first: [u32; 3],
    cols: u32,
    to_cols: u32,
    adds: u32,
    pad: [u32; 2],
}

/// What lies between the kernels: values of tokens or of groups of keys, the keys that they are of, values of segments.
pub(super) struct Between {
    pub tokens: Option<Operand>,
    pub of_tokens: Option<Operand>,
    pub segments: Option<Operand>,
}

/// Threads of a workgroup.
const THREADS: u32 = 128;
/// Operations a column.
const FLOPS: f64 = 40.0;

/// Tensors as a shader calls them.
type Tensors<'a> = Vec<(&'static str, Option<&'a Operand>)>;

/// Sums, or the largest, of the keys of each segment.
pub(super) fn segments(
    caps: &Caps,
    places: &[Part],
    between: &Between,
    results: &Results,
    of_keys: &Operand,
    problem: usize,
    adds: bool,
) -> Result<Step> {
    let mut tensors: Tensors = vec![("one", between.tokens.as_ref()), ("one_indices", between.of_tokens.as_ref())];
    tensors.push(("segments", Some(of_keys)));
    match &between.segments {
        Some(values) => tensors.push(("values", Some(values))),
        None => tensors.extend([("values", Some(&results.values)), ("indices", results.indices.as_ref())]),
    }
    let [_, _, rows, keys] = between.tokens.as_ref().map_or([0; 4], Operand::shape);
    let count = between.segments.as_ref().unwrap_or(&results.values).shape()[3];
    let params = Params { cols: keys as u32, to_cols: count as u32, adds: u32::from(adds), ..Params::default() };
    let table = Binding::Table { name: "problem", ty: "vec2u", length: None, write: true };
    let tables = vec![(table, Table::Scratch(problem))];
    step(
        caps,
        ("segments", vec![file::REDUCTION_SEGMENTS, file::REDUCTION_VALUE]),
        places,
        tensors,
        tables,
        params,
        rows * count,
    )
}

/// The largest of each row: of so many columns so many.
pub(super) fn top_k(
    caps: &Caps,
    places: &[Part],
    between: &Between,
    results: &Results,
    [cols, k]: [usize; 2],
) -> Result<Step> {
    let one = between.segments.as_ref().or(between.tokens.as_ref());
    let tensors = vec![("one", one), ("values", Some(&results.values)), ("indices", results.indices.as_ref())];
    let params = Params { cols: cols as u32, to_cols: k as u32, ..Params::default() };
    let files = vec![file::REDUCTION_TOP_K, file::LARGEST, file::SCAN];
    step(caps, ("top k", files), places, tensors, vec![], params, results.values.shape()[2])
}

fn step(
    caps: &Caps,
    (name, files): (&str, Vec<&'static str>),
    places: &[Part],
    tensors: Tensors,
    tables: Vec<(Binding, Table)>,
    params: Params,
    workgroups: usize,
) -> Result<Step> {
    let argument = |(name, operand): (&'static str, Option<&Operand>)| {
        let kind = if ["values", "indices"].contains(&name) { AccessKind::StoreBits } else { AccessKind::LoadBits };
        Some(Argument::new(name, operand?, kind, EACH))
    };
    let arguments: Vec<Argument> = tensors.into_iter().filter_map(argument).collect();
    let mut parts = vec![];
    for place in places {
        let whole = Part { tiles: 0..workgroups, ..place.clone() };
        parts.extend(cut(caps, &arguments, whole, FLOPS * f64::from(params.cols))?);
    }
    let of_part = |part: &Part| Params { first: part.first(), ..params };
    let files = [vec![file::REDUCTION_SHARED], files].concat();
    let optional = vec![("one_indices", AccessKind::LoadBits), ("indices", AccessKind::StoreBits)];
    let shader =
        Shader { optional, ..Shader::of(format!("score reduction {name}"), vec![("WG", THREADS)], files, None) };
    Step::new(caps, shader, arguments, tables, parts, of_part).fit(caps)
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::REDUCTION_SHARED,
            first cols to_cols adds pad
        );
    }
}
