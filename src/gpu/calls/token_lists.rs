//! Lists of tokens on a device.

use crate::Tensor;
use crate::gpu::call::Call;
use crate::program::Name;
use std::borrow::Cow;

/// Lists of the key tokens that queries see.
#[derive(Clone, Copy, Debug)]
pub struct TokenLists<'a> {
    /// u32 [batch or 1, heads_q, heads_kv or 1, lists, capacity]: tokens of k in ascending order, each once; a list ends at its first `u32::MAX`, or
    /// at the capacity. Written on the GPU or on the host, and not read back: a token that is not below the number of keys, or not above all before it
    /// in its list, is left out, and reading a result is an error then.
    pub tokens: &'a Tensor,
    /// Queries to a list, a power of two: list l is that of the queries from l · block on; there are ⌈queries / block⌉.
    pub block: usize,
}

impl Call for TokenLists<'_> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        vec![("token_lists.tokens".into(), self.tokens)]
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        vec![("token_lists.block".into(), vec![self.block].into())]
    }
}
