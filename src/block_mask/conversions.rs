//! Block masks from one form to another.

use super::BlockGrid;
use crate::error::require;
use crate::program::shader::{AccessKind, Binding, Chain, Shader, file};
use crate::program::{Argument, Builder, EACH, Heads, Operand, Part, Program, Rule, Step, Table, cut, hook};
use crate::{Caps, DType, Hook, Layout, Result, Shapes};

/// The uniform struct of `shaders/blocks/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
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
    pad: u32,
}

/// `MODE_…` of the shaders: what becomes of the other bitmap.
#[derive(Clone, Copy)]
enum Mode {
    One,
    With,
    Without,
}

/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Operations that a thread may need, for the division into submits.
const FLOPS: f64 = 1e3;

const READ: AccessKind = AccessKind::LoadBits;
const WRITE: AccessKind = AccessKind::StoreBits;

/// A conversion before it is planned.
struct Task<'a> {
    name: &'static str,
    files: Vec<&'static str>,
    tensors: Vec<(&'static str, &'a Operand, AccessKind)>,
    /// What reports problems, and its type.
    problem: Option<(usize, &'static str)>,
    /// Rows or words to make: one a thread, or shared by so many workgroups.
    count: usize,
    workgroups: Option<usize>,
    params: Params,
    chain: Option<Chain>,
}

impl Task<'_> {
    fn step(self, caps: &Caps) -> Result<Step> {
        let argument = |&(name, operand, kind): &(&'static str, &Operand, AccessKind)| {
            // A thread finds its batch entry and head: every part binds all of them.
            let spread = operand.shape()[1].max(1);
            Argument::new(name, operand, kind, Heads { spread, whole: true, ..EACH })
        };
        let arguments: Vec<Argument> = self.tensors.iter().map(argument).collect();
        let each = if self.workgroups.is_some() { 1 } else { THREADS as usize };
        let tiles = self.workgroups.unwrap_or(self.count.div_ceil(each));
        let parts = cut(caps, &arguments, Part::whole([1, 1, tiles]), FLOPS * f64::from(THREADS))?;
        let params =
            |part: &Part| Params { first: (part.tiles.start * each) as u32, count: self.count as u32, ..self.params };
        let problem = |(scratch, ty)| {
            (Binding::Table { name: "problem", ty, length: None, write: true }, Table::Scratch(scratch))
        };
        let tables = self.problem.map(problem).into_iter().collect();
        let files = [vec![file::BLOCKS_SHARED], self.files].concat();
        let shader = Shader::of(format!("block mask {}", self.name), vec![("WG", THREADS)], files, self.chain);
        Step::new(caps, shader, arguments, tables, parts, params).fit(caps)
    }
}

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

    fn bitmap(&self) -> Layout {
        Layout::heads_first(DType::U32, self.shape())
    }

    /// Rows of all batch entries and heads.
    pub(crate) fn rows(&self) -> usize {
        let [batch, heads, rows, _] = self.shape();
        batch * heads * rows
    }
}

/// Exchanges rows and columns of a bitmap.
pub(crate) fn transposition(caps: &Caps, grid: &BlockGrid, [from, to]: [&Operand; 2]) -> Result<Step> {
    let turned = grid.transposed();
    let task = Task {
        name: "transposed",
        files: vec![file::BLOCKS_TRANSPOSE],
        tensors: vec![("one", from, READ), ("to", to, WRITE)],
        problem: None,
        count: turned.shape().iter().product(),
        workgroups: None,
        params: turned.params(Mode::One, 0),
        chain: None,
    };
    task.step(caps)
}

/// All dispatches of some kernels in one slice.
fn program(mut builder: Builder, steps: Vec<Step>, words: &str) -> Result<Program> {
    let all: Vec<_> = steps.iter().map(|step| builder.add(step)).collect();
    let end = all.last().map_or(0, |last| last.end);
    if end > 0 {
        builder.slice(vec![], 0..end);
    }
    builder.finish(words)
}

/// Planning without a device.
impl BlockGrid {
    /// Plans the bitmap `to`: the bitmap `from` seen from the keys.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for tensors that are missing; [`crate::Error::Limit`].
    pub fn plan_transposition(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.check()?;
        let mut builder = Builder::new(caps, shapes)?;
        let (from, to) = (builder.input("from")?, builder.output("to", self.transposed().bitmap())?);
        let steps = vec![transposition(caps, self, [&from, &to])?];
        program(builder, steps, "a block mask transposed")
    }

    /// Plans the bitmap `to` from a list of `offsets` and `indices` and, if there is one, from the bitmap `with`. Errors call the list by
    /// its name.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for tensors that are missing; [`crate::Error::Limit`].
    pub fn plan_from_list(&self, name: &'static str, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.check()?;
        let mut builder = Builder::new(caps, shapes)?;
        let (offsets, indices, with) = (builder.input("offsets")?, builder.input("indices")?, builder.tensor("with"));
        let to = builder.output("to", self.bitmap())?;
        let (cols, count) = (self.blocks()[1], indices.shape()[3]);
        let problem = builder.scratch_bytes("problem", 16)?;
        builder.check(problem, Rule::BlockList { name, cols, count });
        let mode = if with.is_some() { Mode::With } else { Mode::One };
        let bits = Task {
            name: "from lists",
            files: vec![file::BLOCKS_FROM_LISTS],
            tensors: vec![
                ("one", &offsets, READ),
                ("indices", &indices, READ),
                ("other", with.as_ref().unwrap_or(&offsets), READ),
                ("to", &to, WRITE),
            ],
            problem: Some((problem, "atomic<u32>")),
            count: self.rows(),
            workgroups: None,
            params: self.params(mode, count),
            chain: None,
        };
        // What was wrong with the list, in full.
        let told = Task {
            name: "list problem",
            files: vec![file::BLOCKS_LIST_PROBLEM],
            tensors: vec![("one", &offsets, READ), ("indices", &indices, READ)],
            problem: Some((problem, "u32")),
            count: 1,
            workgroups: Some(1),
            params: self.params(Mode::One, count),
            chain: None,
        };
        let steps = vec![bits.step(caps)?, told.step(caps)?];
        program(builder, steps, "a block mask from lists")
    }

    /// Plans the list, `offsets` and `indices`, of what is set in the bitmap `from` and not in the bitmap `without`, if there is one.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for tensors that are missing; [`crate::Error::Limit`].
    pub fn plan_to_list(&self, name: &'static str, capacity: usize, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.check()?;
        let mut builder = Builder::new(caps, shapes)?;
        let (from, without) = (builder.input("from")?, builder.tensor("without"));
        let numbers = |count: usize| Layout::heads_first(DType::U32, [1, 1, 1, count]);
        let offsets = builder.output("offsets", numbers(self.rows() + 1))?;
        let most = u32::MAX as usize;
        require(capacity <= most, "capacity", capacity, format!("at most {most}"))?;
        let indices = builder.output("indices", numbers(capacity))?;
        let problem = builder.scratch_bytes("problem", 16)?;
        builder.check(problem, Rule::Capacity { name, capacity });
        let (mode, other) =
            (if without.is_some() { Mode::Without } else { Mode::One }, without.as_ref().unwrap_or(&from));
        let starts = Task {
            name: "list offsets",
            files: vec![file::BLOCKS_LIST_OFFSETS, file::BLOCKS_LISTED, file::SCAN],
            tensors: vec![("one", &from, READ), ("other", other, READ), ("to", &offsets, WRITE)],
            problem: Some((problem, "u32")),
            count: self.rows(),
            // It goes through all rows.
            workgroups: Some(1),
            params: self.params(mode, capacity),
            chain: None,
        };
        let listed = Task {
            name: "list indices",
            files: vec![file::BLOCKS_LIST_INDICES, file::BLOCKS_LISTED],
            tensors: vec![
                ("one", &from, READ),
                ("other", other, READ),
                ("offsets", &offsets, READ),
                ("to", &indices, WRITE),
            ],
            problem: None,
            count: self.rows(),
            workgroups: None,
            params: self.params(mode, capacity),
            chain: None,
        };
        let steps = vec![starts.step(caps)?, listed.step(caps)?];
        program(builder, steps, "lists of a block mask")
    }

    /// Plans two bitmaps: `chosen`, of the blocks in which the caller's functions show any key, and `full`, of those in which they hide
    /// none.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a hook that cannot be a mask; [`crate::Error::Limit`].
    pub fn plan_from_hooks(&self, mask_mod: &[Hook], caps: &Caps, shapes: &Shapes) -> Result<Program> {
        self.check()?;
        let hooks = &hook::place(&[], mask_mod);
        hook::check(caps, hooks)?;
        let mut builder = Builder::new(caps, shapes)?;
        builder.hook_buffers(hooks)?;
        let (chosen, full) = (builder.output("chosen", self.bitmap())?, builder.output("full", self.bitmap())?);
        let words = self.shape().iter().product();
        let task = Task {
            name: "from masks",
            files: vec![file::BLOCKS_FROM_MASKS, file::TILES_POSITION],
            tensors: vec![("to", &chosen, WRITE), ("other", &full, WRITE)],
            problem: None,
            count: words,
            workgroups: Some(words),
            params: self.params(Mode::One, 0),
            chain: Some(Chain { hooks: hooks.to_vec(), ..Chain::default() }),
        };
        let steps = vec![task.step(caps)?];
        program(builder, steps, "a block mask from masks")
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::BLOCKS_SHARED,
            heads rows cols first count mode capacity queries keys query_block key_block
        );
    }
}
