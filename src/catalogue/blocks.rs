//! Block masks of cases.

use super::{AttentionCase, BlockCase, MaskSource};
use crate::reference::ChosenBlocks;
use crate::{BlockGrid, BlockList, BlockMask, DType, Gpu, Layout, Result, Shapes, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

impl BlockCase {
    /// In short.
    pub(super) fn name(&self) -> String {
        let Self { block: [q, k], density, from, heads, .. } = self;
        let heads = if heads.is_empty() { "" } else { " by head" };
        match from {
            MaskSource::Heads => " blocks by head".into(),
            MaskSource::Hooks => format!(" blocks {q}×{k} from hooks"),
            _ => format!(" blocks {q}×{k} {:.0} % {from:?}{heads}", 100.0 * density),
        }
    }

    fn grid(&self, case: &AttentionCase) -> BlockGrid {
        let [batch, heads, queries, keys] = case.pair_shape();
        let one = |repeated: bool, count: usize| if repeated { count.min(1) } else { count };
        let (batch, heads) =
            (one(self.repeated[0], batch), one(self.repeated[1], if self.by_key_head { case.heads.1 } else { heads }));
        BlockGrid { batch, heads, queries, keys, block: self.block }
    }

    /// Whether each block is chosen.
    pub(super) fn chosen(&self, case: &AttentionCase) -> Vec<bool> {
        let grid = self.grid(case);
        let count = match self.from {
            MaskSource::Hooks | MaskSource::Heads => 0,
            _ => grid.batch * grid.heads * grid.blocks().iter().product::<usize>(),
        };
        let mut random = SmallRng::seed_from_u64(case.seed + 40);
        let [rows, cols] = grid.blocks();
        if self.by_row && count > 0 {
            let row = |row: usize| {
                let own = grid.own(row % rows).end;
                let some = ((f64::from(self.density) * own as f64) as usize).max(1).min(own);
                let chosen = rand::seq::index::sample(&mut random, own, some).into_vec();
                (0..cols).map(move |j| chosen.contains(&j))
            };
            return (0..grid.batch * grid.heads * rows).flat_map(row).collect();
        }
        (0..count).map(|_| random.random_range(0.0..1.0) < self.density).collect()
    }

    /// Who sees whom; a mask from hooks hides what they hide and nothing else.
    pub(super) fn known<'a>(&'a self, case: &AttentionCase, chosen: &'a [bool]) -> Option<ChosenBlocks<'a>> {
        let grid = self.grid(case);
        let [rows, cols] = grid.blocks();
        let shape = [grid.batch, grid.heads, rows, cols];
        (self.from != MaskSource::Hooks).then_some(ChosenBlocks {
            block: self.block,
            shape,
            chosen,
            group: case.heads.0 / grid.heads.max(1),
            heads: &self.heads,
        })
    }

    /// Lists say of every third block that it is full, where nothing is hidden in any.
    fn has_full(&self, case: &AttentionCase) -> bool {
        let lists = matches!(self.from, MaskSource::HostLists | MaskSource::GpuLists);
        self.from == MaskSource::Hooks
            || (lists && case.mask.is_none() && !case.hooks.iter().any(|hook| hook.is_mask()))
    }

    /// What planning looks at.
    pub(super) fn in_shapes(&self, case: &AttentionCase, shapes: Shapes) -> Shapes {
        match self.from {
            MaskSource::Heads => shapes.heads(&self.heads),
            _ => shapes.block_mask(&self.grid(case), self.has_full(case), &self.heads),
        }
    }

    /// Offsets and indices of every third chosen block, or of the others.
    fn lists(&self, case: &AttentionCase, full: bool) -> [Vec<u32>; 2] {
        let cols = self.grid(case).blocks()[1];
        let (chosen, third) = (self.chosen(case), self.has_full(case));
        let (mut offsets, mut indices) = (vec![0], vec![]);
        for row in chosen.chunks(cols.max(1)) {
            let of_row = (0u32..).zip(row).filter(|&(j, &chosen)| chosen && (third && j % 3 == 0) == full);
            indices.extend(of_row.map(|(j, _)| j));
            offsets.push(indices.len() as u32);
        }
        [offsets, indices]
    }

    pub(super) async fn upload(&self, gpu: &Gpu, case: &AttentionCase) -> Result<BlockMask> {
        let grid = self.grid(case);
        let (partial, full) = (self.lists(case, false), self.has_full(case).then(|| self.lists(case, true)));
        let mask = match self.from {
            MaskSource::Heads => return BlockMask::from_heads(gpu, self.heads.clone()),
            MaskSource::Bits => {
                let [.., words] = grid.shape();
                let cols = grid.blocks()[1];
                let word = |row: &[bool], word: usize| {
                    (0..32)
                        .filter(|bit| row.get(32 * word + bit).copied().unwrap_or(true))
                        .fold(0u32, |x, bit| x | 1 << bit)
                };
                let chosen = self.chosen(case);
                let rows = chosen.chunks(cols.max(1));
                let bits: Vec<u32> = rows.flat_map(|row| (0..words).map(move |i| word(row, i))).collect();
                let bits = Tensor::upload_u32(gpu, &bits).await?;
                BlockMask::from_bits(gpu, grid, &bits.view(Layout::heads_first(DType::U32, grid.shape()))?, None)?
            }
            MaskSource::HostLists => {
                let slices = |[offsets, indices]: &'_ [Vec<u32>; 2]| (offsets.clone(), indices.clone());
                let (partial, full) = (slices(&partial), full.as_ref().map(slices));
                let full = full.as_ref().map(|(offsets, indices)| (&offsets[..], &indices[..]));
                BlockMask::from_host_lists(gpu, grid, (&partial.0, &partial.1), full).await?
            }
            MaskSource::GpuLists => {
                let list = async |[offsets, indices]: &[Vec<u32>; 2]| -> Result<BlockList> {
                    let (offsets, indices) =
                        (Tensor::upload_u32(gpu, offsets).await?, Tensor::upload_u32(gpu, indices).await?);
                    Ok(BlockList { offsets, indices })
                };
                let full = match &full {
                    Some(full) => Some(list(full).await?),
                    None => None,
                };
                BlockMask::from_lists(gpu, grid, &list(&partial).await?, full.as_ref()).await?
            }
            MaskSource::Hooks => BlockMask::from_hooks(gpu, grid, &case.params_on(gpu).await?.mask_mod).await?,
        };
        if self.heads.is_empty() { Ok(mask) } else { mask.with_heads(self.heads.clone()) }
    }
}
