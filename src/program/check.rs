//! What only the GPU has seen, and what is wrong with it.

use crate::{Error, Result};

/// Words that tell whether something was wrong.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Check {
    /// The scratch buffer that holds them.
    pub scratch: usize,
    /// What they mean.
    pub rule: Rule,
}

/// What the words of a [`Check`] mean.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Rule {
    /// Offsets of packed sequences ascend, within the rows and the longest sequence; lengths of padded ones are within the rows. Three
    /// words: `u32::MAX` minus the sum of eight times the place, four times the side, and the rule (or 0: nothing is wrong); the value; the
    /// one before it.
    Offsets {
        /// The arguments' names.
        names: [&'static str; 2],
        /// Rows of the tensors.
        rows: [usize; 2],
        /// Longest sequences.
        max_seqlen: [usize; 2],
    },
    /// Numbers of segments are below `count`. Two words for each batch entry: `u32::MAX` minus the key (or 0: nothing is wrong), and its
    /// number.
    Segments {
        /// Batch entries.
        batch: usize,
        /// How many segments there are.
        count: usize,
    },
    /// Gates are at most 0, betas within [0, 2]. A word for each segment of each head of each entry: twice the token (from 0) with a
    /// wrong one, plus 1 for a gate and 2 for a beta (0: none).
    Gates {
        /// Heads of the state.
        heads: usize,
        /// Heads of the gates.
        gates: usize,
        /// Heads of the betas.
        betas: usize,
        /// Segments of an entry.
        segments: usize,
        /// Whether entries are packed sequences, which lie in one batch entry.
        packed: bool,
    },
    /// The steps of memory with momentum: alpha and eta within [0, 1], theta finite and at least 0. A word for each segment of each
    /// head of each entry: three times the token (from 0) with a wrong one, plus 1 for alpha, 2 for eta, 3 for theta (0: none).
    Momentum {
        /// Heads of the state.
        heads: usize,
        /// Heads of alpha, of eta, of theta.
        of: [usize; 3],
        /// Segments of an entry.
        segments: usize,
        /// Whether entries are packed sequences, which lie in one batch entry.
        packed: bool,
    },
    /// Indices of rows are below `rows`, or none. Two words for each head of each batch entry of the index: `u32::MAX` minus the place (or 0:
    /// nothing is wrong), and its index.
    Rows {
        /// Heads of the index.
        heads: usize,
        /// How many rows there are.
        rows: usize,
    },
    /// Lists of tokens ascend, below `keys`. Four words for each head of each batch entry of the lists: `u32::MAX` minus the sum of
    /// `capacity` times the list and the place in it (or 0: nothing is wrong), and the token.
    TokenLists {
        /// Heads of the lists.
        heads: usize,
        /// Tokens of a list at most.
        capacity: usize,
        /// How many keys there are.
        keys: usize,
    },
    /// Offsets and indices of a list of blocks ascend, within their bounds. Three words: `u32::MAX` minus the sum of four times the place
    /// and the rule (or 0: nothing is wrong); the value; the one before it.
    BlockList {
        /// The argument's name.
        name: &'static str,
        /// Blocks of keys.
        cols: usize,
        /// Indices.
        count: usize,
    },
    /// Lists of blocks are no longer than their capacity. One word: how long they are, if they are longer.
    Capacity {
        /// What the blocks are.
        name: &'static str,
        /// How many there may be.
        capacity: usize,
    },
}

impl Rule {
    /// Reports what is wrong, according to the words.
    ///
    /// # Errors
    /// [`Error::Argument`], which names the argument, the value and the bound.
    pub fn judge(&self, words: &[u32]) -> Result<()> {
        match *self {
            Self::Offsets { names, rows, max_seqlen } => match *words {
                [found, value, before, ..] if found != 0 => {
                    let number = u32::MAX - found;
                    let side = (number / 4 % 2) as usize;
                    let rule = OffsetRule::ALL[(number % 4) as usize];
                    let [number, value, before] = [number, value, before].map(|word| word as usize);
                    Err(rule.error(names[side], number / 8, value, before, rows[side], max_seqlen[side]))
                }
                _ => Ok(()),
            },
            Self::Segments { batch, count } => {
                let found = words.chunks_exact(2).enumerate().take(batch).find(|(_, words)| words[0] != 0);
                let Some((b, words)) = found else { return Ok(()) };
                let what = format!("segments[{b}][{}]", u32::MAX - words[0]);
                Err(Error::argument(what, words[1], format!("below {count}, the number of segments")))
            }
            Self::Gates { heads, gates, betas, segments, packed } => {
                let Some(n) = words.iter().position(|&word| word != 0) else { return Ok(()) };
                let batch = if packed { 0 } else { n / segments / heads };
                let (head, row) = (n / segments % heads, (words[n] - 1) / 2);
                Err(match (words[n] - 1) % 2 {
                    0 => {
                        let what = format!("g[{batch}][{}][{row}]", head * gates / heads);
                        Error::argument(what, "positive or NaN", "at most 0: it is the logarithm of a decay factor")
                    }
                    _ => {
                        let what = format!("beta[{batch}][{}][{row}]", head * betas / heads);
                        Error::argument(what, "below 0, above 2 or NaN", "within [0, 2]")
                    }
                })
            }
            Self::Momentum { heads, of, segments, packed } => {
                let Some(n) = words.iter().position(|&word| word != 0) else { return Ok(()) };
                let batch = if packed { 0 } else { n / segments / heads };
                let (head, row, which) = (n / segments % heads, (words[n] - 1) / 3, (words[n] - 1) as usize % 3);
                let one = ("below 0, above 1 or NaN", "within [0, 1]");
                let (value, bound) = [one, one, ("below 0, infinite or NaN", "finite and at least 0")][which];
                let name = ["alpha", "eta", "theta"][which];
                Err(Error::argument(format!("{name}[{batch}][{}][{row}]", head * of[which] / heads), value, bound))
            }
            Self::Rows { heads, rows } => {
                let Some(n) = words.chunks_exact(2).position(|words| words[0] != 0) else { return Ok(()) };
                let what = format!("index[{}][{}][{}]", n / heads, n % heads, u32::MAX - words[2 * n]);
                let bound = format!("below {rows}, the number of rows, or u32::MAX for none");
                Err(Error::argument(what, words[2 * n + 1], bound))
            }
            Self::TokenLists { heads, capacity, keys } => {
                let Some(n) = words.chunks_exact(4).position(|words| words[0] != 0) else { return Ok(()) };
                let (number, token) = ((u32::MAX - words[4 * n]) as usize, words[4 * n + 1] as usize);
                let (list, place) = (number / capacity, number % capacity);
                let what = format!("token_lists.tokens[{}][{}][{list}][{place}]", n / heads, n % heads);
                let bound = match token < keys {
                    true => "above all tokens before it in its list, which ascends".into(),
                    false => format!("below {keys}, the number of keys, or u32::MAX behind the last"),
                };
                Err(Error::argument(what, token, bound))
            }
            Self::BlockList { name, cols, count } => match *words {
                [found, value, before, ..] if found != 0 => Err(list_error(name, found, value, before, cols, count)),
                _ => Ok(()),
            },
            Self::Capacity { name, capacity } => match words.first() {
                Some(&found) if found != 0 => {
                    Err(Error::argument("capacity", capacity, format!("at least {found}, the number of {name} blocks")))
                }
                _ => Ok(()),
            },
        }
    }
}

/// Rules of offsets, by their number in `shaders/workgroups/schedule.wgsl`.
#[derive(Clone, Copy)]
pub(crate) enum OffsetRule {
    Start,
    Order,
    End,
    Length,
}

impl OffsetRule {
    const ALL: [Self; 4] = [Self::Start, Self::Order, Self::End, Self::Length];

    /// The error of an offset that breaks it.
    pub fn error(self, name: &str, index: usize, value: usize, before: usize, rows: usize, longest: usize) -> Error {
        let bound = match self {
            Self::Start => "0".to_string(),
            Self::Order => format!("at least the offset before it, {before}"),
            Self::End => format!("at most {rows}, the rows of the tensor"),
            Self::Length => {
                format!("at most {longest} above the offset before it, {before}: no sequence may be longer than stated")
            }
        };
        Error::argument(format!("{name}[{index}]"), value, bound)
    }
}

/// What `shaders/blocks/from_lists.wgsl` found wrong.
fn list_error(name: &str, found: u32, value: u32, before: u32, cols: usize, count: usize) -> Error {
    let (place, rule) = ((u32::MAX - found) / 4, (u32::MAX - found) % 4);
    let (part, bound) = match rule {
        0 if place == 0 => ("offsets", "0".to_string()),
        0 => ("offsets", format!("at least the offset before it, {before}")),
        1 => ("offsets", format!("at most {count}, the number of indices")),
        2 => ("indices", format!("above the index before it in its row, {before}: indices ascend")),
        _ => ("indices", format!("below {cols}, the number of blocks of keys")),
    };
    Error::argument(format!("{name}.{part}[{place}]"), value, bound)
}
