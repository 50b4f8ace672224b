//! Tensors that share buffers: what must hold between them.

use crate::program::{Binding, BindingAccess, Kernel, Program, Source, TensorSpec, overlap};
use crate::{Caps, Error, Result, Tensor};
use std::ops::Range;

/// What must hold between two tensors, at least one of which lies in a buffer that is written; the first is written if one is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relation {
    tensors: [usize; 2],
    /// Whether they lie in one buffer.
    shares: bool,
    /// Whether a kernel binds them as one: they keep their distance.
    tied: bool,
    /// Whether a kernel that writes one of them binds them one by one: bindings of one buffer do not overlap.
    parted: bool,
}

impl Relation {
    /// What must hold between the tensors of a program.
    pub fn all(program: &Program) -> Vec<Self> {
        let tensors = &program.tensors;
        let is_written = |i: usize| tensors.iter().any(|other| other.buffer == tensors[i].buffer && other.written);
        let bindings = || program.kernels.iter().flat_map(|kernel| &kernel.bindings);
        let pairs = (0..tensors.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let relation = |(i, j): (usize, usize)| {
            // The output first, where one of them is.
            let pair = if tensors[i].written { [i, j] } else { [j, i] };
            let tied = bindings().any(|binding| pair.iter().all(|i| binding.together.contains(i)));
            let of = |kernel: &Kernel, i: usize| {
                let holds = |binding: &&Binding| binding.source == Source::Tensor(i) || binding.together.contains(&i);
                kernel.bindings.iter().find(holds).map(|binding| (binding.binding, binding.access))
            };
            let parted = program.kernels.iter().any(|kernel| match pair.map(|i| of(kernel, i)) {
                [Some((one, access)), Some((other, its))] => {
                    one != other && [access, its].contains(&BindingAccess::ReadWrite)
                }
                _ => false,
            });
            Self { tensors: pair, shares: tensors[i].buffer == tensors[j].buffer, tied, parted }
        };
        pairs.filter(|&(i, j)| is_written(i) || is_written(j)).map(relation).collect()
    }

    /// Outputs lie apart from everything else, bindings of a buffer that is written do not overlap, and tensors share buffers as
    /// they were prepared for.
    pub fn check(&self, caps: &Caps, specs: &[TensorSpec], tensors: &[&Tensor], shifts: &[u64]) -> Result<()> {
        let &Self { tensors: [i, j], shares, tied, parted } = self;
        let [a, b] = [i, j].map(|i| tensors[i]);
        let found = a.buffer() == b.buffer();
        if !shares && !found {
            return Ok(());
        }
        let [one, other] = [i, j].map(|i| &specs[i]);
        let [of_one, of_other] = [a.layout().byte_span()?, b.layout().byte_span()?];
        let bytes = format!("bytes {of_one:?}");
        if found && one.written && overlap(&of_one, &of_other) {
            let bound = format!("apart from {}, which has bytes {of_other:?} of the same buffer", other.name);
            return Err(Error::argument(&one.name, bytes, bound));
        }
        if found != shares && (tied || parted) {
            let found = if found { "in one buffer" } else { "in buffers of their own" };
            let bound = "as prepared; make the shapes with `of` from tensors that share buffers in the same way";
            return Err(Error::argument(format!("{} and {}", one.name, other.name), found, bound));
        }
        if tied && shifts[i] != shifts[j] {
            let bound = format!("as far from {}'s as when prepared: both share a binding", other.name);
            return Err(Error::argument(format!("{}.offset", one.name), a.layout().offset, bound));
        }
        let start = |range: &Range<u64>| range.start - range.start % caps.binding_alignment();
        let whole = |range: &Range<u64>| start(range)..range.end.next_multiple_of(4);
        if found && parted && overlap(&whole(&of_one), &whole(&of_other)) {
            let alignment = caps.binding_alignment();
            let bound = format!("{alignment} bytes or more from {}, as prepared: bindings are aligned", other.name);
            return Err(Error::argument(&one.name, bytes, bound));
        }
        Ok(())
    }
}
