//! Shaders are lists of plain WGSL files behind a prelude. This is the only place that knows the files; it writes the
//! constants, the bindings and one accessor for each tensor from the same typed list that makes the bind group layout.

mod accessor;
mod chain;
pub(crate) mod file;
#[cfg(test)]
pub(crate) mod layout;
mod unroll;

pub(crate) use chain::{Chain, Gradient};
pub(crate) use unroll::WrittenOut;

use crate::DType;
use crate::program::hook::{self, Placed};
use crate::program::{BindingAccess, HookLines};
use accessor::{accessor, neutral, neutral_row, row_accessor};
use std::fmt::Write;

/// One binding of group 0, at its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Binding {
    /// `var<uniform> NAME: TYPE`.
    Uniform { name: &'static str, ty: &'static str },
    /// `var<storage, ACCESS> NAME: array<TYPE>`, or `var<uniform> NAME: array<TYPE, LENGTH>`, which does not count among the
    /// storage buffers: a table that the host or another kernel wrote.
    Table { name: &'static str, ty: &'static str, length: Option<usize>, write: bool },
    /// Tensor data, reached through accessors.
    Data { name: String, words: Words, write: bool },
}

/// What tensor data is declared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// `array<vec4f>`: f32, four elements a load.
    F32x4,
    /// `array<vec2u>`: 16-bit, four elements a load.
    U32x2,
    /// `array<u32>`: anything, a word at a time.
    U32,
}

/// How a tensor is reached: `load_NAME4(i, n)`, `store_NAME4(i, n, x)` for n valid elements from index i on, or
/// `store_NAME(i, bits)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Access {
    pub name: &'static str,
    /// The binding that holds it.
    pub binding: usize,
    pub dtype: DType,
    /// Every row starts at a multiple of four elements and holds a multiple of four.
    pub wide: bool,
    pub kind: AccessKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Load4,
    /// `load_NAME(i)`: one element.
    Load1,
    /// `load_NAME(i)`: one word.
    LoadBits,
    Store4,
    StoreBits,
    /// Both [`AccessKind::Load4`] and [`AccessKind::Store4`]: read and written in place.
    Update4,
    /// Both [`AccessKind::LoadBits`] and [`AccessKind::StoreBits`].
    UpdateBits,
}

impl AccessKind {
    /// Whether its functions are those of another, among others.
    fn serves(self, other: Self) -> bool {
        self == other || self.both().is_some_and(|both| both.contains(&other))
    }

    /// What an update consists of.
    fn both(self) -> Option<[Self; 2]> {
        match self {
            Self::Update4 => Some([Self::Load4, Self::Store4]),
            Self::UpdateBits => Some([Self::LoadBits, Self::StoreBits]),
            _ => None,
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        self.both().is_some() || matches!(self, Self::Store4 | Self::StoreBits)
    }
}

/// A shader before assembly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shader {
    /// Kernel and variant, for errors.
    pub name: String,
    pub constants: Vec<(&'static str, u32)>,
    pub bindings: Vec<Binding>,
    pub accesses: Vec<Access>,
    pub chain: Option<Chain>,
    pub files: Vec<&'static str>,
    /// Tensors that may not be there: their functions are written all the same then, load 0 and store nothing.
    pub optional: Vec<(&'static str, AccessKind)>,
    /// Tables that may not be there, with their types: nothing reads them then.
    pub optional_tables: Vec<(&'static str, &'static str)>,
    /// Which loops over what a thread holds in registers are written out.
    pub written_out: WrittenOut,
}

/// Whose a part of the text is.
enum Part<'a> {
    Own,
    /// A caller's source, its names made its own.
    Source(&'a Placed),
    /// The call of a caller's function.
    Call(&'a Placed),
}

impl Binding {
    /// Whether it counts among the storage buffers.
    pub fn is_storage(&self) -> bool {
        !matches!(self, Binding::Uniform { .. } | Binding::Table { length: Some(_), .. })
    }

    /// How it is bound.
    pub fn access(&self) -> BindingAccess {
        match self {
            Binding::Uniform { .. } | Binding::Table { length: Some(_), .. } => BindingAccess::Uniform,
            Binding::Table { write: true, .. } | Binding::Data { write: true, .. } => BindingAccess::ReadWrite,
            _ => BindingAccess::Read,
        }
    }

    /// Address space and access, name, type.
    fn declaration(&self) -> (&'static str, &str, String) {
        let storage = |write: bool| if write { "storage, read_write" } else { "storage, read" };
        match self {
            Binding::Uniform { name, ty } => ("uniform", name, ty.to_string()),
            Binding::Table { name, ty, length: Some(length), .. } => {
                ("uniform", name, format!("array<{ty}, {length}>"))
            }
            Binding::Table { name, ty, length: None, write } => (storage(*write), name, format!("array<{ty}>")),
            Binding::Data { name, words, write } => (storage(*write), name, format!("array<{}>", words.wgsl())),
        }
    }
}

impl Words {
    fn wgsl(self) -> &'static str {
        match self {
            Words::F32x4 => "vec4f",
            Words::U32x2 => "vec2u",
            Words::U32 => "u32",
        }
    }
}

impl Shader {
    /// A text without bindings so far.
    pub fn of(
        name: impl Into<String>,
        constants: Vec<(&'static str, u32)>,
        files: Vec<&'static str>,
        chain: Option<Chain>,
    ) -> Self {
        Self {
            name: name.into(),
            constants,
            bindings: vec![],
            accesses: vec![],
            chain,
            files,
            optional: vec![],
            optional_tables: vec![],
            written_out: WrittenOut::None,
        }
    }

    /// Holds only code of this crate, whose every index is in bounds.
    pub fn is_trusted(&self) -> bool {
        self.hooks().is_empty()
    }

    /// The caller's functions in it.
    pub fn hooks(&self) -> &[Placed] {
        self.chain.as_ref().map_or(&[], |chain| &chain.hooks)
    }

    /// Storage buffers, those of hooks included.
    pub fn storage_buffers(&self) -> u64 {
        (self.bindings.iter().filter(|b| b.is_storage()).count() + hook::buffers(self.hooks()).len()) as u64
    }

    /// The whole text, and which of its lines are a caller's.
    pub fn assemble(&self) -> (String, Vec<HookLines>) {
        let (mut all, mut hooks, mut line) = (String::new(), vec![], 1);
        for (part, text) in self.parts() {
            let lines = line..line + text.lines().count() as u32;
            line = lines.end;
            all += &text;
            let (placed, is_source) = match part {
                Part::Source(placed) => (placed, true),
                Part::Call(placed) => (placed, false),
                Part::Own => continue,
            };
            hooks.push(HookLines { hook: placed.describe(), lines, is_source });
        }
        (all, hooks)
    }

    /// The text in parts.
    fn parts(&self) -> Vec<(Part<'_>, String)> {
        let mut parts = vec![(Part::Own, self.prelude())];
        let text = |file: &&'static str| self.written_out.text(file, &self.constants);
        parts.extend(self.files.iter().map(|file| (Part::Own, format!("\n{}", text(file)))));
        let hooks = self.hooks();
        if hooks.is_empty() {
            return parts;
        }
        let own: String = parts.iter().map(|(_, text)| &**text).collect();
        let own = hook::Text::new(&own);
        debug_assert!(own.is_ok(), "{own:?}");
        let taken = own.map_or(vec![], hook::Text::declared);
        for (i, placed) in hooks.iter().enumerate() {
            let first = hooks.iter().position(|other| other.shares_text(placed)).unwrap_or(i);
            let prefix = format!("hook{first}_");
            if first == i {
                parts.push((Part::Source(placed), format!("{}\n", placed.source(&prefix, &taken))));
            }
            parts.push((Part::Call(placed), placed.call(i, &prefix)));
        }
        parts
    }

    /// Where tensors lie: the first part of the uniform struct, and for each a function that finds a row.
    fn addresses(&self) -> String {
        let mut names: Vec<&str> = vec![];
        self.accesses.iter().for_each(|access| {
            if !names.contains(&access.name) {
                names.push(access.name)
            }
        });
        let fields = if names.is_empty() { "none: vec4u".into() } else { names.join(": vec4u, ") + ": vec4u" };
        let mut text = format!(
            "// (offset, batch stride, head stride, row stride) of each tensor.\nstruct Addresses {{ {fields} }}\n"
        );
        for name in names {
            text += &row_accessor(name);
        }
        text
    }

    /// Constants, bindings, accessors, and the chain of functions that change a score.
    fn prelude(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (i, binding) in self.bindings.iter().enumerate() {
            let (space, name, ty) = binding.declaration();
            let _ = writeln!(text, "@group(0) @binding({i}) var<{space}> {name}: {ty};");
        }
        for (i, (name, layout)) in hook::buffers(self.hooks()).into_iter().enumerate() {
            let (prefix, element) = (hook::BUFFER_PREFIX, hook::element(layout));
            let _ = writeln!(text, "@group(1) @binding({i}) var<storage, read> {prefix}{name}: array<{element}>;");
        }
        text += &self.addresses();
        for access in &self.accesses {
            text += &accessor(access, &self.bindings[access.binding]);
        }
        for (table, ty) in &self.optional_tables {
            let is_there =
                self.bindings.iter().any(|binding| matches!(binding, Binding::Table { name, .. } if name == table));
            let _ = writeln!(text, "const HAS_{}: bool = {is_there};", table.to_ascii_uppercase());
            if !is_there {
                let _ = writeln!(text, "var<private> {table}: array<{ty}, 1>;");
            }
        }
        for (i, &(name, kind)) in self.optional.iter().enumerate() {
            let own = || self.accesses.iter().filter(|access| access.name == name);
            if self.optional[..i].iter().all(|(other, _)| *other != name) {
                let is_there = own().next().is_some();
                let _ = writeln!(text, "const HAS_{}: bool = {is_there};", name.to_ascii_uppercase());
                if !is_there {
                    text += &neutral_row(name);
                }
            }
            if !own().any(|access| access.kind.serves(kind)) {
                text += neutral(name, kind).as_str();
            }
        }
        text + &self.chain.as_ref().map_or(String::new(), Chain::wgsl)
    }
}
