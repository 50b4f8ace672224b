//! How a program comes about: tensors and scratch are declared, kernels added, their dispatches put into slices.

use super::argument::{Argument, Operand, addresses, bind, bound_range, together};
use super::shapes::check_size;
use super::table::{self, Table};
use super::{
    Binding, BindingAccess, Check, Contents, Dispatch, Guards, Kernel, Name, Part, Program, Rule, Scratch, Shapes,
    Slice, Source, TensorSpec,
};
use crate::error::require;
use crate::program::hook::{self, Placed};
use crate::program::shader::{self, Shader};
use crate::{Caps, Error, Layout, Result};
use std::ops::Range;

/// A kernel before it is added, with the parts of the work that it is dispatched for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub shader: Shader,
    pub arguments: Vec<Argument>,
    tables: Vec<Table>,
    pub parts: Vec<Part>,
    uniforms: Vec<Vec<u8>>,
}

impl Step {
    /// Gives a shader its uniform struct, its tables and its tensors. The struct begins with where each tensor lies; `params` makes the
    /// rest of it for a part of the work.
    pub fn new<P: bytemuck::Pod>(
        caps: &Caps,
        shader: Shader,
        arguments: Vec<Argument>,
        tables: Vec<(shader::Binding, Table)>,
        parts: Vec<Part>,
        params: impl Fn(&Part) -> P,
    ) -> Self {
        let uniform = |part: &Part| {
            let addresses = addresses(caps, &arguments, part);
            [bytemuck::cast_slice(&addresses), bytemuck::bytes_of(&params(part))].concat()
        };
        let uniforms = parts.iter().map(uniform).collect();
        let (fixed, tables): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        let uniform = shader::Binding::Uniform { name: "params", ty: "Params" };
        let (bindings, accesses) = bind(caps, &arguments, [vec![uniform], fixed].concat());
        Self { shader: Shader { bindings, accesses, ..shader }, arguments, tables, parts, uniforms }
    }

    /// The same, if a device binds so many storage buffers.
    ///
    /// # Errors
    /// [`crate::Error::Limit`].
    pub fn fit(self, caps: &Caps) -> Result<Self> {
        let (name, buffers) = (&self.shader.name, self.shader.storage_buffers());
        for table in &self.tables {
            if let Table::Constant(contents) = table {
                let what = format!("a table of {name}");
                caps.within(&what, "maxStorageBufferBindingSize", contents.len(), caps.binding_bytes)?;
            }
        }
        caps.within(name, "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;
        Ok(self)
    }
}

/// A program that is being planned.
#[derive(Clone)]
pub(crate) struct Builder<'a> {
    pub caps: &'a Caps,
    program: Program,
    shapes: Shapes,
    /// Tensors of the program's own.
    scratch: Vec<(Name, Operand)>,
}

impl<'a> Builder<'a> {
    /// With the caller's tensors.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a tensor that leaves 2^64 bytes, or with more batch entries or heads than any kernel takes.
    pub fn new(caps: &'a Caps, shapes: &Shapes) -> Result<Self> {
        shapes.check_sizes()?;
        let tensor = |(name, layout, buffer): &(Name, Layout, usize)| {
            let (name, layout) = (name.clone(), layout.clone());
            TensorSpec { name, layout, written: false, buffer: *buffer }
        };
        let program = Program {
            words: String::new(),
            tensors: shapes.tensors().iter().map(tensor).collect(),
            numbers: shapes.all_numbers().to_vec(),
            scratch: vec![],
            tables: vec![],
            kernels: vec![],
            dispatches: vec![],
            slices: vec![],
            checks: vec![],
        };
        Ok(Self { caps, program, shapes: shapes.clone(), scratch: vec![] })
    }

    /// A tensor of the caller's, if it is there.
    pub fn tensor(&self, name: &str) -> Option<Operand> {
        let i = self.program.tensors.iter().position(|tensor| tensor.name == name)?;
        let TensorSpec { layout, buffer, .. } = &self.program.tensors[i];
        Some(Operand { source: Source::Tensor(i), buffer: Source::Tensor(*buffer), layout: layout.clone() })
    }

    /// An input.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if it is not there.
    pub fn input(&self, name: &str) -> Result<Operand> {
        let missing = || Error::argument(name, "unset", "set");
        self.tensor(name).ok_or_else(missing)
    }

    /// An output, with this layout if it was not given another.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for one that no buffer could hold.
    pub fn output(&mut self, name: impl Into<Name>, layout: Layout) -> Result<Operand> {
        let name = name.into();
        if self.program.tensor(&name).is_none() {
            check_size(&name, &layout)?;
            let buffer = self.program.tensors.len();
            self.program.tensors.push(TensorSpec { name: name.clone(), layout, written: false, buffer });
        }
        Ok(self.tensor(&name).expect("it was put there"))
    }

    /// An output that may be left out, if it is there or wanted.
    pub fn output_if(&mut self, name: &'static str, layout: impl FnOnce() -> Layout) -> Result<Option<Operand>> {
        self.shapes.wants(name).then(|| self.output(name, layout())).transpose()
    }

    /// The buffers of hooks.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for one that is not as the hook declares it.
    pub fn hook_buffers(&mut self, hooks: &[Placed]) -> Result<()> {
        let alignment = self.caps.binding_alignment();
        for (name, declared) in hook::buffers(hooks) {
            let Operand { layout, .. } = self.output(hook::tensor_name(name), declared.clone())?;
            let start = layout.offset as u64 * layout.dtype.bytes();
            let fits =
                start.is_multiple_of(alignment) && Layout { offset: declared.offset, ..layout.clone() } == *declared;
            let bound = format!("as declared: {declared:?} (the offset may be any multiple of {alignment} bytes)");
            require(fits, &hook::tensor_name(name), format!("{layout:?}"), bound)?;
        }
        Ok(())
    }

    /// A tensor of the program's own.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if no buffer is so large.
    pub fn scratch(&mut self, name: impl Into<Name>, layout: Layout) -> Result<Operand> {
        let name = name.into();
        let bytes = layout.byte_span()?.end;
        self.caps.within(&name, "maxBufferSize", bytes, self.caps.buffer_bytes)?;
        let source = Source::Scratch(self.add_scratch(name.clone(), bytes));
        let operand = Operand { source, buffer: source, layout };
        self.scratch.push((name, operand.clone()));
        Ok(operand)
    }

    /// Gives a part of a tensor a name of its own.
    pub fn name(&mut self, name: impl Into<Name>, part: Operand) {
        self.scratch.push((name.into(), part));
    }

    /// A tensor of the caller's or of the program's own, if it is there.
    pub fn operand(&self, name: &str) -> Option<Operand> {
        let own = self.scratch.iter().find(|(other, _)| other == name).map(|(_, operand)| operand.clone());
        own.or_else(|| self.tensor(name))
    }

    /// A buffer of the program's own, which is bound as a whole.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if no binding is so large.
    pub fn scratch_bytes(&mut self, name: impl Into<Name>, bytes: u64) -> Result<usize> {
        let name = name.into();
        let most = self.caps.binding_bytes.min(self.caps.buffer_bytes);
        self.caps.within(&name, "maxStorageBufferBindingSize", bytes, most)?;
        Ok(self.add_scratch(name, bytes))
    }

    fn add_scratch(&mut self, name: Name, bytes: u64) -> usize {
        let bytes = padded(bytes);
        debug_assert!(self.program.scratch.iter().all(|other| other.name != name), "{name} twice");
        self.program.scratch.push(Scratch { name, bytes });
        self.program.scratch.len() - 1
    }

    /// A table of so many rows of whole numbers that a kernel writes into a buffer of the program's own, which is returned besides.
    pub fn scratch_table(
        &mut self,
        buffer: impl Into<Name>,
        name: &'static str,
        rows: usize,
    ) -> Result<((shader::Binding, Table), usize)> {
        let (binding, length) = table::binding(name, "vec4u", rows);
        let buffer = self.scratch_bytes(buffer, 16 * length as u64)?;
        Ok(((binding, Table::Scratch(buffer)), buffer))
    }

    /// Adds a kernel. Returns its dispatches.
    pub fn add(&mut self, step: &Step) -> Range<usize> {
        let first = self.program.dispatches.len();
        let Step { shader, arguments, tables, parts, uniforms } = step;
        let leads = |&i: &usize| together(self.caps, arguments, i)[0] == i;
        let leaders: Vec<usize> = (0..arguments.len()).filter(leads).collect();
        let (mut next_table, mut next_leader) = (tables.iter(), leaders.iter());
        let mut bindings = vec![];
        // The range of each binding, or the argument that it depends on.
        let mut ranges: Vec<Result<Range<u64>, usize>> = vec![];
        for (i, binding) in shader.bindings.iter().enumerate() {
            let mut tied = vec![];
            let (source, range) = match binding {
                shader::Binding::Uniform { .. } => {
                    (Source::Uniform, Ok(0..uniforms.first().map_or(0, |u| u.len() as u64)))
                }
                shader::Binding::Table { .. } => match next_table.next().expect("a table for each binding") {
                    Table::Constant(contents) => {
                        let table = self.table(contents);
                        (Source::Table(table), Ok(0..self.program.tables[table].len()))
                    }
                    Table::Scratch(n) => (Source::Scratch(*n), Ok(0..self.program.scratch[*n].bytes)),
                },
                shader::Binding::Data { .. } => {
                    let leader = *next_leader.next().expect("an argument for each binding");
                    let tensor = |&j: &usize| match arguments[j].operand.source {
                        Source::Tensor(tensor) => Some(tensor),
                        _ => None,
                    };
                    let all = together(self.caps, arguments, leader);
                    tied = if all.len() > 1 { all.iter().filter_map(tensor).collect() } else { vec![] };
                    (arguments[leader].operand.source, Err(leader))
                }
            };
            bindings.push(Binding { group: 0, binding: i as u32, access: binding.access(), source, together: tied });
            ranges.push(range);
        }
        for (i, (name, _)) in (0..).zip(hook::buffers(shader.hooks())) {
            let tensor = self.tensor(&hook::tensor_name(name)).expect("declared with the hooks");
            let (access, together) = (BindingAccess::Read, vec![]);
            bindings.push(Binding { group: 1, binding: i, access, source: tensor.source, together });
            let span = tensor.layout.byte_span().expect("checked with the hooks");
            ranges.push(Ok(if span.is_empty() { 0..0 } else { span.start..span.end.next_multiple_of(4) }));
        }
        for argument in arguments.iter().filter(|argument| argument.writes()) {
            if let Source::Tensor(i) = argument.operand.source {
                self.program.tensors[i].written = true;
            }
        }
        for (part, uniform) in parts.iter().zip(uniforms) {
            let range = |range: &Result<Range<u64>, usize>| match range {
                Ok(range) => range.clone(),
                Err(leader) => bound_range(self.caps, arguments, *leader, part),
            };
            self.program.dispatches.push(Dispatch {
                kernel: self.program.kernels.len(),
                workgroups: part.workgroups(),
                uniform: uniform.clone(),
                ranges: ranges.iter().map(range).collect(),
            });
        }
        let (wgsl, hooks) = shader.assemble();
        let guards = match (hooks.is_empty(), shader.hooks().iter().any(Placed::may_loop)) {
            (true, _) => Guards::None,
            (false, false) => Guards::Bounds,
            (false, true) => Guards::All,
        };
        self.program.kernels.push(Kernel { name: shader.name.clone(), wgsl, bindings, guards, hooks });
        first..self.program.dispatches.len()
    }

    fn table(&mut self, contents: &Contents) -> usize {
        let padded = match contents {
            Contents::Bytes(bytes) => {
                let mut bytes = bytes.clone();
                bytes.resize(padded(bytes.len() as u64) as usize, 0);
                Contents::Bytes(bytes)
            }
            other => other.clone(),
        };
        let tables = &mut self.program.tables;
        tables.iter().position(|other| *other == padded).unwrap_or_else(|| {
            tables.push(padded);
            tables.len() - 1
        })
    }

    /// Dispatches to be submitted as one, after those that they need.
    pub fn slice(&mut self, first: Vec<usize>, work: Range<usize>) {
        self.program.slices.push(Slice { first, work });
    }

    /// Adds a kernel, each dispatch of which is submitted by itself.
    pub fn add_sliced(&mut self, step: &Step) {
        for i in self.add(step) {
            self.slice(vec![], i..i + 1);
        }
    }

    /// Puts the dispatches from one on into slices, each with those that it needs and its own, in this order.
    pub fn regroup(&mut self, from: usize, groups: Vec<(Vec<usize>, Vec<usize>)>) {
        let all = self.program.dispatches.split_off(from);
        for (first, work) in groups {
            let start = self.program.dispatches.len();
            self.program.dispatches.extend(work.iter().map(|i| all[i - from].clone()));
            self.slice(first, start..self.program.dispatches.len());
        }
    }

    pub fn check(&mut self, scratch: usize, rule: Rule) {
        self.program.checks.push(Check { scratch, rule });
    }

    /// How many slices there are so far.
    pub fn slices(&self) -> usize {
        self.program.slices.len()
    }

    /// The program, with what it does in words.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a hook's buffer that a kernel would read where it writes another tensor.
    pub fn finish(self, words: impl Into<String>) -> Result<Program> {
        let program = Program { words: words.into(), ..self.program };
        for kernel in &program.kernels {
            let tensor = |binding: &Binding| match binding.source {
                Source::Tensor(i) => Some(&program.tensors[i]),
                _ => None,
            };
            let writes = |binding: &&Binding| binding.access == BindingAccess::ReadWrite;
            let (written, read): (Vec<_>, Vec<_>) = kernel.bindings.iter().partition(writes);
            for read in read.into_iter().filter_map(tensor) {
                let shared =
                    written.iter().filter_map(|binding| tensor(binding)).find(|other| other.buffer == read.buffer);
                if let Some(other) = shared {
                    let bound = format!("in another buffer: {} is written there", other.name);
                    return Err(Error::argument(&read.name, format!("in the buffer of {}", other.name), bound));
                }
            }
        }
        Ok(program)
    }
}

/// No binding is empty, and copies go by words.
fn padded(bytes: u64) -> u64 {
    bytes.max(16).next_multiple_of(16)
}
