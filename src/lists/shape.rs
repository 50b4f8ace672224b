//! What planning looks at of lists of tokens.

use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::program::{Builder, Operand};
use crate::{DType, Result, Shapes};

/// Lists of tokens, as they are given or as attention reads them.
#[derive(Clone, Debug)]
pub(crate) struct TokenListShape {
    /// Queries to a list.
    pub block: usize,
    /// u32 [batch or 1, heads, key heads or 1, lists, capacity].
    pub tokens: Operand,
    /// Tokens of a list at most.
    pub capacity: usize,
}

impl TokenListShape {
    pub fn new(builder: &Builder, shapes: &Shapes) -> Result<Option<Self>> {
        let (tokens, block) = (builder.tensor("token_lists.tokens"), shapes.get_numbers("token_lists.block"));
        let Some(tokens) = tokens else {
            return require(block.is_none(), "token_lists.block", "set", "unset without token_lists.tokens")
                .map(|()| None);
        };
        match block {
            Some(&[block]) => Ok(Some(Self { block, capacity: tokens.shape()[3], tokens })),
            other => {
                let found = other.map_or("unset".into(), |numbers| format!("{numbers:?}"));
                Err(crate::Error::argument("token_lists.block", found, "one number: the queries that share a list"))
            }
        }
    }

    /// Query heads to a head of the lists.
    pub fn group(&self, heads: usize) -> usize {
        (heads / self.tokens.shape()[1].max(1)).max(1)
    }

    /// Whether they fit [batch, heads, queries, keys] and so many key heads.
    pub fn check(&self, [batch, heads, queries, _]: [usize; 4], heads_kv: usize) -> Result<()> {
        let Self { block, tokens, .. } = self;
        let bound = format!("a power of two, at most {MAX_SEQUENCE}: each tile of queries has one list");
        require(block.is_power_of_two() && *block <= MAX_SEQUENCE, "token_lists.block", block, bound)?;
        let lists = queries.div_ceil(*block);
        let found @ [of_batch, of_heads, rows, _] = tokens.shape();
        let fits = [1, batch].contains(&of_batch) && [1, heads_kv, heads].contains(&of_heads) && rows == lists;
        let bound = format!(
            "[{batch} or 1, {heads}, {heads_kv} or 1, {lists}, any number], to match q and k in blocks of {block}"
        );
        require(fits, "token_lists.tokens.shape", format!("{found:?}"), bound)?;
        require(tokens.layout.dtype == DType::U32, "token_lists.tokens.dtype", tokens.layout.dtype, "u32")?;
        let numbers = rows.saturating_mul(found[3]);
        let bound = format!("with fewer than {} tokens a head", u32::MAX);
        require(numbers < u32::MAX as usize, "token_lists.tokens.shape", format!("{found:?}"), bound)?;
        tokens.layout.byte_span().map(|_| ())
    }
}
