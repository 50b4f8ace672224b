//! The values that a case of flash attention works on.

use super::tensors::longest;
use super::{AttentionCase, Scores, normal};
use crate::reference::place_of;
use crate::{DType, Layout};

impl AttentionCase {
    pub(super) fn inputs(&self) -> [Vec<f32>; 3] {
        let [q, k, v] = self.shapes().map(|s| s.iter().product::<usize>());
        let [tq, tk, _] = self.dtypes;
        let d = self.dims.0;
        let amplitude = if let Scores::Normal(a) = self.scores { a } else { 1.0 };
        let mut values = [
            normal(self.seed, q, amplitude, tq),
            normal(self.seed + 1, k, amplitude, tk),
            normal(self.seed + 2, v, 1.0, tk),
        ];
        match &self.scores {
            Scores::Normal(_) => {}
            Scores::Given(given) => values = given.clone(),
            Scores::Around(score) => {
                // q = (√d, noise…), k = (score, noise…): the first products are the score, the rest varies it.
                values[0].chunks_exact_mut(d).for_each(|row| row[0] = tq.round((d as f32).sqrt()));
                values[1].chunks_exact_mut(d).for_each(|row| row[0] = tk.round(*score));
            }
            Scores::Peaked => {
                let (rows, peaks) = (self.lengths.0 * d, self.lengths.1 * d);
                let group = self.heads.0 / self.heads.1;
                for (i, query) in (0..values[0].len() / d).enumerate().filter(|(i, _)| i % 2 == 0) {
                    let head = query * d / rows / group;
                    let key = head * peaks + (i * 7 % self.lengths.1) * d;
                    for e in 0..d {
                        values[0][query * d + e] = tq.round(8.0 * values[1][key + e]);
                    }
                }
            }
        }
        values
    }

    /// The values with NaN in the rows of padding.
    pub(super) fn poison(&self, values: &[f32], shape: [usize; 4], seqlens: Option<&[usize]>) -> Vec<f32> {
        let ([_, heads, length, width], mut poisoned) = (shape, values.to_vec());
        for (row, chunk) in poisoned.chunks_exact_mut(width).enumerate() {
            if seqlens.is_some_and(|s| row % length >= s[row / length / heads]) {
                chunk.fill(f32::NAN);
            }
        }
        poisoned
    }

    /// [batch, heads_q, queries, keys] of a bias or mask.
    pub(super) fn pair_shape(&self) -> [usize; 4] {
        match &self.cu_seqlens {
            None => [self.batch, self.heads.0, self.lengths.0, self.lengths.1],
            Some([q, k]) => [q.len() - 1, self.heads.0, longest(q), longest(k)],
        }
    }

    /// The layout of the bias, before it is repeated.
    pub(super) fn bias_layout(&self) -> Option<Layout> {
        let [bias, _] = self.pair_layouts();
        bias
    }

    /// The layouts of bias and mask, before they are repeated.
    pub(super) fn pair_layouts(&self) -> [Option<Layout>; 2] {
        let shape = self.pair_shape();
        // Masks of every third case have words.
        let of_mask = if self.seed % 3 == 1 { DType::U32 } else { DType::U8 };
        [(self.bias, self.dtypes[1]), (self.mask, of_mask)].map(|(repeated, dtype)| {
            let repeated = repeated?;
            let one = |i: usize| if repeated[i] { shape[i].min(1) } else { shape[i] };
            Some(Layout::heads_first(dtype, std::array::from_fn(one)))
        })
    }

    /// The values of bias and mask. A bias of −∞ and a whole row of masked keys are among them.
    pub(super) fn pairs(&self) -> [Option<[Vec<f32>; 2]>; 2] {
        let pairs = self.pair_shape();
        let mut which = 0..;
        self.pair_layouts().map(|layout| {
            let which: u64 = which.next().expect("endless");
            let Layout { dtype, shape, .. } = layout?;
            let width = shape[3].max(1);
            let stored: Vec<f32> = normal(self.seed + 3 + which, shape.iter().product(), 2.0, DType::F32)
                .into_iter()
                .enumerate()
                .map(|(i, x)| match dtype {
                    DType::U8 | DType::U32 => f32::from(u8::from(x > -1.5 && i / width % 13 != 5)),
                    _ if x < -5.0 || i / width % 17 == 3 => f32::NEG_INFINITY,
                    _ => dtype.round(x),
                })
                .collect();
            let whole = (0..pairs.iter().product()).map(|index| stored[place_of(index, pairs, shape)]).collect();
            Some([stored, whole])
        })
    }
}
