//! The kernels that bring block masks from one form to another, as planned.

use super::BlockGrid;
use crate::arguments::Argument;
use crate::dispatch::Kernel;
use crate::hook::Placed;
use crate::shader::{AccessKind, Binding, Chain, Shader, file};
use crate::slices::cut;
use crate::{Caps, Layout, Result, Slice};
#[cfg(feature = "catalogue")]
use crate::{DType, Hook};

/// The uniform struct of `shaders/blocks/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    one: [u32; 4],
    other: [u32; 4],
    to: [u32; 4],
    heads: u32,
    rows: u32,
    cols: u32,
    first: u32,
    count: u32,
    mode: u32,
    capacity: u32,
    queries: u32,
    keys: u32,
    query_block: u32,
    key_block: u32,
    indices: u32,
    offsets: u32,
    pad: [u32; 3],
}

/// `MODE_…` of the shaders: what becomes of the other bitmap.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    One,
    With,
    Without,
}

/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Operations that a thread may need, for the division into submits.
const FLOPS: f64 = 1e3;

/// A conversion before it is planned.
pub(crate) struct Task<'a> {
    name: &'static str,
    files: Vec<&'static str>,
    /// Name, layout and access of each tensor.
    tensors: Vec<(&'static str, &'a Layout, AccessKind)>,
    /// The type of what reports problems.
    problem: Option<&'static str>,
    /// Rows or words to make: one a thread, or shared by so many workgroups.
    count: usize,
    workgroups: Option<usize>,
    params: Params,
    chain: Option<Chain>,
}

impl Task<'_> {
    pub fn plan(self, caps: &Caps) -> Result<(Kernel, Vec<Slice>)> {
        let all = self.tensors.iter().enumerate();
        let arguments: Vec<Argument> = all
            .map(|(buffer, (name, layout, kind))| {
                // A thread finds its batch entry and head: every slice binds all of them.
                let (layout, spread) = ((*layout).clone(), layout.shape[1].max(1));
                Argument { name, layout, kind: *kind, group: 1, spread, buffer, whole: true }
            })
            .collect();
        let each = if self.workgroups.is_some() { 1 } else { THREADS as usize };
        let tiles = self.workgroups.unwrap_or(self.count.div_ceil(each));
        let whole = Slice { batches: 0..1, heads: 0..1, tiles: 0..tiles };
        let slices = if tiles == 0 { vec![] } else { cut(caps, &arguments, whole, FLOPS * f64::from(THREADS))? };
        let params = |slice: &Slice, address: &dyn Fn(&str) -> [u32; 4]| Params {
            one: address("one"),
            other: address("other"),
            to: address("to"),
            indices: address("indices")[0],
            offsets: address("offsets")[0],
            first: (slice.tiles.start * each) as u32,
            count: self.count as u32,
            ..self.params
        };
        let problem = self.problem.map(|ty| Binding::Table { name: "problem", ty, length: None, write: true });
        let tables = problem.map(|table| (table, None)).into_iter().collect();
        let files = [vec![file::BLOCKS_SHARED], self.files].concat();
        let shader = Shader::of(format!("block mask {}", self.name), vec![("WG", THREADS)], files, self.chain);
        Ok((Kernel::sliced(caps, shader, arguments, tables, &slices, params)?, slices))
    }
}

const READ: AccessKind = AccessKind::LoadBits;
const WRITE: AccessKind = AccessKind::StoreBits;

impl BlockGrid {
    fn params(&self, mode: Mode, capacity: usize) -> Params {
        let [rows, cols] = self.blocks();
        Params {
            heads: self.heads as u32,
            rows: rows as u32,
            cols: cols as u32,
            mode: mode as u32,
            capacity: capacity as u32,
            queries: self.queries as u32,
            keys: self.keys as u32,
            query_block: self.block[0] as u32,
            key_block: self.block[1] as u32,
            ..Params::default()
        }
    }

    /// Rows of all batch entries and heads.
    pub(super) fn rows(&self) -> usize {
        let [batch, heads, rows, _] = self.shape();
        batch * heads * rows
    }

    /// Exchanges rows and columns of a bitmap. Tensors: it, and the result.
    pub(crate) fn transposition<'a>(&self, [from, to]: [&'a Layout; 2]) -> Task<'a> {
        let turned = self.transposed();
        Task {
            name: "transposed",
            files: vec![file::BLOCKS_TRANSPOSE],
            tensors: vec![("one", from, READ), ("to", to, WRITE)],
            problem: None,
            count: turned.shape().iter().product(),
            workgroups: None,
            params: turned.params(Mode::One, 0),
            chain: None,
        }
    }

    /// A bitmap from a list. Tensors: offsets, indices, another bitmap, the result.
    pub(super) fn bits<'a>(&self, [offsets, indices, other, to]: [&'a Layout; 4], mode: Mode) -> Task<'a> {
        Task {
            name: "from lists",
            files: vec![file::BLOCKS_FROM_LISTS],
            tensors: vec![
                ("one", offsets, READ),
                ("indices", indices, READ),
                ("other", other, READ),
                ("to", to, WRITE),
            ],
            problem: Some("atomic<u32>"),
            count: self.rows(),
            workgroups: None,
            params: self.params(mode, indices.shape[3]),
            chain: None,
        }
    }

    /// What was wrong with the list, in full. Tensors: offsets, indices.
    pub(super) fn list_problem<'a>(&self, [offsets, indices]: [&'a Layout; 2]) -> Task<'a> {
        Task {
            name: "list problem",
            files: vec![file::BLOCKS_LIST_PROBLEM],
            tensors: vec![("one", offsets, READ), ("indices", indices, READ)],
            problem: Some("u32"),
            count: 1,
            workgroups: Some(1),
            params: self.params(Mode::One, indices.shape[3]),
            chain: None,
        }
    }

    /// Where lists begin. Tensors: two bitmaps, offsets.
    pub(super) fn list_offsets<'a>(&self, [one, other, to]: [&'a Layout; 3], mode: Mode, capacity: usize) -> Task<'a> {
        Task {
            name: "list offsets",
            files: vec![file::BLOCKS_LIST_OFFSETS, file::BLOCKS_LISTED, file::SCAN],
            tensors: vec![("one", one, READ), ("other", other, READ), ("to", to, WRITE)],
            problem: Some("u32"),
            count: self.rows(),
            // It goes through all rows.
            workgroups: Some(1),
            params: self.params(mode, capacity),
            chain: None,
        }
    }

    /// What the lists hold. Tensors: two bitmaps, offsets, indices.
    pub(super) fn list_indices<'a>(&self, [one, other, offsets, to]: [&'a Layout; 4], mode: Mode) -> Task<'a> {
        Task {
            name: "list indices",
            files: vec![file::BLOCKS_LIST_INDICES, file::BLOCKS_LISTED],
            tensors: vec![("one", one, READ), ("other", other, READ), ("offsets", offsets, READ), ("to", to, WRITE)],
            problem: None,
            count: self.rows(),
            workgroups: None,
            params: self.params(mode, to.shape[3]),
            chain: None,
        }
    }

    /// Chosen and full blocks by the caller's functions. Tensors: those two.
    pub(super) fn asked<'a>(&self, [chosen, full]: [&'a Layout; 2], hooks: Vec<Placed>) -> Task<'a> {
        let words = self.shape().iter().product();
        Task {
            name: "from masks",
            files: vec![file::BLOCKS_FROM_MASKS, file::TILES_POSITION],
            tensors: vec![("to", chosen, WRITE), ("other", full, WRITE)],
            problem: None,
            count: words,
            workgroups: Some(words),
            params: self.params(Mode::One, 0),
            chain: Some(Chain { hooks, ..Chain::default() }),
        }
    }
}

/// The text of every conversion, with its name.
#[cfg(feature = "catalogue")]
pub(crate) fn conversions(caps: &Caps) -> Result<Vec<(String, String)>> {
    let grid = BlockGrid { batch: 1, heads: 2, queries: 200, keys: 300, block: [64, 32] };
    let mask = Hook::new("mask", "fn mask(at: Position) -> bool { return at.key <= at.query + at.head; }");
    let bitmap = &Layout::heads_first(DType::U32, grid.shape());
    let turned = &Layout::heads_first(DType::U32, grid.transposed().shape());
    let [offsets, indices] = &[grid.rows() + 1, 30].map(|n| Layout::heads_first(DType::U32, [1, 1, 1, n]));
    let tasks = [
        grid.transposition([bitmap, turned]),
        grid.bits([offsets, indices, bitmap, bitmap], Mode::With),
        grid.list_problem([offsets, indices]),
        grid.list_offsets([bitmap, bitmap, offsets], Mode::Without, 30),
        grid.list_indices([bitmap, bitmap, offsets, indices], Mode::Without),
        grid.asked([bitmap, bitmap], crate::hook::place(&[], &[mask])),
    ];
    tasks
        .into_iter()
        .map(|task| task.plan(caps).map(|(kernel, _)| (kernel.shader.name.clone(), kernel.shader.source())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::BLOCKS_SHARED,
            one other to heads rows cols first count mode capacity queries keys query_block key_block indices offsets
        );
    }
}
