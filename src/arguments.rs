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
    /// Heads of work to one head of this tensor.
    pub group: usize,
    /// Heads of this tensor to one head of work.
    pub spread: usize,
    /// Arguments with the same number lie in one buffer.
    pub buffer: usize,
    /// Every slice binds all batch entries: the work is not divided by them.
    pub whole: bool,
}

impl Argument {
    pub fn writes(&self) -> bool {
        matches!(self.kind, AccessKind::Store4 | AccessKind::StoreBits | AccessKind::Update4)
    }

    /// The bytes of the buffer that a slice, or all of the work, touches.
    fn span(&self, slice: Option<&Slice>) -> Range<u64> {
        let [batches, heads, ..] = self.layout.shape;
        let (batches, heads) = slice.map_or((0..batches, 0..heads), |s| {
            let batches = if self.whole { 0..batches } else { s.batches.clone() };
            let heads = s.heads.start * self.spread..s.heads.end * self.spread;
            (batches, heads.start / self.group..heads.end.div_ceil(self.group))
        });
        // What there is one of holds for all.
        let one = |range: Range<usize>, count: usize| if count == 1 { 0..1 } else { range };
        let [batches, heads] = [one(batches, self.layout.shape[0]), one(heads, self.layout.shape[1])];
        let span = self.layout.part_span(&batches, &heads).expect("checked when the tensor was described");
        let size = self.layout.dtype.bytes();
        span.start * size..span.end * size
    }
}

/// The bindings of a shader's tensors: one for each argument, or for all arguments that lie [`together`].
pub(crate) fn bind(caps: &Caps, arguments: &[Argument], fixed: Vec<Binding>) -> (Vec<Binding>, Vec<Access>) {
    let mut bindings = fixed;
    let mut accesses: Vec<Access> = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        let together = together(caps, arguments, i);
        let by_four = matches!(argument.kind, AccessKind::Load4 | AccessKind::Store4 | AccessKind::Update4);
        let wide = by_four && argument.layout.is_wide();
        let (name, dtype, kind) = (argument.name, argument.layout.dtype, argument.kind);
        let binding = if together[0] < i {
            accesses[together[0]].binding
        } else {
            let words = match (together.len() > 1, wide, dtype.bytes()) {
                (false, true, 4) => Words::F32x4,
                (false, true, _) => Words::U32x2,
                _ => Words::U32,
            };
            let write = is_written(arguments, argument.buffer);
            bindings.push(Binding::Data { name: format!("{name}_data"), words, write });
            bindings.len() - 1
        };
        accesses.push(Access { name, binding, dtype, wide, kind });
    }
    (bindings, accesses)
}

/// Whether a buffer holds an output: then it is bound for writing wherever it is bound.
pub(crate) fn is_written(arguments: &[Argument], buffer: usize) -> bool {
    arguments.iter().any(|a| a.buffer == buffer && a.writes())
}

/// The arguments that share argument `i`'s binding, in order. WebGPU allows several bindings of a buffer that is written
/// only where they do not overlap; offsets of bindings are aligned, so tensors apart may have to be bound as one.
pub(crate) fn together(caps: &Caps, arguments: &[Argument], i: usize) -> Vec<usize> {
    let mut found = vec![i];
    if is_written(arguments, arguments[i].buffer) {
        let ranges: Vec<_> = arguments.iter().map(|a| aligned(caps, a.span(None))).collect();
        let mut next = 0;
        while let Some(&member) = found.get(next) {
            let near = |j: &usize| {
                arguments[*j].buffer == arguments[i].buffer
                    && overlap(&ranges[*j], &ranges[member])
                    && !found.contains(j)
            };
            let more: Vec<usize> = (0..arguments.len()).filter(near).collect();
            found.extend(more);
            next += 1;
        }
        return (0..arguments.len()).filter(|j| found.contains(j)).collect();
    }
    found
}

/// Whether two ranges have something in common.
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The range that a binding of these bytes covers.
pub(crate) fn aligned(caps: &Caps, bytes: Range<u64>) -> Range<u64> {
    bytes.start - bytes.start % caps.binding_alignment()..bytes.end.next_multiple_of(4)
}

/// The part of a buffer that argument `i`'s binding covers in a slice, in bytes.
pub(crate) fn bound_range(caps: &Caps, arguments: &[Argument], i: usize, slice: &Slice) -> Range<u64> {
    let used = together(caps, arguments, i);
    let ranges = used.iter().map(|&j| arguments[j].span(Some(slice))).filter(|r| !r.is_empty());
    let all = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
    aligned(caps, all)
}

/// Where a slice finds an argument: (offset, batch stride, head stride, row stride) in elements from the start of its
/// binding, modulo 2^32 as the shader adds them up.
pub(crate) fn row_address(caps: &Caps, arguments: &[Argument], i: usize, slice: &Slice) -> [u32; 4] {
    let layout = &arguments[i].layout;
    let start = bound_range(caps, arguments, i, slice).start / layout.dtype.bytes();
    let offset = (layout.offset as u64).wrapping_sub(start) as u32;
    // Packed sequences are numbered, and lie in one batch entry.
    let [batch, head, row] = [0, 1, 2].map(|i| if layout.shape[i] > 1 { layout.strides[i] as u32 } else { 0 });
    [offset, batch, head, row]
}

/// The same by name: zeros for an argument that is not there.
pub(crate) fn address_of(caps: &Caps, arguments: &[Argument], name: &str, slice: &Slice) -> [u32; 4] {
    let place = arguments.iter().position(|argument| argument.name == name);
    place.map_or([0; 4], |i| row_address(caps, arguments, i, slice))
}

/// Gives tensors that lie in one buffer the same number.
pub(crate) fn number_buffers<const N: usize>(tensors: [Option<&Tensor>; N]) -> [usize; N] {
    let same = |i: usize, j: usize| tensors[i].zip(tensors[j]).is_some_and(|(a, b)| a.buffer() == b.buffer());
    std::array::from_fn(|i| (0..i).find(|&j| same(i, j)).unwrap_or(i))
}
