//! What comes behind the kernel that computes probabilities: from keys to segments, and the largest of a row.

use crate::arguments::Argument;
use crate::dispatch::Kernel;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::{Caps, Layout, Result, Slice};

/// The uniform struct of `shaders/reduction/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    one: [u32; 4],
    one_indices: [u32; 4],
    segments: [u32; 4],
    values: [u32; 4],
    indices: [u32; 4],
    first: [u32; 3],
    cols: u32,
    to_cols: u32,
    adds: u32,
    pad: [u32; 2],
}

/// Where a tensor of a step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Values, keys, or values of segments that lie between two kernels.
    Scratch(usize),
    /// The segment of each key.
    Segments,
    Values,
    Indices,
}

/// A kernel with its slices and its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub kernel: Kernel,
    /// For each batch entry and head, one or several.
    pub slices: Vec<Slice>,
    /// The slices of each batch entry and head.
    pub parts: Vec<std::ops::Range<usize>>,
    pub sources: Vec<Source>,
    /// Whether it reports a problem.
    pub has_problem: bool,
}

/// Threads of a workgroup.
const THREADS: u32 = 128;
/// Operations a column.
const FLOPS: f64 = 40.0;

impl Step {
    /// Sums, or the largest, of the keys of each segment. `sizes`: rows, keys, segments.
    pub fn segments(
        caps: &Caps,
        places: &[Slice],
        tensors: &[(Source, &Layout)],
        [rows, keys, segments]: [usize; 3],
        adds: bool,
    ) -> Result<Self> {
        let with_keys = tensors.iter().any(|(source, _)| *source == Source::Scratch(1));
        let (cell, write) = match with_keys {
            true => (file::REDUCTION_CELL_AND_INDEX, file::REDUCTION_VALUE_AND_INDEX),
            false => (file::REDUCTION_CELL, file::REDUCTION_VALUE),
        };
        let files = vec![file::REDUCTION_SEGMENTS, cell, write];
        let params = Params { cols: keys as u32, to_cols: segments as u32, adds: u32::from(adds), ..Params::zeroed() };
        Self::plan(caps, ("segments", files), places, tensors, params, rows * segments)
    }

    /// The largest of each row. `sizes`: rows, columns, how many.
    pub fn top_k(
        caps: &Caps,
        places: &[Slice],
        tensors: &[(Source, &Layout)],
        [rows, cols, k]: [usize; 3],
    ) -> Result<Self> {
        let params = Params { cols: cols as u32, to_cols: k as u32, ..Params::zeroed() };
        Self::plan(
            caps,
            ("top k", vec![file::REDUCTION_TOP_K, file::LARGEST, file::SCAN]),
            places,
            tensors,
            params,
            rows,
        )
    }

    fn plan(
        caps: &Caps,
        (name, files): (&str, Vec<&'static str>),
        places: &[Slice],
        tensors: &[(Source, &Layout)],
        params: Params,
        workgroups: usize,
    ) -> Result<Self> {
        // Numbers on the GPU may be wrong.
        let has_problem = tensors.iter().any(|(source, _)| *source == Source::Segments);
        let arguments: Vec<Argument> = tensors
            .iter()
            .enumerate()
            .map(|(i, &(source, layout))| {
                let (name, kind) = match source {
                    Source::Scratch(1) => ("one_indices", AccessKind::LoadBits),
                    Source::Scratch(_) if i > 0 => ("values", AccessKind::StoreBits),
                    Source::Scratch(_) => ("one", AccessKind::LoadBits),
                    Source::Segments => ("segments", AccessKind::LoadBits),
                    Source::Values => ("values", AccessKind::StoreBits),
                    Source::Indices => ("indices", AccessKind::StoreBits),
                };
                Argument { name, layout: layout.clone(), kind, group: 1, spread: 1, buffer: i, whole: false }
            })
            .collect();
        let (mut slices, mut parts) = (vec![], vec![]);
        for place in places {
            let whole = Slice { tiles: 0..workgroups, ..place.clone() };
            let first = slices.len();
            slices.extend(cut(caps, &arguments, whole, FLOPS * f64::from(params.cols))?);
            parts.push(first..slices.len());
        }
        let of_slice = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            one: address("one"),
            one_indices: address("one_indices"),
            segments: address("segments"),
            values: address("values"),
            indices: address("indices"),
            first: slice.first(),
            ..params
        };
        let table = Binding::Table { name: "problem", ty: "vec2u", length: None, write: true };
        let tables = has_problem.then_some((table, None)).into_iter().collect();
        let files = [vec![file::REDUCTION_SHARED, file::ROW], files].concat();
        let name = format!("score reduction {name}");
        let shader = Shader::of(name, vec![("WG", THREADS)], files, None);
        let sources = tensors.iter().map(|&(source, _)| source).collect();
        let kernel = Kernel::sliced(caps, shader, arguments, tables, &slices, of_slice)?;
        Ok(Self { kernel, slices, parts, sources, has_problem })
    }
}

impl Params {
    fn zeroed() -> Self {
        bytemuck::Zeroable::zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::REDUCTION_SHARED,
            one one_indices segments values indices first cols to_cols adds pad
        );
    }
}
