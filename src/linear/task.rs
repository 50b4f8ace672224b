//! A kernel of linear attention, from what it reads and writes to a plan.

use super::parts::Part;
use crate::arguments::Argument;
use crate::dispatch::Kernel;
use crate::shader::{AccessKind, Shader, file};
use crate::slices::cut;
use crate::softmax::tiles::{float_table, small_table};
use crate::steps::{Heads, Places, Step};
use crate::{Caps, Result, Slice};
use std::ops::Range;

/// The uniform struct of `shaders/linear/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    g: [u32; 4],
    h0: [u32; 4],
    o: [u32; 4],
    ht: [u32; 4],
    states: [u32; 4],
    snapshots: [u32; 4],
    problem: [u32; 4],
    totals: [u32; 4],
    dq: [u32; 4],
    dk: [u32; 4],
    dg: [u32; 4],
    behind: [u32; 4],
    first: [u32; 3],
    heads: u32,
    groups: [u32; 3],
    scale: f32,
    reverse: u32,
    late: u32,
    gain: f32,
    segment: u32,
}

/// What a state fades by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Gate {
    None,
    /// −g of each head.
    ByHead(Vec<f32>),
    /// [`Part::G`].
    ByToken,
}

/// What all kernels of a walk know.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub gate: Gate,
    pub heads: usize,
    /// Rows and columns of the state.
    pub dims: (usize, usize),
    /// (first row, tokens) of each batch entry or sequence.
    pub sequences: Vec<[u32; 4]>,
    pub reverse: bool,
    /// Whether the state fades after a token has read it.
    pub late: bool,
    pub scale: f32,
    pub gain: f32,
}

impl Frame {
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence[1] as usize).max().unwrap_or(0)
    }

    /// A segment as long as the longest entry.
    pub fn whole(&self) -> usize {
        self.longest().max(1)
    }

    /// How many segments of so many tokens the longest entry has.
    pub fn segments(&self, segment: usize) -> usize {
        self.longest().div_ceil(segment).max(1)
    }
}

/// Threads of the kernels that keep no state in registers.
pub(super) const THREADS: usize = 64;

/// A tensor: its name in the shader, which one, how it is reached.
pub(super) type Access = (&'static str, Part, AccessKind);

/// One kernel before it is planned.
pub(super) struct Task {
    pub name: &'static str,
    pub files: Vec<&'static str>,
    pub constants: Vec<(&'static str, usize)>,
    pub tensors: Vec<Access>,
    /// Tokens of a segment.
    pub segment: usize,
    /// Entries, heads and tiles; floating-point operations of a tile.
    pub work: [usize; 3],
    /// Which of several runs of so many tiles: one after another.
    pub runs: Range<usize>,
    pub flops: f64,
}

impl Task {
    pub fn plan(self, caps: &Caps, frame: &Frame, places: &Places<Part>) -> Result<Step<Part>> {
        let Task { name, files, constants, tensors, segment, work: [entries, heads, tiles], runs, flops } = self;
        let heads_of = |part: Part| places.layout(part).shape[1].max(1);
        let argument = |&(name, part, kind): &Access| {
            let (group, spread) = (heads.div_ceil(heads_of(part)).max(1), heads_of(part).div_ceil(heads.max(1)));
            // What goes over all entries at once has them as no dimension of its work.
            let whole = entries == 1;
            places.argument(name, part, kind, Heads { group, spread, whole })
        };
        let arguments: Vec<Argument> = tensors.iter().map(argument).collect();
        // One workgroup may go over a whole sequence: a submit has no fewer of them than run side by side.
        let flops = flops.min(caps.submit_flops() / caps.concurrency() as f64);
        let mut slices = vec![];
        for run in runs.filter(|_| entries * heads * tiles > 0) {
            let tiles = run * tiles..(run + 1) * tiles;
            slices.extend(cut(caps, &arguments, Slice { batches: 0..entries, heads: 0..heads, tiles }, flops)?);
        }
        let group = |name: &str| {
            let of = tensors.iter().find(|(other, ..)| *other == name);
            of.map_or(1, |(_, part, _)| frame.heads / heads_of(*part).min(frame.heads).max(1)) as u32
        };
        let of_slice = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            q: address("q"),
            k: address("k"),
            v: address("v"),
            g: address("g"),
            h0: address("h0"),
            o: address("o"),
            ht: address("ht"),
            states: address("states"),
            snapshots: address("snapshots"),
            problem: address("problem"),
            totals: address("totals"),
            dq: address("dq"),
            dk: address("dk"),
            dg: address("dg"),
            behind: address("behind"),
            first: slice.first(),
            heads: frame.heads as u32,
            groups: ["q", "k", "v"].map(group),
            scale: frame.scale,
            reverse: u32::from(frame.reverse),
            late: u32::from(frame.late),
            gain: frame.gain,
            segment: segment as u32,
        };
        let mut tables = vec![small_table("sequences", &frame.sequences)];
        if let Gate::ByHead(slopes) = &frame.gate {
            tables.push(float_table("slopes", slopes));
        }
        let (head_dim, value_dim) = frame.dims;
        let constants = constants.into_iter().chain([("HEAD_DIM", head_dim), ("HEAD_DIM_V", value_dim)]);
        let constants = constants.map(|(name, value)| (name, value as u32)).collect();
        let files = [vec![file::LINEAR_SHARED, file::ROW, file::ELEMENT], files].concat();
        let shader = Shader::of(format!("linear {name}"), constants, files, None);
        let kernel = Kernel::sliced(caps, shader, arguments, tables, &slices, of_slice)?;
        Ok(Step { kernel, slices, parts: tensors.into_iter().map(|(_, part, _)| part).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::LINEAR_SHARED,
            q k v g h0 o ht states snapshots problem totals dq dk dg behind first heads groups scale reverse late gain segment
        );
    }
}
