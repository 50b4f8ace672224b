//! The tensors of a kernel: which binding holds each, which part of its buffer, where a row lies in it.

use crate::shader::{Access, AccessKind, Binding, Words};
use crate::{Caps, Layout, Slice, Tensor};
use std::ops::Range;

/// A tensor as one kernel sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Argument {
    pub name: &'static str,
    pub layout: Layout,
    pub kind: AccessKind,
    /// Query heads to one head of this tensor.
    pub group: usize,
    /// Arguments with the same number lie in one buffer.
    pub buffer: usize,
}

impl Argument {
    pub fn writes(&self) -> bool {
        self.kind != AccessKind::Load4
    }

    /// The bytes of the buffer that a slice touches.
    fn bytes(&self, slice: &Slice) -> Range<u64> {
        let heads = slice.heads.start / self.group..slice.heads.end.div_ceil(self.group);
        let span = self.layout.part_span(&slice.batches, &heads).expect("checked when the tensor was described");
        let size = self.layout.dtype.bytes();
        span.start * size..span.end * size
    }
}

/// The bindings of a shader's tensors: one for each argument, or one for all arguments in a buffer that is written to and
/// holds others too (WebGPU allows no second binding of it).
pub(crate) fn bind(arguments: &[Argument], fixed: Vec<Binding>) -> (Vec<Binding>, Vec<Access>) {
    let mut bindings = fixed;
    let mut accesses: Vec<Access> = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        let together = together(arguments, i);
        let wide = argument.layout.is_wide() && argument.kind != AccessKind::StoreBits;
        let (name, dtype, kind) = (argument.name, argument.layout.dtype, argument.kind);
        let binding = if together[0] < i {
            accesses[together[0]].binding
        } else {
            let words = match (together.len() > 1, wide, dtype.bytes()) {
                (false, true, 4) => Words::F32x4,
                (false, true, _) => Words::U32x2,
                _ => Words::U32,
            };
            let write = together.iter().any(|&j| arguments[j].writes());
            bindings.push(Binding::Data { name: format!("{name}_data"), words, write });
            bindings.len() - 1
        };
        accesses.push(Access { name, binding, dtype, wide, kind });
    }
    (bindings, accesses)
}

/// The arguments that share argument `i`'s binding, in order: itself, or all of its buffer if one of them is written.
pub(crate) fn together(arguments: &[Argument], i: usize) -> Vec<usize> {
    let same: Vec<usize> = (0..arguments.len()).filter(|&j| arguments[j].buffer == arguments[i].buffer).collect();
    if same.iter().any(|&j| arguments[j].writes()) { same } else { vec![i] }
}

/// The part of a buffer that argument `i`'s binding covers in a slice: offset aligned as the device wants, in bytes.
pub(crate) fn bound_range(caps: &Caps, arguments: &[Argument], i: usize, slice: &Slice) -> Range<u64> {
    let used = together(arguments, i);
    let ranges = used.iter().map(|&j| arguments[j].bytes(slice)).filter(|r| !r.is_empty());
    let all = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
    let alignment = u64::from(caps.storage_alignment.max(16));
    all.start - all.start % alignment..all.end.next_multiple_of(4)
}

/// Where a slice finds an argument: (offset, batch stride, head stride, row stride) in elements from the start of its
/// binding, modulo 2^32 as the shader adds them up.
pub(crate) fn row_address(caps: &Caps, arguments: &[Argument], i: usize, slice: &Slice) -> [u32; 4] {
    let layout = &arguments[i].layout;
    let start = bound_range(caps, arguments, i, slice).start / layout.dtype.bytes();
    let offset = (layout.offset as u64).wrapping_sub(start) as u32;
    let [batch, head, row] = layout.strides.map(|s| s as u32);
    [offset, batch, head, row]
}

/// Gives arguments that lie in one buffer the same number.
pub(crate) fn number_buffers(tensors: &[&Tensor]) -> Vec<usize> {
    let first = |t: &&Tensor| tensors.iter().position(|u| u.buffer() == t.buffer()).expect("it is in the list");
    tensors.iter().map(first).collect()
}
