//! Lengths and offsets of sequences, on the host or on the GPU.

use crate::Tensor;
use crate::program::Name;
use std::borrow::Cow;

/// Lengths of padded sequences (`seqlens`), one per batch entry; or offsets of packed sequences (`cu_seqlens`): sequence i has the rows
/// `[offsets[i], offsets[i + 1])`. The first offset is 0, the offsets ascend (an empty sequence has two equal ones), and the last is at
/// most the number of rows. Rows after the last offset belong to no sequence and are left alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Seqlens<'a> {
    /// On the host: checked, and part of what a kernel is prepared for.
    Host(&'a [usize]),
    /// On the GPU: u32 [1, 1, 1, batch] (lengths) or [1, 1, 1, sequences + 1] (offsets), as [`Tensor::upload_u32`] makes them. Work that
    /// was submitted earlier may write the values. They are clamped to the tensors, and if a kernel finds them wrong, reading its output is
    /// an error. Either both sides are on the GPU or neither.
    Gpu(&'a Tensor),
}

impl<'a> From<&'a [usize]> for Seqlens<'a> {
    fn from(numbers: &'a [usize]) -> Self {
        Self::Host(numbers)
    }
}

impl<'a, const N: usize> From<&'a [usize; N]> for Seqlens<'a> {
    fn from(numbers: &'a [usize; N]) -> Self {
        Self::Host(numbers)
    }
}

impl<'a> From<&'a Vec<usize>> for Seqlens<'a> {
    fn from(numbers: &'a Vec<usize>) -> Self {
        Self::Host(numbers)
    }
}

impl<'a> From<&'a Tensor> for Seqlens<'a> {
    fn from(numbers: &'a Tensor) -> Self {
        Self::Gpu(numbers)
    }
}

/// What a call says of its sequences, by name: lengths and offsets, and the longest that the latter have.
pub(crate) struct Sequences<'a, const N: usize, const M: usize> {
    pub seqlens: [(&'static str, Option<Seqlens<'a>>); N],
    pub longest: [(&'static str, Option<usize>); M],
}

impl<'a> Sequences<'a, 4, 2> {
    /// Lengths of queries and keys, offsets of both, the longest of both.
    pub fn of_sides([lq, lk, q, k]: [Option<Seqlens<'a>>; 4], [most_q, most_k]: [Option<usize>; 2]) -> Self {
        let seqlens = [("seqlens_q", lq), ("seqlens_k", lk), ("cu_seqlens_q", q), ("cu_seqlens_k", k)];
        Self { seqlens, longest: [("max_seqlen_q", most_q), ("max_seqlen_k", most_k)] }
    }
}

impl<'a> Sequences<'a, 2, 1> {
    /// Of tokens, which are queries and keys.
    pub fn of_tokens([lengths, offsets]: [Option<Seqlens<'a>>; 2], longest: Option<usize>) -> Self {
        Self { seqlens: [("seqlens", lengths), ("cu_seqlens", offsets)], longest: [("max_seqlen", longest)] }
    }
}

impl<'a, const N: usize, const M: usize> Sequences<'a, N, M> {
    pub fn tensors(&self) -> impl Iterator<Item = (Name, &'a Tensor)> {
        self.seqlens.into_iter().filter_map(|(name, seqlens)| match seqlens? {
            Seqlens::Host(_) => None,
            Seqlens::Gpu(tensor) => Some((name.into(), tensor)),
        })
    }

    pub fn numbers(&self) -> impl Iterator<Item = (Name, Cow<'a, [usize]>)> {
        let host = self.seqlens.into_iter().filter_map(|(name, seqlens)| match seqlens? {
            Seqlens::Host(numbers) => Some((name.into(), numbers.into())),
            Seqlens::Gpu(_) => None,
        });
        host.chain(self.longest.into_iter().filter_map(|(name, longest)| Some((name.into(), vec![longest?].into()))))
    }
}
