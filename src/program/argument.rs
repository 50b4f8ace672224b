//! The tensors of a kernel: which binding holds each, which part of its buffer, where a row lies in it.

use super::{Part, Source};
use crate::program::shader::{Access, AccessKind, Binding, Words};
use crate::{Caps, Layout};
use std::ops::Range;

/// A tensor of the caller's, or one of the program's own, as it lies in its buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Operand {
    pub source: Source,
    /// The first that lies in the same buffer.
    pub buffer: Source,
    pub layout: Layout,
}

impl Operand {
    /// The same elements seen otherwise.
    pub fn view(&self, layout: Layout) -> Self {
        Self { layout, ..*self }
    }

    pub fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }
}

/// Heads of work to one head of a tensor, heads of the tensor to one of work, and whether a workgroup reads all batch entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Heads {
    pub group: usize,
    pub spread: usize,
    pub whole: bool,
}

/// As many heads as there are of work.
pub(crate) const EACH: Heads = Heads { group: 1, spread: 1, whole: false };

/// What there is one of for all heads and batch entries.
pub(crate) const SHARED: Heads = Heads { group: 1, spread: 1, whole: true };

/// A tensor as one kernel sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Argument {
    /// In the shader.
    pub name: &'static str,
    pub operand: Operand,
    pub kind: AccessKind,
    pub heads: Heads,
}

impl Argument {
    pub fn new(name: &'static str, operand: &Operand, kind: AccessKind, heads: Heads) -> Self {
        Self { name, operand: operand.clone(), kind, heads }
    }

    pub fn layout(&self) -> &Layout {
        &self.operand.layout
    }

    pub fn writes(&self) -> bool {
        self.kind.writes()
    }

    /// The bytes of the buffer that a part, or all of the work, touches.
    fn span(&self, part: Option<&Part>) -> Range<u64> {
        let (layout, Heads { group, spread, whole }) = (self.layout(), self.heads);
        let [batches, heads, ..] = layout.shape;
        let (batches, heads) = part.map_or((0..batches, 0..heads), |part| {
            let batches = if whole { 0..batches } else { part.batches.clone() };
            let heads = part.heads.start * spread..part.heads.end * spread;
            (batches, heads.start / group..heads.end.div_ceil(group))
        });
        // What there is one of holds for all.
        let one = |range: Range<usize>, count: usize| if count == 1 { 0..1 } else { range };
        let [batches, heads] = [one(batches, layout.shape[0]), one(heads, layout.shape[1])];
        let span = layout.part_span(&batches, &heads).expect("checked when the tensor was described");
        let size = layout.dtype.bytes();
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
        let wide = by_four && argument.layout().is_wide();
        let (name, dtype, kind) = (argument.name, argument.layout().dtype, argument.kind);
        let binding = if together[0] < i {
            accesses[together[0]].binding
        } else {
            let words = match (together.len() > 1, wide, dtype.bytes()) {
                (false, true, 4) => Words::F32x4,
                (false, true, _) => Words::U32x2,
                _ => Words::U32,
            };
            let write = is_written(arguments, argument.operand.buffer);
            bindings.push(Binding::Data { name: format!("{name}_data"), words, write });
            bindings.len() - 1
        };
        accesses.push(Access { name, binding, dtype, wide, kind });
    }
    (bindings, accesses)
}

/// Whether a buffer holds an output: then it is bound for writing wherever it is bound.
pub(crate) fn is_written(arguments: &[Argument], buffer: Source) -> bool {
    arguments.iter().any(|a| a.operand.buffer == buffer && a.writes())
}

/// The arguments that share argument `i`'s binding, in order. WebGPU allows several bindings of a buffer that is written
/// only where they do not overlap; offsets of bindings are aligned, so tensors apart may have to be bound as one.
pub(crate) fn together(caps: &Caps, arguments: &[Argument], i: usize) -> Vec<usize> {
    let mut found = vec![i];
    let buffer = arguments[i].operand.buffer;
    if is_written(arguments, buffer) {
        let ranges: Vec<_> = arguments.iter().map(|a| aligned(caps, a.span(None))).collect();
        let mut next = 0;
        while let Some(&member) = found.get(next) {
            let near = |j: &usize| {
                arguments[*j].operand.buffer == buffer && overlap(&ranges[*j], &ranges[member]) && !found.contains(j)
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

/// The bytes of a buffer that argument `i`'s binding covers for a part of the work.
pub(crate) fn bound_range(caps: &Caps, arguments: &[Argument], i: usize, part: &Part) -> Range<u64> {
    let used = together(caps, arguments, i);
    let ranges = used.iter().map(|&j| arguments[j].span(Some(part))).filter(|r| !r.is_empty());
    let all = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
    aligned(caps, all)
}

/// Where a part of the work finds each tensor, in the order of `Addresses` in the shader: (offset, batch stride, head stride, row
/// stride) in elements from the start of its binding, modulo 2^32 as the shader adds them up.
pub(crate) fn addresses(caps: &Caps, arguments: &[Argument], part: &Part) -> Vec<[u32; 4]> {
    let address = |i: usize| {
        let layout = arguments[i].layout();
        let start = bound_range(caps, arguments, i, part).start / layout.dtype.bytes();
        let offset = (layout.offset as u64).wrapping_sub(start) as u32;
        // Packed sequences are numbered, and lie in one batch entry.
        let [batch, head, row] = [0, 1, 2].map(|i| if layout.shape[i] > 1 { layout.strides[i] as u32 } else { 0 });
        [offset, batch, head, row]
    };
    let first = |&i: &usize| arguments[..i].iter().all(|other| other.name != arguments[i].name);
    let all: Vec<_> = (0..arguments.len()).filter(first).map(address).collect();
    if all.is_empty() { vec![[0; 4]] } else { all }
}
