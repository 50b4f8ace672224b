//! What tile sizes are chosen by.

/// What tile sizes are chosen by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes<'a> {
    /// What asks, for errors.
    pub what: &'a str,
    /// Head dimension and value width.
    pub dims: [usize; 2],
    /// Bytes of workgroup memory that the family's files use for each row of a tile.
    pub beside: u32,
    /// Floating-point operations of the forward pass, if every query sees every key.
    pub flops: f64,
}

impl Sizes<'_> {
    /// The wider of head dimension and value width.
    pub fn widest(&self) -> usize {
        self.dims[0].max(self.dims[1])
    }
}
