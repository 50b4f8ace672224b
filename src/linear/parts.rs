//! The tensors of linear attention's kernels, by name.

/// A tensor of a call, or one that lies between kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Q,
    K,
    V,
    G,
    H0,
    O,
    Ht,
    Snapshots,
    /// Which gate of each segment is wrong; u32 [entries, heads, 1, segments].
    Problem,
    /// The sum of each segment's gates; f32 of that shape.
    Totals,
    /// What segments begin with, of the walk that gives the output, or dv.
    States,
    /// The same of those that give dq and dk, turned.
    StatesAhead,
    StatesBehind,
    Dout,
    Dht,
    Dq,
    Dk,
    Dv,
    Dg,
    Dslopes,
    Dh0,
    /// Gradients by heads of the state, f32, where the tensor has fewer or another type.
    EachDq,
    EachDk,
    EachDv,
}
