//! A call as plain data: which kernels run, on which tensors, in which order. Families plan programs without a GPU; one executor
//! runs them.

mod angles;
mod argument;
mod builder;
mod check;
mod cut;
pub(crate) mod hook;
mod part;
pub(crate) mod shader;
mod shapes;
mod table;

#[cfg(feature = "wgpu")]
pub(crate) use argument::overlap;
pub(crate) use argument::{Argument, EACH, Heads, Operand, SHARED, is_written};
pub(crate) use builder::{Builder, Step};
pub(crate) use check::OffsetRule;
pub use check::{Check, Rule};
pub(crate) use cut::{cut, within_parts};
pub(crate) use part::Part;
pub use shapes::Shapes;
pub(crate) use table::{Table, float_table, small_table, table};

use crate::Layout;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// The name of a tensor: that of its field in the inputs or outputs.
pub type Name = Cow<'static, str>;

/// All that a call does. Print it to read it in words.
///
/// With the feature `serde` it becomes JSON, which any program that speaks WebGPU can run:
///
/// - `tensors`: what the caller brings: `name`, `layout` (`dtype`, `shape`, `strides` and `offset` in elements), whether it is
///   `written`, and `buffer`, the number of the first tensor that lies in the same buffer;
/// - `scratch`, `tables`: buffers to allocate; `bytes` is their size, or an array of their contents. A kernel may bind them as uniform
///   buffers, another as storage;
/// - `kernels`: `wgsl`, entry point `main`, and `bindings`: `group`, `binding`, `access` (`"uniform"`, `"read"`, `"read_write"`) and
///   `source`: `"uniform"`, `{"table": i}`, `{"scratch": i}` or `{"tensor": i}`. The text reads no memory out of bounds if it is compiled
///   with bounds checks, as in every browser; `guards` tells which checks it needs;
/// - `dispatches`: the number of a `kernel`, `workgroups`, the bytes of its `uniform` buffer, and the `ranges` of its bindings in bytes of
///   their buffers, in the order of the kernel's bindings; for an empty range, bind any 16 bytes of a buffer that is not used otherwise;
/// - `slices`: `work`, a range of dispatches to be recorded one after another, after those of `first`, which run once before all work
///   that is recorded together; all slices in order are the whole call;
/// - `checks`: a scratch buffer to look at once the work is done, and the `rule` that its words follow.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Program {
    /// What runs and why.
    pub words: String,
    /// The caller's tensors.
    pub tensors: Vec<TensorSpec>,
    /// What else it was planned for: lengths and offsets on the host, sizes of blocks.
    pub numbers: Vec<(Name, Vec<usize>)>,
    /// Buffers that kernels write for one another. Calls on one set of them do not interleave.
    pub scratch: Vec<Scratch>,
    /// Constants.
    pub tables: Vec<Contents>,
    /// The shaders.
    pub kernels: Vec<Kernel>,
    /// Their dispatches.
    pub dispatches: Vec<Dispatch>,
    /// Parts of the work, none of which takes long, one after another.
    pub slices: Vec<Slice>,
    /// What to look at once the work is done.
    pub checks: Vec<Check>,
}

/// A tensor that the caller brings.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TensorSpec {
    /// Its name.
    pub name: Name,
    /// Where its elements lie. The offset may differ by multiples of the alignment of storage bindings.
    pub layout: Layout,
    /// Whether it is written.
    pub written: bool,
    /// The first tensor that lies in the same buffer: itself, if it has one of its own.
    pub buffer: usize,
}

/// A buffer of the program's own.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Scratch {
    /// Its name.
    pub name: Name,
    /// Its size.
    pub bytes: u64,
}

/// What a table holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Cosines and sines of rotary angles: see [`Contents::bytes`].
    RotaryAngles {
        /// Base of the frequencies.
        theta: f32,
        /// How many elements rotate.
        dim: usize,
    },
}

#[cfg(feature = "serde")]
impl serde::Serialize for Contents {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut table = serializer.serialize_struct("Contents", 1)?;
        table.serialize_field("bytes", &*self.bytes())?;
        table.end()
    }
}

impl Contents {
    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::RotaryAngles { dim, .. } => angles::ROWS * 8 * (dim / 2) as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes. For rotary angles: (cos, sin) of each part of a position (10, 10 and 12 bits) for every pair, made in float64.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match *self {
            Self::Bytes(ref bytes) => Cow::Borrowed(bytes),
            Self::RotaryAngles { theta, dim } => Cow::Owned(bytemuck::cast_slice(&angles::table(theta, dim)).to_vec()),
        }
    }
}

/// A shader and what it binds. Its entry point is `main`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Kernel {
    /// Family and variant, for errors.
    pub name: String,
    /// The whole text.
    pub wgsl: String,
    /// What it binds.
    pub bindings: Vec<Binding>,
    /// The compiler's checks that it needs.
    pub guards: Guards,
    /// The lines of the text that come from the caller.
    pub hooks: Vec<HookLines>,
}

/// The compiler's checks that a shader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Guards {
    /// None: all of the text is this crate's, every index is in bounds and every loop ends.
    None,
    /// Bounds checks: some of the text is the caller's, but it has no loop.
    Bounds,
    /// Bounds checks and loop guards.
    All,
}

/// Lines of a kernel's text that come from a function of the caller.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HookLines {
    /// The hook's place, and what it should define.
    pub hook: String,
    /// From the first line (counted from 1) to the one after the last.
    pub lines: Range<u32>,
    /// Whether they are the caller's own text, rather than a call of the caller's function.
    pub is_source: bool,
}

/// One binding of a kernel.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Binding {
    /// Its group.
    pub group: u32,
    /// Its number in the group.
    pub binding: u32,
    /// How it is bound.
    pub access: BindingAccess,
    /// What is bound.
    pub source: Source,
    /// All tensors that lie in the bound range, if there are several: they keep their distances.
    pub together: Vec<usize>,
}

/// How a buffer is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum BindingAccess {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// What a binding is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Source {
    /// The uniform struct of a dispatch.
    Uniform,
    /// One of [`Program::tables`].
    Table(usize),
    /// One of [`Program::tensors`].
    Tensor(usize),
    /// One of [`Program::scratch`].
    Scratch(usize),
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Dispatch {
    /// One of [`Program::kernels`].
    pub kernel: usize,
    /// Workgroups along x, y and z.
    pub workgroups: [u32; 3],
    /// The contents of its uniform struct.
    pub uniform: Vec<u8>,
    /// The bytes that each binding covers. An empty range is a tensor without elements: any buffer may be bound in its place.
    pub ranges: Vec<Range<u64>>,
}

/// A part of the work that is submitted as one. Its dispatches stay together.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Slice {
    /// Dispatches that run first, anew in each command buffer, because other work may use the same scratch in between.
    pub first: Vec<usize>,
    /// Its own dispatches.
    pub work: Range<usize>,
}

impl Program {
    /// The whole WGSL text of each kernel, in the order in which they run, with its name.
    pub fn wgsl(&self) -> Vec<(&str, &str)> {
        self.kernels.iter().map(|kernel| (&*kernel.name, &*kernel.wgsl)).collect()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}
