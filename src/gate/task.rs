//! A kernel of the gate, from what it reads and writes to a plan.

use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, Heads, Part, Step, Table, cut};
use crate::{Error, Result};

/// The name of a tensor of the program.
pub(super) type Tensor = &'static str;

/// A tensor: its name in the shader, which one of the program's, how it is reached, its heads.
pub(super) type Access = (&'static str, Tensor, AccessKind, Heads);

/// The uniform struct of `shaders/gate/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub first: [u32; 3],
    pub rows: u32,
    pub cols: u32,
    pub query_block: u32,
    pub key_block: u32,
    pub causal: u32,
    pub past: u32,
    pub complete: u32,
    pub forced: u32,
    pub side: u32,
    pub joined: u32,
    pub pools: u32,
    pub ring: u32,
    pub pad: u32,
    pub pool: [u32; 4],
    pub bound: f32,
    pub scale: f32,
    pub epsilon: f32,
    pub weight: f32,
    pub heads: u32,
    pub inner: u32,
    pub from_row: u32,
    pub end: u32,
}

/// A kernel before it is planned.
pub(crate) struct Task {
    pub name: &'static str,
    pub files: Vec<&'static str>,
    pub constants: Vec<(&'static str, u32)>,
    pub tensors: Vec<Access>,
    pub tables: Vec<(Binding, Table)>,
    /// Batch entries, heads and tiles, and floating-point operations of a tile.
    pub work: [usize; 3],
    pub flops: f64,
    pub params: Params,
}

/// Threads of a workgroup.
const THREADS: u32 = 64;

impl Task {
    /// Adds the kernel, with the table of the frame's rows.
    pub fn add(self, builder: &mut Builder, rows: (Binding, Table)) -> Result<()> {
        let Task { name, files, constants, tensors, mut tables, work, flops, params } = self;
        let caps = builder.caps;
        let argument = |&(name, tensor, kind, heads): &Access| {
            let missing = || Error::argument(tensor, "unset", "set");
            Ok(Argument::new(name, &builder.operand(tensor).ok_or_else(missing)?, kind, heads))
        };
        let arguments = tensors.iter().map(argument).collect::<Result<Vec<_>>>()?;
        let parts = cut(caps, &arguments, Part::whole(work), flops)?;
        let of_part = |part: &Part| Params { first: part.first(), ..params };
        tables.insert(0, rows);
        let files = [vec![file::GATE_SHARED, file::ELEMENT], files].concat();
        let constants = [vec![("WG", THREADS)], constants].concat();
        let optional = vec![
            ("weights", AccessKind::Load4),
            ("norm", AccessKind::Load1),
            ("scores", AccessKind::StoreBits),
            ("shares", AccessKind::Store4),
        ];
        let shader = Shader { optional, ..Shader::of(format!("gate {name}"), constants, files, None) };
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
            Params, file::GATE_SHARED,
            first rows cols query_block key_block causal past complete forced side joined pools ring pool bound
            scale epsilon weight heads inner from_row end
        );
    }
}
