//! Tables that kernels read: constants, and what another kernel has written.

use super::Contents;
use super::shader::Binding;

/// What a table of a kernel is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Table {
    Constant(Contents),
    /// A scratch buffer, which this kernel writes or another has written.
    Scratch(usize),
}

impl Table {
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::Constant(Contents::Bytes(bytes))
    }
}

/// Largest uniform table, by WebGPU's default limit.
const UNIFORM_ROWS: usize = (64 << 10) / 16;

/// The binding of a table of so many rows of 16 bytes: a uniform array where it fits one. Few lengths, so that few shaders differ by
/// it. Returns the rows that it has besides.
pub(super) fn binding(name: &'static str, ty: &'static str, rows: usize) -> (Binding, usize) {
    let length = Some(rows.next_power_of_two().max(16)).filter(|&rows| rows <= UNIFORM_ROWS);
    (Binding::Table { name, ty, length, write: false }, length.unwrap_or(rows))
}

/// A table of rows of 16 bytes.
pub(crate) fn table<T: bytemuck::Pod>(name: &'static str, ty: &'static str, rows: &[T]) -> (Binding, Table) {
    let (binding, length) = binding(name, ty, rows.len());
    let mut bytes = bytemuck::cast_slice(rows).to_vec();
    bytes.resize(16 * length, 0);
    (binding, Table::Constant(Contents::Bytes(bytes)))
}

/// A table of floats, four a row.
pub(crate) fn float_table(name: &'static str, values: &[f32]) -> (Binding, Table) {
    let four = |four: &[f32]| -> [f32; 4] { std::array::from_fn(|i| four.get(i).copied().unwrap_or(0.0)) };
    table(name, "vec4f", &values.chunks(4).map(four).collect::<Vec<_>>())
}

/// A few rows of whole numbers.
pub(crate) fn small_table(name: &'static str, rows: &[[u32; 4]]) -> (Binding, Table) {
    table(name, "vec4u", rows)
}
