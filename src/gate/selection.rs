//! Blocks from scores of any origin, by the gate's rules.

use super::Selector;
use super::frame::{Frame, SideFrame};
use crate::error::require;
use crate::packed::{self, Lengths};
use crate::program::{Builder, Program, small_table};
use crate::{BlockGrid, Caps, Causal, DType, Error, Layout, Result, Shapes};

/// Which blocks rows of scores choose: of those that a row sees, by the softmax of its scores or their order, and what is forced.
///
/// ```
/// use wgpu_attention::gate::{BlockSelection, Selector};
/// // Of each row the 8 best blocks of 64 keys, and the first one.
/// let selection = BlockSelection { sink: true, ..BlockSelection::new(Selector::Budget(512)) };
/// assert!(selection.causal.is_none() && !selection.last_rows_dense);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct BlockSelection {
    /// How blocks are chosen.
    pub selector: Selector,
    /// Causal mask, by blocks: a row sees the blocks of keys in which its last query sees any key. Default: none.
    pub causal: Option<Causal>,
    /// Whether every row also chooses the first block. Default: no.
    pub sink: bool,
    /// Whether every row also chooses the blocks that hold its own tokens: query i is token i, or, with a causal mask from the bottom right, the last
    /// query is the last token. Default: no.
    pub diagonal: bool,
    /// Whether the last two blocks of queries of a sequence choose all that they see. Default: no.
    pub last_rows_dense: bool,
}

impl BlockSelection {
    /// Without a causal mask; nothing is forced.
    pub fn new(selector: Selector) -> Self {
        Self { selector, causal: None, sink: false, diagonal: false, last_rows_dense: false }
    }

    /// The program that chooses blocks. It reads `scores`, f32 [batch, heads, blocks of queries, blocks of keys] as `grid` has them, before their
    /// softmax, and writes `chosen`, u32 of the shape [`BlockGrid::shape`]. Its numbers: seqlens_q and seqlens_k.
    ///
    /// Blocks that a row does not see are outside of the softmax and of the choice. Of equal scores the first is chosen. A row with a NaN, with +∞ or
    /// with nothing but −∞ among the scores that it sees chooses all that it sees. Otherwise a score of −∞ is never above a threshold, and the last that a
    /// count takes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a selector or a grid that is out of range, and for shapes and types that do not fit; [`Error::Limit`].
    pub fn plan(&self, grid: &BlockGrid, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&["scores", "chosen", "seqlens_q", "seqlens_k"], &["seqlens_q", "seqlens_k"])?;
        grid.check()?;
        self.selector.check(grid.block[1])?;
        let mut builder = Builder::new(caps, shapes)?;
        let frame = self.frame(grid, self.sequences(grid, &builder, shapes)?);
        let scores = builder.input("scores")?;
        // As the gate calls them.
        builder.name("logits", scores.clone());
        let chosen = builder.output("chosen", Layout::heads_first(DType::U32, grid.shape()))?;
        for (name, operand, wanted) in
            [("scores", &scores, frame.logits()), ("chosen", &chosen, Layout::heads_first(DType::U32, grid.shape()))]
        {
            let (Layout { shape, dtype, .. }, bound) = (&operand.layout, format!("{:?}", wanted.shape));
            require(*shape == wanted.shape, &format!("{name}.shape"), format!("{shape:?}"), bound)?;
            require(*dtype == wanted.dtype, &format!("{name}.dtype"), dtype, wanted.dtype)?;
            operand.layout.byte_span()?;
        }
        chosen.layout.check_output("chosen")?;
        frame.check_loops(caps)?;
        frame.select(false).add(&mut builder, frame.sequences.clone())?;
        let [rows, cols] = frame.pairs();
        builder.finish(format!("blocks from scores: {rows} × {cols} blocks a head; {:?}", self.selector))
    }

    /// (first query, queries, first key, keys) of each batch entry.
    fn sequences(&self, grid: &BlockGrid, builder: &Builder, shapes: &Shapes) -> Result<Vec<[u32; 4]>> {
        let (lengths, rows) = (packed::lengths(builder, shapes)?, [grid.queries, grid.keys]);
        let lengths = lengths.each_ref().map(Option::as_ref);
        for (name, lengths) in ["seqlens_q", "seqlens_k"].into_iter().zip(lengths) {
            if let Some(Lengths::Gpu(_)) = lengths {
                return Err(Error::argument(name, "on the GPU", "on the host: this plan depends on the lengths"));
            }
        }
        packed::check_lengths(lengths, grid.batch, rows)?;
        Ok((0..grid.batch).map(|b| packed::padded_sequence(lengths, rows, 1, b)).collect())
    }

    fn frame(&self, grid: &BlockGrid, sequences: Vec<[u32; 4]>) -> Frame {
        let side = |rows| SideFrame {
            vectors: "",
            heads: grid.heads,
            share: 1,
            joined: 1,
            rows,
            pools: None,
            head_dim: 1,
            weighted: false,
            normed: false,
        };
        Frame {
            batch: grid.batch,
            sequences: small_table("sequences", &sequences),
            heads: grid.heads,
            gate_dim: 1,
            sides: grid.blocks().map(side),
            block: grid.block,
            causal: self.causal,
            triangle: self.causal.is_some(),
            past: false,
            complete: false,
            ring: 0,
            theta: None,
            epsilon: 0.0,
            selector: self.selector,
            forced: u32::from(self.sink) | u32::from(self.diagonal) << 1 | u32::from(self.last_rows_dense) << 2,
        }
    }
}
