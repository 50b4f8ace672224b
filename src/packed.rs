//! Lengths of sequences: packed ones lie one after another in one tensor, padded ones each in a batch entry of its own.

mod schedule;

pub(crate) use schedule::{PackedWork, Schedule, one_side};

use crate::error::require;
use crate::layout::MAX_BATCH;
use crate::program::{Builder, OffsetRule, Operand};
use crate::{DType, Error, Result, Shapes};

/// What the rows of a tile are; the columns are the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Queries = 0,
    Keys = 1,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Queries => Self::Keys,
            Self::Keys => Self::Queries,
        }
    }
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
    let stated = match shapes.get_numbers(of_longest) {
        None => None,
        Some(&[stated]) => Some(stated),
        Some(numbers) => return Err(Error::argument(of_longest, format!("{numbers:?}"), "one number")),
    };
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
