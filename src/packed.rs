//! Lengths of sequences: packed ones lie one after another in one tensor, padded ones each in a batch entry of its own.

use crate::error::require;
use crate::layout::MAX_BATCH;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, OffsetRule, Operand, Part, Rule, SHARED, Step, Table, small_table};
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
        place(matches!(self, Self::Gpu { .. }))
    }
}

fn place(on_gpu: bool) -> &'static str {
    if on_gpu { "on the GPU" } else { "on the host" }
}

const NAMES: [&str; 2] = ["cu_seqlens_q", "cu_seqlens_k"];
const LONGEST: [&str; 2] = ["max_seqlen_q", "max_seqlen_k"];

/// The offsets of both sides, of tensors with so many rows.
pub(crate) fn offsets(builder: &Builder, shapes: &Shapes, rows: [usize; 2]) -> Result<Option<[Offsets; 2]>> {
    let side = |i: usize| offsets_of(builder, shapes, NAMES[i], LONGEST[i], rows[i]);
    match (side(0)?, side(1)?) {
        (Some(q), Some(k)) => Ok(Some([q, k])),
        (None, None) => Ok(None),
        (q, _) => {
            let (missing, given) = if q.is_some() { (NAMES[1], NAMES[0]) } else { (NAMES[0], NAMES[1]) };
            require(false, missing, "unset", format!("set, as {given} is")).map(|()| None)
        }
    }
}

/// The offsets of one side.
pub(crate) fn offsets_of(
    builder: &Builder,
    shapes: &Shapes,
    name: &str,
    of_longest: &str,
    rows: usize,
) -> Result<Option<Offsets>> {
    let stated = shapes.get_numbers(of_longest).and_then(|numbers| numbers.first().copied());
    let (offsets, host) = (builder.tensor(name), shapes.get_numbers(name));
    check_place(name, offsets.is_some(), host.is_some())?;
    if let Some(offsets) = offsets {
        return Ok(Some(Offsets::Gpu { offsets, max_seqlen: stated.unwrap_or(rows) }));
    }
    let bound = format!("unset unless {name} is on the GPU");
    stated.map_or(Ok(()), |stated| require(false, of_longest, stated, bound))?;
    Ok(host.map(|numbers| Offsets::Host(numbers.to_vec())))
}

/// (first query, queries, first key, keys) of each sequence.
pub(crate) fn host_sequences(q: &[usize], k: &[usize]) -> Vec<[u32; 4]> {
    let pairs = q.windows(2).zip(k.windows(2));
    pairs.map(|(q, k)| [q[0], q[1] - q[0], k[0], k[1] - k[0]].map(|n| n as u32)).collect()
}

/// Both sides' offsets, checked as far as the host sees them. `rows` are those of the queries' and of the keys' tensor.
pub(crate) fn check(sides: &[Offsets; 2], rows: [usize; 2]) -> Result<()> {
    for ((name, of_longest), (side, rows)) in NAMES.into_iter().zip(LONGEST).zip(sides.iter().zip(rows)) {
        check_offsets_of(name, of_longest, side, rows)?;
    }
    let [q, k] = sides;
    require(q.place() == k.place(), NAMES[1], k.place(), format!("{}, like cu_seqlens_q", q.place()))?;
    let [nq, nk] = [q.sequences(), k.sequences()];
    require(nq == nk, "cu_seqlens_k: sequences", nk, format!("{nq}, as in cu_seqlens_q"))
}

/// The offsets of one side, likewise.
pub(crate) fn check_offsets_of(name: &str, of_longest: &str, side: &Offsets, rows: usize) -> Result<()> {
    match side {
        Offsets::Host(offsets) => check_offsets(name, offsets, rows),
        Offsets::Gpu { offsets: Operand { layout, .. }, max_seqlen } => {
            require(layout.dtype == DType::U32, &format!("{name}.dtype"), layout.dtype, "u32")?;
            let row = layout.shape[..3] == [1, 1, 1] && layout.shape[3] > 0;
            let bound = "[1, 1, 1, sequences + 1]";
            require(row, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            let sequences = layout.shape[3] - 1;
            require(sequences <= MAX_BATCH, &format!("{name}: sequences"), sequences, format!("at most {MAX_BATCH}"))?;
            let bound = format!("at most {rows}, the rows of the tensor");
            require(*max_seqlen <= rows, of_longest, max_seqlen, bound)?;
            layout.byte_span().map(|_| ())
        }
    }
}

/// Offsets on the host: they ascend from 0 within the rows.
fn check_offsets(name: &str, offsets: &[usize], rows: usize) -> Result<()> {
    let bound = format!("at least 1, at most {}", MAX_BATCH + 1);
    require((1..=MAX_BATCH + 1).contains(&offsets.len()), &format!("{name}.len()"), offsets.len(), bound)?;
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

/// Where the sequences are: the table that `shaders/workgroups/` reads.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub table: (Binding, Table),
    /// The kernel that makes it from what lies on the GPU.
    pub kernel: Option<Step>,
    pub packed: Option<PackedWork>,
}

/// The work of packed sequences, cut into tiles of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedWork {
    pub sequences: usize,
    /// Tiles of rows of all sequences, or the most that there can be.
    pub items: usize,
    /// Columns to a tile: on average, or at most.
    pub cols: usize,
}

/// The uniform struct of `shaders/workgroups/schedule.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
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

/// What the kernel makes a table of.
struct OnGpu<'a> {
    names: [&'static str; 2],
    /// Lengths or offsets of both sides.
    seqlens: [Option<&'a Operand>; 2],
    /// How many sequences there are, rows of the tensors, the longest sequences.
    sequences: usize,
    rows: [usize; 2],
    longest: [usize; 2],
    /// Of packed sequences: whose rows make tiles, rows of a tile, tiles that there is room for.
    tiles: Option<(Side, usize, usize)>,
    /// Rows to a query.
    query_rows: usize,
}

impl OnGpu<'_> {
    /// The kernel that writes the table. What is wrong with lengths is told by a check, if `checked`.
    fn kernel(&self, builder: &mut Builder, pass: &str, table: usize, checked: bool) -> Result<Step> {
        let &Self { names, seqlens, sequences, rows, longest, tiles, query_rows } = self;
        let problem = builder.scratch_bytes(format!("{pass}: problem"), 16)?;
        if checked {
            builder.check(problem, Rule::Offsets { names, rows, max_seqlen: longest });
        }
        let argument = |(name, operand): (&'static str, Option<&Operand>)| {
            Some(Argument::new(name, operand?, AccessKind::LoadBits, SHARED))
        };
        let of_shader = ["seqlens_q", "seqlens_k"];
        let arguments = of_shader.into_iter().zip(seqlens).filter_map(argument).collect();
        let binding = |name, ty| Binding::Table { name, ty, length: None, write: true };
        let tables = vec![
            (binding("sequences", "vec4u"), Table::Scratch(table)),
            (binding("problem", "u32"), Table::Scratch(problem)),
        ];
        let packed = u32::from(tiles.is_some());
        let (side, tile, items) = tiles.unwrap_or((Side::Queries, 1, 0));
        let constants = vec![("WG", THREADS), ("PACKED", packed), ("QUERY_ROWS", query_rows as u32)];
        let files = vec![file::WORKGROUPS_SCHEDULE, file::SCAN];
        let optional = of_shader.map(|name| (name, AccessKind::LoadBits)).to_vec();
        let shader = Shader { optional, ..Shader::of("schedule of sequences", constants, files, None) };
        let params = |_: &Part| Params {
            sequences: sequences as u32,
            queries: rows[0] as u32,
            keys: rows[1] as u32,
            max_queries: longest[0] as u32,
            max_keys: longest[1] as u32,
            rows: tile as u32,
            items: items as u32,
            by_keys: side as u32,
        };
        Step::new(builder.caps, shader, arguments, tables, vec![Part::whole([1; 3])], params).fit(builder.caps)
    }
}

impl Schedule {
    /// Of packed sequences, for tiles of `tile` rows of one side.
    pub fn packed(
        builder: &mut Builder,
        pass: &str,
        sides: &[Offsets; 2],
        rows: [usize; 2],
        (side, tile): (Side, usize),
        checked: bool,
    ) -> Result<Self> {
        let sequences = sides[0].sequences();
        let binding = Binding::Table { name: "sequences", ty: "vec4u", length: None, write: false };
        let seqlens = match sides {
            [Offsets::Host(q), Offsets::Host(k)] => {
                let (table, packed) = Self::on_host(q, k, side, tile);
                return Ok(Self { table: (binding, table), kernel: None, packed: Some(packed) });
            }
            [Offsets::Gpu { offsets: q, .. }, Offsets::Gpu { offsets: k, .. }] => [Some(q), Some(k)],
            _ => unreachable!("`check` lets only two of a kind pass"),
        };
        let longest = sides.each_ref().map(Offsets::max_seqlen);
        let (own, other) = (side as usize, 1 - side as usize);
        // Every sequence has at most one tile that is not full.
        let items = (rows[own] / tile + sequences).min(sequences.saturating_mul(longest[own].div_ceil(tile)));
        let table = builder.scratch_bytes(format!("{pass}: sequences"), 16 * (sequences + items) as u64)?;
        let tiles = Some((side, tile, items));
        let on_gpu = OnGpu { names: NAMES, seqlens, sequences, rows, longest, tiles, query_rows: 1 };
        let kernel = Some(on_gpu.kernel(builder, pass, table, checked)?);
        let packed = Some(PackedWork { sequences, items, cols: longest[other] });
        Ok(Self { table: (binding, Table::Scratch(table)), kernel, packed })
    }

    /// Of padded sequences, by the lengths of queries and keys, in tensors of so many `rows` each; `query_rows` of them to a query.
    pub fn padded(
        builder: &mut Builder,
        pass: &str,
        lengths: [Option<&Lengths>; 2],
        (batch, rows): (usize, [usize; 2]),
        query_rows: usize,
        checked: bool,
    ) -> Result<Self> {
        let seqlens = lengths.map(|lengths| lengths?.on_gpu());
        if seqlens.iter().all(Option::is_none) {
            let row = |b: usize| padded_sequence(lengths, rows, query_rows, b);
            let table = small_table("sequences", &(0..batch).map(row).collect::<Vec<_>>());
            return Ok(Self { table, kernel: None, packed: None });
        }
        let (table, scratch) = builder.scratch_table(format!("{pass}: sequences"), "sequences", batch)?;
        let names = LENGTHS;
        let on_gpu = OnGpu { names, seqlens, sequences: batch, rows, longest: rows, tiles: None, query_rows };
        let kernel = Some(on_gpu.kernel(builder, pass, scratch, checked)?);
        Ok(Self { table, kernel, packed: None })
    }

    fn on_host(q: &[usize], k: &[usize], side: Side, tile: usize) -> (Table, PackedWork) {
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
        (table, PackedWork { sequences, items: count, cols: cols / count.max(1) })
    }
}

/// The table of tensors with one side, from what lies on the GPU: offsets of sequences, the longest of which is stated, or lengths of batch
/// entries. `entries` and rows of the tensors.
pub(crate) fn one_side(
    builder: &mut Builder,
    name: &'static str,
    seqlens: &Operand,
    [entries, rows]: [usize; 2],
    longest: Option<usize>,
) -> Result<(Binding, Table)> {
    let (table, scratch) = builder.scratch_table("rows of sequences", "sequences", entries)?;
    let on_gpu = OnGpu {
        names: [name; 2],
        seqlens: [Some(seqlens), None],
        sequences: entries,
        rows: [rows; 2],
        longest: [longest.unwrap_or(rows); 2],
        tiles: longest.map(|_| (Side::Queries, 1, 0)),
        query_rows: 1,
    };
    let kernel = on_gpu.kernel(builder, "rows", scratch, true)?;
    builder.add_sliced(&kernel);
    Ok(table)
}

/// Lengths of padded sequences, one a batch entry.
#[derive(Clone, Debug)]
pub(crate) enum Lengths {
    Host(Vec<usize>),
    /// [1, 1, 1, batch], u32.
    Gpu(Operand),
}

impl Lengths {
    fn on_gpu(&self) -> Option<&Operand> {
        match self {
            Self::Host(_) => None,
            Self::Gpu(lengths) => Some(lengths),
        }
    }
}

const LENGTHS: [&str; 2] = ["seqlens_q", "seqlens_k"];

/// The lengths of both sides, where there are some.
pub(crate) fn lengths(builder: &Builder, shapes: &Shapes) -> Result<[Option<Lengths>; 2]> {
    Ok([lengths_of(builder, shapes, LENGTHS[0])?, lengths_of(builder, shapes, LENGTHS[1])?])
}

/// The lengths of one side.
pub(crate) fn lengths_of(builder: &Builder, shapes: &Shapes, name: &str) -> Result<Option<Lengths>> {
    let host = shapes.get_numbers(name).map(|numbers| Lengths::Host(numbers.to_vec()));
    let found = builder.tensor(name).map(Lengths::Gpu);
    check_place(name, found.is_some(), host.is_some()).map(|()| found.or(host))
}

/// What lies on the GPU does not lie on the host too.
fn check_place(name: &str, on_gpu: bool, on_host: bool) -> Result<()> {
    require(!(on_gpu && on_host), name, "a tensor and numbers", "one or the other")
}

/// The lengths of both sides, checked as far as the host sees them. `rows` are those of the tensors.
pub(crate) fn check_lengths(sides: [Option<&Lengths>; 2], batch: usize, rows: [usize; 2]) -> Result<()> {
    for ((name, lengths), rows) in LENGTHS.into_iter().zip(sides).zip(rows) {
        check_lengths_of(name, lengths, batch, rows)?;
    }
    let [Some(q), Some(k)] = sides.map(|side| side.map(|lengths| place(lengths.on_gpu().is_some()))) else {
        return Ok(());
    };
    require(q == k, LENGTHS[1], k, format!("{q}, like seqlens_q"))
}

/// The lengths of one side, likewise.
pub(crate) fn check_lengths_of(name: &str, lengths: Option<&Lengths>, batch: usize, rows: usize) -> Result<()> {
    match lengths {
        None => Ok(()),
        Some(Lengths::Host(lengths)) => check_host_lengths(name, lengths, batch, rows),
        Some(Lengths::Gpu(Operand { layout, .. })) => {
            require(layout.dtype == DType::U32, &format!("{name}.dtype"), layout.dtype, "u32")?;
            let bound = format!("[1, 1, 1, {batch}], one per batch entry");
            let fits = layout.shape == [1, 1, 1, batch];
            require(fits, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            layout.byte_span().map(|_| ())
        }
    }
}

/// Lengths on the host.
pub(crate) fn check_host_lengths(name: &str, lengths: &[usize], batch: usize, rows: usize) -> Result<()> {
    require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), format!("{batch}, one per batch entry"))?;
    for (i, &length) in lengths.iter().enumerate() {
        require(length <= rows, &format!("{name}[{i}]"), length, format!("at most {rows}, the rows of the tensor"))?;
    }
    Ok(())
}

/// (0, queries, 0, keys) of batch entry `b`, by lengths on the host.
pub(crate) fn padded_sequence(
    lengths: [Option<&Lengths>; 2],
    rows: [usize; 2],
    query_rows: usize,
    b: usize,
) -> [u32; 4] {
    let length = |i: usize| match lengths[i] {
        Some(Lengths::Host(lengths)) => lengths[b],
        _ => rows[i],
    };
    [0, length(0) * query_rows, 0, length(1)].map(|n| n as u32)
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::WORKGROUPS_SCHEDULE,
            sequences queries keys max_queries max_keys rows items by_keys
        );
    }
}
