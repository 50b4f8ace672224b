//! The table of sequences that kernels read, from the host or made on the GPU.

use super::{LENGTHS, Lengths, NAMES, Offsets, Side, host_sequences, padded_sequence};
use crate::Result;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, Operand, Part, Rule, SHARED, Step, Table, small_table};

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
