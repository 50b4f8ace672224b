//! Packed sequences: lengths of several sequences that lie one after another in one tensor.

use crate::arguments::{Argument, row_address};
use crate::dispatch::Kernel;
use crate::error::require;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::{Caps, DType, Error, Layout, Result, Slice, Tensor};

/// Where packed sequences begin and end: sequence i has the rows `[offsets[i], offsets[i + 1])`. The first offset is 0,
/// they ascend (an empty sequence has two equal ones), and the last is at most the number of rows. Rows behind the last
/// belong to no sequence and are left alone.
#[derive(Clone, Copy, Debug)]
pub enum CuSeqlens<'a> {
    /// On the host: checked, and part of what a kernel is prepared for.
    Host(&'a [u32]),
    /// On the GPU: u32 values that work submitted before may have made. They are clamped to the tensor, and a kernel that
    /// found them wrong makes reading its output an error.
    Gpu {
        /// The offsets, as [`Tensor::upload_u32`] makes them: [1, 1, 1, sequences + 1].
        offsets: &'a Tensor,
        /// The longest sequence that there may be.
        max_seqlen: usize,
    },
}

/// What planning looks at of a [`CuSeqlens`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CuSeqlensShape {
    /// The offsets.
    Host(Vec<u32>),
    /// Offsets on the GPU.
    Gpu {
        /// [1, 1, 1, sequences + 1], u32.
        offsets: Layout,
        /// The longest sequence that there may be.
        max_seqlen: usize,
    },
}

impl CuSeqlens<'_> {
    /// What planning looks at.
    pub fn shape(&self) -> CuSeqlensShape {
        match *self {
            CuSeqlens::Host(offsets) => CuSeqlensShape::Host(offsets.to_vec()),
            CuSeqlens::Gpu { offsets, max_seqlen } => {
                CuSeqlensShape::Gpu { offsets: offsets.layout().clone(), max_seqlen }
            }
        }
    }

    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match *self {
            CuSeqlens::Host(_) => None,
            CuSeqlens::Gpu { offsets, .. } => Some(offsets),
        }
    }
}

impl CuSeqlensShape {
    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        match self {
            Self::Host(offsets) => offsets.len().saturating_sub(1),
            Self::Gpu { offsets, .. } => offsets.shape[3].saturating_sub(1),
        }
    }

    /// The longest sequence: measured, or as stated.
    pub fn max_seqlen(&self) -> usize {
        match self {
            Self::Host(offsets) => offsets.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or(0) as usize,
            Self::Gpu { max_seqlen, .. } => *max_seqlen,
        }
    }
}

/// (first query, queries, first key, keys) of each sequence.
pub(crate) fn host_sequences(q: &[u32], k: &[u32]) -> Vec<[u32; 4]> {
    q.windows(2).zip(k.windows(2)).map(|(q, k)| [q[0], q[1] - q[0], k[0], k[1] - k[0]]).collect()
}

/// Rules of offsets, by their number in `shaders/workgroups/schedule.wgsl`.
#[derive(Clone, Copy)]
enum Rule {
    Start,
    Order,
    End,
    Length,
}

/// The error of an offset that breaks a rule.
fn broken(rule: Rule, argument: &str, index: usize, value: u32, before: u32, rows: usize, longest: usize) -> Error {
    let bound = match rule {
        Rule::Start => "0".to_string(),
        Rule::Order => format!("at least the offset before it, {before}"),
        Rule::End => format!("at most {rows}, the tensor's rows"),
        Rule::Length => {
            format!("at most {longest} above the offset before it, {before}: the longest sequence as stated")
        }
    };
    Error::argument(format!("{argument}[{index}]"), value, bound)
}

/// Both sides' offsets, checked as far as the host sees them. `rows` are those of the queries' and of the keys' tensor.
pub(crate) fn check(sides: [&CuSeqlensShape; 2], rows: [usize; 2]) -> Result<()> {
    for ((name, side), rows) in NAMES.into_iter().zip(sides).zip(rows) {
        match side {
            CuSeqlensShape::Host(offsets) => check_offsets(name, offsets, rows)?,
            CuSeqlensShape::Gpu { offsets, max_seqlen } => {
                require(offsets.dtype == DType::U32, &format!("{name}.dtype"), offsets.dtype, "u32")?;
                let row = offsets.shape[..3] == [1, 1, 1] && offsets.shape[3] > 0;
                let bound = "[1, 1, 1, sequences + 1]";
                require(row, &format!("{name}.shape"), format!("{:?}", offsets.shape), bound)?;
                let bound = format!("at most {rows}, the tensor's rows");
                require(*max_seqlen <= rows, &format!("{name}.max_seqlen"), max_seqlen, bound)?;
                offsets.byte_span()?;
            }
        }
    }
    let [q, k] = sides;
    let kind =
        |side: &CuSeqlensShape| if matches!(side, CuSeqlensShape::Host(_)) { "on the host" } else { "on the GPU" };
    require(kind(q) == kind(k), "cu_seqlens_k", kind(k), format!("{}, as cu_seqlens_q", kind(q)))?;
    let [nq, nk] = [q.sequences(), k.sequences()];
    require(nq == nk, "cu_seqlens_k: sequences", nk, format!("{nq}, as in cu_seqlens_q"))
}

/// Offsets on the host: they ascend from 0 within the rows.
pub(crate) fn check_offsets(name: &str, offsets: &[u32], rows: usize) -> Result<()> {
    require(!offsets.is_empty(), &format!("{name}.len()"), 0, "at least 1")?;
    let rule = |rule, i: usize| Err(broken(rule, name, i, offsets[i], offsets[i.max(1) - 1], rows, 0));
    if offsets[0] != 0 {
        return rule(Rule::Start, 0);
    }
    for i in 1..offsets.len() {
        if offsets[i] < offsets[i - 1] {
            return rule(Rule::Order, i);
        }
        if offsets[i] as usize > rows {
            return rule(Rule::End, i);
        }
    }
    Ok(())
}

const NAMES: [&str; 2] = ["cu_seqlens_q", "cu_seqlens_k"];

/// What the rows of a tile are; the columns are the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Queries = 0,
    Keys = 1,
}

/// The work of packed sequences, cut into tiles of rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub sequences: usize,
    /// Tiles of rows of all sequences, or the most that there can be.
    pub items: usize,
    /// Columns to a tile: on average, or at most.
    pub cols: usize,
    pub table: ScheduleTable,
}

/// The table that `shaders/workgroups/packed.wgsl` reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ScheduleTable {
    Host(Vec<[u32; 4]>),
    /// Made by a kernel from the offsets on the GPU.
    Gpu(Box<Kernel>),
}

/// The uniform struct of `shaders/workgroups/schedule.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    cu_q: [u32; 4],
    cu_k: [u32; 4],
    sequences: u32,
    queries: u32,
    keys: u32,
    max_queries: u32,
    max_keys: u32,
    rows: u32,
    items: u32,
    by_keys: u32,
}

/// The one slice of the kernel that makes the table.
pub(crate) const ONE: Slice = Slice { batches: 0..1, heads: 0..1, tiles: 0..1 };
const THREADS: u32 = 128;

impl Schedule {
    /// For tiles of `tile` rows of one side.
    pub fn plan(caps: &Caps, sides: [&CuSeqlensShape; 2], rows: [usize; 2], side: Side, tile: usize) -> Result<Self> {
        let sequences = sides[0].sequences();
        match sides {
            [CuSeqlensShape::Host(q), CuSeqlensShape::Host(k)] => Ok(Self::on_host(q, k, side, tile)),
            [CuSeqlensShape::Gpu { offsets: q, .. }, CuSeqlensShape::Gpu { offsets: k, .. }] => {
                let longest = sides.map(CuSeqlensShape::max_seqlen);
                let (own, other) = (side as usize, 1 - side as usize);
                // Every sequence has at most one tile that is not full.
                let items = (rows[own] / tile + sequences).min(sequences * longest[own].div_ceil(tile));
                let argument = |name, layout: &Layout, buffer| Argument {
                    name,
                    layout: layout.clone(),
                    kind: AccessKind::LoadBits,
                    group: 1,
                    spread: 1,
                    buffer,
                    whole: true,
                };
                let arguments = vec![argument("cu_q", q, 0), argument("cu_k", k, 1)];
                let table = |name, ty| Binding::Table { name, ty, length: None, write: true };
                let tables = vec![(table("sequences", "vec4u"), None), (table("problem", "u32"), None)];
                let files = vec![file::WORKGROUPS_SCHEDULE, file::SCAN];
                let shader = Shader::of("schedule of packed sequences", vec![("WG", THREADS)], files, None);
                let address = |i| row_address(caps, &arguments, i, &ONE);
                let params = Params {
                    cu_q: address(0),
                    cu_k: address(1),
                    sequences: sequences as u32,
                    queries: rows[0] as u32,
                    keys: rows[1] as u32,
                    max_queries: longest[0] as u32,
                    max_keys: longest[1] as u32,
                    rows: tile as u32,
                    items: items as u32,
                    by_keys: side as u32,
                };
                let uniforms = vec![bytemuck::bytes_of(&params).to_vec()];
                let kernel = Kernel::new(caps, shader, arguments, tables, uniforms).fit(caps)?;
                Ok(Self { sequences, items, cols: longest[other], table: ScheduleTable::Gpu(Box::new(kernel)) })
            }
            _ => unreachable!("`check` lets only two of a kind pass"),
        }
    }

    fn on_host(q: &[u32], k: &[u32], side: Side, tile: usize) -> Self {
        // Of a sequence's entry, its rows and its columns.
        let (own, other) = (1 + 2 * side as usize, 3 - 2 * side as usize);
        let mut table = host_sequences(q, k);
        let sequences = table.len();
        let tiles = |i: usize| (0..table[i][own].div_ceil(tile as u32)).map(move |t| [i as u32, t, 0, 0]);
        let mut items: Vec<[u32; 4]> = (0..sequences).flat_map(tiles).collect();
        // Long and short ones in turn, so that neighbours add up to the same work.
        items.sort_unstable_by_key(|item| (std::cmp::Reverse(table[item[0] as usize][other]), *item));
        let count = items.len();
        let cols: usize = items.iter().map(|item| table[item[0] as usize][other] as usize).sum();
        table.extend((0..count).map(|n| items[if n % 2 == 0 { n / 2 } else { count - 1 - n / 2 }]));
        Self { sequences, items: count, cols: cols / count.max(1), table: ScheduleTable::Host(table) }
    }

    /// Entries of the table.
    pub fn entries(&self) -> usize {
        self.sequences + self.items
    }
}

/// What the kernel that makes a schedule found wrong, from the three words that it wrote.
pub(crate) fn judge(words: &[u32], sides: [&CuSeqlensShape; 2], rows: [usize; 2]) -> Result<()> {
    let [number, value, before, ..] = *words else { return Ok(()) };
    if number == u32::MAX {
        return Ok(());
    }
    let side = (number / 4 % 2) as usize;
    let rule = [Rule::Start, Rule::Order, Rule::End, Rule::Length][(number % 4) as usize];
    Err(broken(rule, NAMES[side], (number / 8) as usize, value, before, rows[side], sides[side].max_seqlen()))
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::WORKGROUPS_SCHEDULE,
            cu_q cu_k sequences queries keys max_queries max_keys rows items by_keys
        );
    }
}
