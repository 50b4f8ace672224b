//! A kernel of linear attention, from what it reads and writes to a plan.

use super::sequences::Rows;
use crate::program::shader::{AccessKind, Shader, WrittenOut, file};
use crate::program::{Argument, Builder, Heads, Part, Step, cut, float_table, within_parts};
use crate::{Error, Result};
use std::ops::Range;

/// The uniform struct of `shaders/linear/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
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
pub(super) enum Decay {
    None,
    /// −g of each head.
    ByHead(Vec<f32>),
    /// The tensor `g`, a number for each token.
    ByToken,
    /// The tensor `g`, a number for each token and channel of its key.
    ByChannel,
    /// With momentum: rows of the state are those of the memory and of the momentum in turns, and the tensor `steps` has what a token does to
    /// them. So many tokens have errors of the same memory.
    WithMomentum {
        errors: usize,
    },
}

/// What all kernels of a walk know.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub decay: Decay,
    pub heads: usize,
    /// Rows and columns of the state.
    pub dims: (usize, usize),
    /// Those of each batch entry or sequence.
    pub rows: Rows,
    /// Of the tensors, whatever the lengths.
    pub tokens: usize,
    pub reverse: bool,
    /// Whether the state fades after a token has read it.
    pub late: bool,
    pub scale: f32,
    pub gain: f32,
}

impl Frame {
    pub fn longest(&self) -> usize {
        self.rows.longest
    }

    pub fn entries(&self) -> usize {
        self.rows.entries
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

impl Decay {
    /// Whether rows of a state fade apart: then what is left of them, and products of tokens, are computed ahead of chunks.
    pub fn is_by_row(&self) -> bool {
        matches!(self, Self::ByChannel | Self::WithMomentum { .. })
    }
}

/// Threads of the kernels that keep no state in registers.
pub(super) const THREADS: usize = 64;

/// A tensor: its name in the shader, which one of the program's, how it is reached.
pub(super) type Access = (&'static str, &'static str, AccessKind);

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
    /// Adds the kernel.
    pub fn add(self, builder: &mut Builder, frame: &Frame) -> Result<()> {
        let Task { name, files, constants, tensors, segment, work: [entries, heads, tiles], runs, flops } = self;
        let caps = builder.caps;
        let argument = |&(name, tensor, kind): &Access| {
            let missing = || Error::argument(tensor, "unset", "set");
            let operand = builder.operand(tensor).ok_or_else(missing)?;
            let own = operand.shape()[1].max(1);
            // What goes over all entries at once has them as no dimension of its work.
            let (group, spread, whole) = (heads.div_ceil(own).max(1), own.div_ceil(heads.max(1)), entries == 1);
            Ok(Argument::new(name, &operand, kind, Heads { group, spread, whole }))
        };
        let arguments = tensors.iter().map(argument).collect::<Result<Vec<_>>>()?;
        // One workgroup may go over a whole sequence: a submit has no fewer of them than run side by side.
        let flops = flops.min(caps.submit_flops() / caps.concurrency() as f64);
        within_parts(caps, name, runs.len() as f64)?;
        let mut parts = vec![];
        for run in runs {
            let tiles = run * tiles..(run + 1) * tiles;
            parts.extend(cut(caps, &arguments, Part { batches: 0..entries, heads: 0..heads, tiles }, flops)?);
        }
        let group = |name: &str| {
            let of = arguments.iter().find(|argument| argument.name == name);
            of.map_or(1, |of| frame.heads / of.layout().shape[1].max(1).min(frame.heads).max(1)) as u32
        };
        let groups = ["q", "k", "v"].map(group);
        let of_part = |part: &Part| Params {
            first: part.first(),
            heads: frame.heads as u32,
            groups,
            scale: frame.scale,
            reverse: u32::from(frame.reverse),
            late: u32::from(frame.late),
            gain: frame.gain,
            segment: segment as u32,
        };
        let mut tables = vec![frame.rows.table.clone()];
        if let Decay::ByHead(slopes) = &frame.decay {
            tables.push(float_table("slopes", slopes));
        }
        let (head_dim, value_dim) = frame.dims;
        let constants = constants.into_iter().chain([("HEAD_DIM", head_dim), ("HEAD_DIM_V", value_dim)]);
        let mut constants: Vec<_> = constants.map(|(name, value)| (name, value as u32)).collect();
        let files = [vec![file::LINEAR_SHARED, file::ELEMENT], files].concat();
        if tensors.iter().any(|(name, ..)| *name == "g") {
            constants.push(("G_GROUP", group("g")));
        }
        if files.contains(&file::LINEAR_CHUNKS_LEFT) {
            constants.push(("FADES_GROUP", group("fades")));
        }
        if files.contains(&file::LINEAR_REPORT) && !constants.iter().any(|(name, _)| *name == "REPORTED") {
            constants.push(("REPORTED", 1));
        }
        if files.contains(&file::LINEAR_BETAS) {
            constants.push(("BETA_GROUP", group("beta")));
        }
        let mut optional = vec![
            ("h0", AccessKind::Load4),
            ("h0", AccessKind::Load1),
            ("ht", AccessKind::Load4),
            ("ht", AccessKind::Store4),
            ("states", AccessKind::Load4),
            ("states", AccessKind::Store4),
            ("snapshots", AccessKind::Store4),
            ("problem", AccessKind::StoreBits),
            ("less", AccessKind::Load4),
            ("fades", AccessKind::Load4),
            ("rests", AccessKind::Load4),
            ("beta", AccessKind::Load1),
        ];
        if files.contains(&file::LINEAR_CHUNKS_PRODUCTS) {
            optional.extend([("q", AccessKind::Load4), ("g", AccessKind::Load4)]);
        }
        if files.contains(&file::LINEAR_CHUNKS_BOUNDS) {
            optional.extend(["q", "weights", "g"].map(|name| (name, AccessKind::Load4)));
            optional.push(("o", AccessKind::Store4));
            optional.extend([("totals", AccessKind::LoadBits), ("totals", AccessKind::StoreBits)]);
        }
        if files.contains(&file::LINEAR_ACTIVATION) {
            optional.extend([("a_log", AccessKind::Load1), ("dt_bias", AccessKind::Load4), ("dy", AccessKind::Load4)]);
            optional.push(("x", AccessKind::Load4));
            optional.extend([("da_log", AccessKind::StoreBits), ("ddt_bias", AccessKind::Store4)]);
        }
        if files.contains(&file::LINEAR_JOINT) {
            optional.extend([("v", AccessKind::Load4), ("o", AccessKind::Store4)]);
            optional.extend([("z", AccessKind::Load4), ("z", AccessKind::Store4)]);
        }
        if [file::LINEAR_GATE_GRADIENT, file::LINEAR_GATE_GRADIENT_BY_CHANNEL].iter().any(|file| files.contains(file)) {
            optional.extend(["q", "dq"].map(|name| (name, AccessKind::Load4)));
        }
        if files.contains(&file::LINEAR_MOMENTUM) {
            optional.extend(["q", "v", "memory", "momentum", "errors"].map(|name| (name, AccessKind::Load4)));
            optional.extend(["o", "memory", "momentum", "errors"].map(|name| (name, AccessKind::Store4)));
        }
        if files.contains(&file::LINEAR_RECURRENT) {
            optional.extend(["q", "k", "v", "k2", "v2"].map(|name| (name, AccessKind::Load4)));
            optional.extend(["o", "e", "u"].map(|name| (name, AccessKind::Store4)));
            constants.extend([("K2_GROUP", "k2"), ("V2_GROUP", "v2")].map(|(to, of)| (to, group(of))));
        }
        let shader = Shader {
            optional,
            optional_tables: vec![("slopes", "vec4f")],
            // Only texts for processors have marks.
            written_out: WrittenOut::Each,
            ..Shader::of(format!("linear {name}"), constants, files, None)
        };
        let step = Step::new(caps, shader, arguments, tables, parts, of_part).fit(caps)?;
        builder.add_sliced(&step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::LINEAR_SHARED,
            first heads groups scale reverse late gain segment
        );
    }
}
