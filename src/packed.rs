//! Packed sequences: lengths of several sequences that lie one after another in one tensor.

use crate::error::require;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, OffsetRule, Operand, Part, Rule, SHARED, Step, Table};
use crate::{DType, Result, Shapes};

/// What the rows of a tile are; the columns are the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Queries = 0,
    Keys = 1,
}

/// Where packed sequences begin and end.
#[derive(Clone, Debug)]
pub(crate) enum Offsets {
    Host(Vec<usize>),
    Gpu {
        /// [1, 1, 1, sequences + 1], u32.
        offsets: Operand,
        /// The longest sequence that there may be.
        max_seqlen: usize,
    },
}

impl Offsets {
    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        match self {
            Self::Host(offsets) => offsets.len().saturating_sub(1),
            Self::Gpu { offsets, .. } => offsets.shape()[3].saturating_sub(1),
        }
    }

    /// The longest sequence: measured, or as stated.
    pub fn max_seqlen(&self) -> usize {
        match self {
            Self::Host(offsets) => offsets.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or(0),
            Self::Gpu { max_seqlen, .. } => *max_seqlen,
        }
    }

    fn place(&self) -> &'static str {
        if matches!(self, Self::Host(_)) { "on the host" } else { "on the GPU" }
    }
}

const NAMES: [&str; 2] = ["cu_seqlens_q", "cu_seqlens_k"];
const LONGEST: [&str; 2] = ["max_seqlen_q", "max_seqlen_k"];

/// The offsets of both sides, of tensors with so many rows.
pub(crate) fn offsets(builder: &Builder, shapes: &Shapes, rows: [usize; 2]) -> Result<Option<[Offsets; 2]>> {
    let side = |i: usize| -> Result<Option<Offsets>> {
        let (name, of_longest) = (NAMES[i], LONGEST[i]);
        let stated = shapes.get_numbers(of_longest).and_then(|numbers| numbers.first().copied());
        if let Some(offsets) = builder.tensor(name) {
            return Ok(Some(Offsets::Gpu { offsets, max_seqlen: stated.unwrap_or(rows[i]) }));
        }
        let bound = format!("unset but for {name} on the GPU");
        stated.map_or(Ok(()), |stated| require(false, of_longest, stated, bound))?;
        Ok(shapes.get_numbers(name).map(|numbers| Offsets::Host(numbers.to_vec())))
    };
    match (side(0)?, side(1)?) {
        (Some(q), Some(k)) => Ok(Some([q, k])),
        (None, None) => Ok(None),
        (q, _) => {
            let (missing, given) = if q.is_some() { (NAMES[1], NAMES[0]) } else { (NAMES[0], NAMES[1]) };
            require(false, missing, "unset", format!("set, as {given} is")).map(|()| None)
        }
    }
}

/// (first query, queries, first key, keys) of each sequence.
pub(crate) fn host_sequences(q: &[usize], k: &[usize]) -> Vec<[u32; 4]> {
    let pairs = q.windows(2).zip(k.windows(2));
    pairs.map(|(q, k)| [q[0], q[1] - q[0], k[0], k[1] - k[0]].map(|n| n as u32)).collect()
}

/// Both sides' offsets, checked as far as the host sees them. `rows` are those of the queries' and of the keys' tensor.
pub(crate) fn check(sides: &[Offsets; 2], rows: [usize; 2]) -> Result<()> {
    for ((name, of_longest), (side, rows)) in NAMES.into_iter().zip(LONGEST).zip(sides.iter().zip(rows)) {
        match side {
            Offsets::Host(offsets) => check_offsets(name, offsets, rows)?,
            Offsets::Gpu { offsets: Operand { layout, .. }, max_seqlen } => {
                require(layout.dtype == DType::U32, &format!("{name}.dtype"), layout.dtype, "u32")?;
                let row = layout.shape[..3] == [1, 1, 1] && layout.shape[3] > 0;
                let bound = "[1, 1, 1, sequences + 1]";
                require(row, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
                let bound = format!("at most {rows}, the tensor's rows");
                require(*max_seqlen <= rows, of_longest, max_seqlen, bound)?;
                layout.byte_span()?;
            }
        }
    }
    let [q, k] = sides;
    require(q.place() == k.place(), NAMES[1], k.place(), format!("{}, as cu_seqlens_q", q.place()))?;
    let [nq, nk] = [q.sequences(), k.sequences()];
    require(nq == nk, "cu_seqlens_k: sequences", nk, format!("{nq}, as in cu_seqlens_q"))
}

/// Offsets on the host: they ascend from 0 within the rows.
pub(crate) fn check_offsets(name: &str, offsets: &[usize], rows: usize) -> Result<()> {
    require(!offsets.is_empty(), &format!("{name}.len()"), 0, "at least 1")?;
    let broken = |rule: OffsetRule, i: usize| Err(rule.error(name, i, offsets[i], offsets[i.max(1) - 1], rows, 0));
    if offsets[0] != 0 {
        return broken(OffsetRule::Start, 0);
    }
    for i in 1..offsets.len() {
        if offsets[i] < offsets[i - 1] {
            return broken(OffsetRule::Order, i);
        }
        if offsets[i] > rows {
            return broken(OffsetRule::End, i);
        }
    }
    Ok(())
}

/// The work of packed sequences, cut into tiles of rows.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub sequences: usize,
    /// Tiles of rows of all sequences, or the most that there can be.
    pub items: usize,
    /// Columns to a tile: on average, or at most.
    pub cols: usize,
    /// The table that `shaders/workgroups/packed.wgsl` reads.
    pub table: Table,
    /// The kernel that makes it from offsets on the GPU.
    pub kernel: Option<Step>,
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

const THREADS: u32 = 128;

impl Schedule {
    /// For tiles of `tile` rows of one side. What is wrong with offsets is told by a check, if `checked`.
    pub fn plan(
        builder: &mut Builder,
        pass: &str,
        sides: &[Offsets; 2],
        rows: [usize; 2],
        side: Side,
        tile: usize,
        checked: bool,
    ) -> Result<Self> {
        let sequences = sides[0].sequences();
        let (q, k) = match sides {
            [Offsets::Host(q), Offsets::Host(k)] => return Ok(Self::on_host(q, k, side, tile)),
            [Offsets::Gpu { offsets: q, .. }, Offsets::Gpu { offsets: k, .. }] => (q, k),
            _ => unreachable!("`check` lets only two of a kind pass"),
        };
        let longest = sides.each_ref().map(Offsets::max_seqlen);
        let (own, other) = (side as usize, 1 - side as usize);
        // Every sequence has at most one tile that is not full.
        let items = (rows[own] / tile + sequences).min(sequences * longest[own].div_ceil(tile));
        let table = builder.scratch_bytes(format!("{pass}: sequences"), 16 * (sequences + items) as u64);
        let problem = builder.scratch_bytes(format!("{pass}: problem"), 16);
        if checked {
            builder.check(problem, Rule::Offsets { names: NAMES, rows, max_seqlen: longest });
        }
        let argument = |name, operand| Argument::new(name, operand, AccessKind::LoadBits, SHARED);
        let arguments = vec![argument("cu_q", q), argument("cu_k", k)];
        let binding = |name, ty| Binding::Table { name, ty, length: None, write: true };
        let tables = vec![
            (binding("sequences", "vec4u"), Table::Scratch(table)),
            (binding("problem", "u32"), Table::Scratch(problem)),
        ];
        let files = vec![file::WORKGROUPS_SCHEDULE, file::SCAN];
        let shader = Shader::of("schedule of packed sequences", vec![("WG", THREADS)], files, None);
        let params = |_: &Part, address: &dyn Fn(&str) -> [u32; 4]| Params {
            cu_q: address("cu_q"),
            cu_k: address("cu_k"),
            sequences: sequences as u32,
            queries: rows[0] as u32,
            keys: rows[1] as u32,
            max_queries: longest[0] as u32,
            max_keys: longest[1] as u32,
            rows: tile as u32,
            items: items as u32,
            by_keys: side as u32,
        };
        let parts = vec![Part::whole([1; 3])];
        let kernel = Step::new(builder.caps, shader, arguments, tables, parts, params).fit(builder.caps)?;
        Ok(Self { sequences, items, cols: longest[other], table: Table::Scratch(table), kernel: Some(kernel) })
    }

    fn on_host(q: &[usize], k: &[usize], side: Side, tile: usize) -> Self {
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
        let table = Table::bytes(bytemuck::cast_slice(&table).to_vec());
        Self { sequences, items: count, cols: cols / count.max(1), table, kernel: None }
    }
}

pub(crate) fn check_lengths(name: &str, lengths: Option<&[usize]>, batch: usize, most: usize) -> Result<()> {
    let Some(lengths) = lengths else { return Ok(()) };
    require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), format!("{batch}, one a batch entry"))?;
    for (i, &length) in lengths.iter().enumerate() {
        require(length <= most, &format!("{name}[{i}]"), length, format!("at most {most}, the tensor's length"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::WORKGROUPS_SCHEDULE,
            cu_q cu_k sequences queries keys max_queries max_keys rows items by_keys
        );
    }
}
