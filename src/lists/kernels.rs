//! The kernels that make lists of tokens ready for attention.

use super::TokenListShape;
use crate::block_mask::BlockMaskShape;
use crate::program::shader::{AccessKind, Binding, Shader, file};
use crate::program::{Argument, Builder, EACH, Operand, Part, Rule, Step, Table, cut};
use crate::{BlockGrid, DType, Layout, Result};

/// Threads of a workgroup.
const THREADS: usize = 64;

/// The uniform struct of `shaders/lists/shared.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    first: [u32; 3],
    capacity: u32,
    keys: u32,
    lists: u32,
    words: u32,
    pad: u32,
}

/// The lists of a call, ready for attention.
pub(crate) struct Lists {
    given: TokenListShape,
    /// How many tokens each list has, then the tokens.
    tokens: Operand,
    grid: BlockGrid,
}

impl Lists {
    /// Plans what all passes need: only what ascends of each list, and what tells of the rest; with the dispatches.
    pub fn new(
        builder: &mut Builder,
        given: &TokenListShape,
        [queries, keys]: [usize; 2],
    ) -> Result<(Self, Vec<usize>)> {
        let given = given.clone();
        let [batch, heads, lists, capacity] = given.tokens.shape();
        let rows = Layout::heads_first(DType::U32, [batch, heads, lists, capacity.max(1) + 1]);
        let tokens = builder.scratch("token lists", rows)?;
        let grid = BlockGrid { batch, heads, queries, keys, block: [given.block, 1] };
        let found = Self { given, tokens, grid };
        let dispatches = found.ascending(builder)?;
        Ok((found, dispatches))
    }

    /// As attention reads them.
    pub fn ready(&self) -> TokenListShape {
        TokenListShape { tokens: self.tokens.clone(), ..self.given.clone() }
    }

    fn ascending(&self, builder: &mut Builder) -> Result<Vec<usize>> {
        let [batch, heads, lists, capacity] = self.given.tokens.shape();
        if let Some(available) = builder.caps.loop_rounds() {
            let what = format!("a list of {capacity} tokens");
            builder.caps.within(
                &what,
                "rounds of llvmpipe's loops",
                4 * capacity.div_ceil(THREADS) as u64,
                available,
            )?;
        }
        let problem = builder.scratch_bytes("token lists: problem", 16 * (batch * heads).max(1) as u64)?;
        builder.check(problem, Rule::TokenLists { heads, capacity, keys: self.grid.keys });
        let given = Argument::new("given", &self.given.tokens, AccessKind::LoadBits, EACH);
        let to = Argument::new("tokens", &self.tokens, AccessKind::StoreBits, EACH);
        let work = Part::whole([batch, heads, lists]);
        let flops = (16 * capacity) as f64;
        let files = vec![file::LISTS_ASCENDING, file::SCAN];
        let arguments = vec![given.clone(), to];
        let ascending =
            self.step(builder, ("token lists", files), arguments, Some((problem, "atomic<u32>")), (work, flops))?;
        let each = (Part::whole([batch, heads, 1]), 1.0);
        let files = vec![file::LISTS_PROBLEM];
        let told = self.step(builder, ("token list problem", files), vec![given], Some((problem, "u32")), each)?;
        Ok(builder.add(&ascending).chain(builder.add(&told)).collect())
    }

    /// The lists as a block mask, whose blocks are a list's queries and one key: what passes go by that visit the queries of each key.
    pub fn bits(&self, builder: &mut Builder) -> Result<(BlockMaskShape, Vec<usize>)> {
        let bits = builder.scratch("token lists: bits", Layout::heads_first(DType::U32, self.grid.shape()))?;
        let [batch, heads, lists, words] = bits.shape();
        let arguments = vec![
            Argument::new("tokens", &self.tokens, AccessKind::LoadBits, EACH),
            Argument::new("bits", &bits, AccessKind::StoreBits, EACH),
        ];
        let tiles = lists.saturating_mul(words).div_ceil(THREADS);
        let work = (Part::whole([batch, heads, tiles]), 200.0 * THREADS as f64);
        let files = vec![file::LISTS_BITS, file::LISTS_PLACE];
        let step = self.step(builder, ("token lists as bits", files), arguments, None, work)?;
        let mask = BlockMaskShape {
            block: self.grid.block,
            blocks: self.grid.blocks(),
            chosen: Some(bits),
            full: None,
            heads: vec![],
        };
        Ok((mask, builder.add(&step).collect()))
    }

    fn step(
        &self,
        builder: &Builder,
        (name, own): (&str, Vec<&'static str>),
        arguments: Vec<Argument>,
        problem: Option<(usize, &'static str)>,
        (work, flops): (Part, f64),
    ) -> Result<Step> {
        let [_, heads, lists, capacity] = self.given.tokens.shape();
        let constants = vec![("WG", THREADS as u32), ("HEADS", heads as u32)];
        let files = [vec![file::LISTS, file::ELEMENT], own].concat();
        let shader = Shader::of(name, constants, files, None);
        let table = |(scratch, ty)| {
            (Binding::Table { name: "problem", ty, length: None, write: true }, Table::Scratch(scratch))
        };
        let tables = problem.map(table).into_iter().collect();
        let parts = cut(builder.caps, &arguments, work, flops)?;
        let [.., words] = self.grid.shape();
        let [capacity, keys, lists, words] = [capacity, self.grid.keys, lists, words].map(|n| n as u32);
        let params = move |part: &Part| Params { first: part.first(), capacity, keys, lists, words, pad: 0 };
        Step::new(builder.caps, shader, arguments, tables, parts, params).fit(builder.caps)
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(Params, file::LISTS, first capacity keys lists words);
    }
}
