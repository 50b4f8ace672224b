//! Cases of attention over lists of tokens, and random ones.

use super::data::DTYPES;
use super::{AttentionCase, BackwardCase, KnownHook, Scores, TokenListCase, random_flash_cases};
use crate::reference::{ChosenBlocks, listed_tokens};
use crate::{Causal, DType, FlashParams, Gpu, Layout, Result, Shapes, Tensor, Window};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

impl TokenListCase {
    /// In short.
    pub(super) fn name(&self) -> String {
        format!(" lists of {} a block of {}", self.capacity, self.block)
    }

    /// [batch or 1, heads, key heads or 1, lists, capacity].
    fn shape(&self, case: &AttentionCase) -> [usize; 4] {
        let heads = if self.by_key_head { case.heads.1 } else { case.heads.0 };
        let one = |repeated: bool, count: usize| if repeated { count.min(1) } else { count };
        let lists = case.lengths.0.div_ceil(self.block);
        [one(self.repeated[0], case.batch), one(self.repeated[1], heads), lists, self.capacity]
    }

    /// The lists. Behind the end of one there is anything.
    fn tokens(&self, case: &AttentionCase) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(case.seed + 60);
        let (keys, most) = (case.lengths.1, self.capacity.min(case.lengths.1));
        let list = |_| {
            let length = match random.random_range(0..6) {
                _ if self.whole => most,
                0 => 0,
                1 => most,
                _ => random.random_range(0..=most),
            };
            let mut tokens = rand::seq::index::sample(&mut random, keys, length).into_vec();
            tokens.sort_unstable();
            let behind = (length..self.capacity).map(|i| if i == length { u32::MAX } else { i as u32 % 3 });
            tokens.into_iter().map(|token| token as u32).chain(behind).collect::<Vec<_>>()
        };
        let [batch, heads, lists, _] = self.shape(case);
        (0..batch * heads * lists).flat_map(list).collect()
    }

    /// Whether each list has each key.
    pub(super) fn listed(&self, case: &AttentionCase) -> Vec<bool> {
        if self.capacity == 0 {
            return vec![false; self.shape(case)[..3].iter().product::<usize>() * case.lengths.1];
        }
        listed_tokens(&self.tokens(case), self.capacity, case.lengths.1)
    }

    /// Who sees whom: a list is a row of blocks of one key.
    pub(super) fn known<'a>(&self, case: &AttentionCase, listed: &'a [bool]) -> ChosenBlocks<'a> {
        let [batch, heads, lists, _] = self.shape(case);
        let shape = [batch, heads, lists, case.lengths.1];
        ChosenBlocks { block: [self.block, 1], shape, chosen: listed, group: case.heads.0 / heads.max(1), heads: &[] }
    }

    /// What planning looks at.
    pub(super) fn in_shapes(&self, case: &AttentionCase, shapes: Shapes) -> Shapes {
        let tokens = Layout::heads_first(DType::U32, self.shape(case));
        shapes.tensor("token_lists.tokens", tokens).numbers("token_lists.block", [self.block])
    }

    pub(super) async fn upload(&self, gpu: &Gpu, case: &AttentionCase) -> Result<Tensor> {
        let tokens = Tensor::upload_u32(gpu, &self.tokens(case)).await?;
        tokens.view(Layout::heads_first(DType::U32, self.shape(case)))
    }

    /// NaN in the rows of k or v that no list names.
    pub(super) fn forget_others(&self, case: &AttentionCase, mut values: Vec<f32>, width: usize) -> Vec<f32> {
        let (listed, keys) = (self.listed(case), case.lengths.1);
        let [batch, heads, lists, _] = self.shape(case);
        let (heads_q, heads_kv) = case.heads;
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            let [b, h, key] = [row / keys / heads_kv, row / keys % heads_kv, row % keys];
            let of_head = |q: usize| q / (heads_q / heads_kv) == h;
            let names = |q: usize| {
                let list = (b % batch) * heads + q / (heads_q / heads);
                (list * lists..(list + 1) * lists).any(|list| listed[list * keys + key])
            };
            if !(0..heads_q).filter(|&q| of_head(q)).any(names) {
                values.fill(f32::NAN);
            }
        }
        values
    }
}

/// The catalogue: sizes of blocks and lists around those of tiles, causal and not, heads that share lists, decoding, lengths, every type,
/// hooks, bias and mask.
pub fn token_list_cases() -> Vec<AttentionCase> {
    use KnownHook::{Fields, Prefix, Relative, Stripes, TanhCap};
    let mut cases = Vec::new();
    let mut add = |lists: TokenListCase, case: AttentionCase| {
        let i = cases.len() as u64;
        let scores = Scores::Normal([1.0, 3.0, 6.0][i as usize % 3]);
        cases.push(AttentionCase { scores, seed: 21000 + 51 * i, token_lists: Some(lists), dims: (32, 32), ..case });
    };
    let causal = |diagonal| FlashParams { causal: diagonal, ..FlashParams::default() };
    let diagonals = [None, Some(Causal::BottomRight), Some(Causal::TopLeft)];
    for (i, (block, capacity)) in
        [(1, 40), (2, 64), (8, 65), (16, 130), (64, 200), (128, 1), (256, 300)].into_iter().enumerate()
    {
        for diagonal in &diagonals[i % 2..][..2] {
            let lists = TokenListCase { block, capacity, by_key_head: i % 3 == 1, ..Default::default() };
            let lengths = [(100, 210), (150, 331), (230, 140)][i % 3];
            let params = causal(*diagonal);
            add(
                lists,
                AttentionCase { label: "lists", batch: 2, heads: (4, 2), lengths, params, ..AttentionCase::default() },
            );
        }
    }
    // Heads that share a key head as rows of one tile, or not; lists in parts.
    for (i, (heads, lengths, capacity, by_key_head)) in [
        ((8, 2), (1, 900), 300, true),
        ((6, 1), (1, 700), 129, true),
        ((24, 1), (1, 500), 128, true),
        ((4, 4), (1, 600), 400, false),
        ((4, 2), (1, 500), 200, false),
        ((4, 2), (5, 700), 260, true),
    ]
    .into_iter()
    .enumerate()
    {
        let seqlens_k = (i % 2 == 0).then(|| vec![lengths.1, lengths.1 / 2 + 1, 0]);
        let lists = TokenListCase {
            block: if lengths.0 == 1 { 1 } else { 8 },
            capacity,
            whole: i == 0,
            by_key_head,
            repeated: [i == 2, i == 1],
        };
        let params = causal(diagonals[i % 2]);
        let on_gpu = i % 4 == 0;
        add(
            lists,
            AttentionCase {
                label: "decode",
                batch: 3,
                heads,
                lengths,
                params,
                seqlens_k,
                on_gpu,
                ..AttentionCase::default()
            },
        );
    }
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let lists =
            TokenListCase { block: [4, 32, 1][i], capacity: 90, repeated: [i == 0, true], ..Default::default() };
        let case = AttentionCase {
            label: "types",
            heads: (4, 1),
            lengths: (70, 190),
            strided: i == 1,
            heads_last: i == 2,
            additional: [0, 5, 70][i],
            params: FlashParams { softcap: Some(20.0), ..causal(diagonals[i]) },
            ..AttentionCase::default().of_type(dtype)
        };
        add(lists, case);
    }
    let padding = AttentionCase {
        label: "lists",
        batch: 4,
        lengths: (90, 140),
        seqlens_q: Some(vec![90, 1, 0, 65]),
        seqlens_k: Some(vec![140, 64, 3, 0]),
        on_gpu: true,
        params: causal(diagonals[1]),
        ..AttentionCase::default()
    };
    add(TokenListCase { block: 16, capacity: 80, ..Default::default() }, padding);
    for (hooks, bias, mask) in
        [(vec![Relative, Prefix, Fields], false, false), (vec![Stripes, TanhCap], true, false), (vec![], false, true)]
    {
        let repeated = |is: bool| is.then_some([true, false, false, false]);
        let case = AttentionCase {
            label: "hooks",
            heads: (4, 2),
            lengths: (100, 260),
            hooks,
            bias: repeated(bias),
            mask: repeated(mask),
            ..AttentionCase::default()
        };
        add(TokenListCase { block: 32, capacity: 150, ..Default::default() }, case);
    }
    for (lengths, capacity) in [((70, 0), 5), ((0, 70), 5), ((20, 70), 0), ((9, 70), 100)] {
        let lists = TokenListCase { block: 4, capacity, ..Default::default() };
        add(lists, AttentionCase { label: "few", lengths, ..AttentionCase::default() });
    }
    cases
}

/// The gradients of the catalogue.
pub fn token_list_backward_cases() -> Vec<BackwardCase> {
    token_list_cases().into_iter().map(BackwardCase::of).collect()
}

/// Decoding over a long cache.
pub(super) fn typical() -> AttentionCase {
    let token_lists = Some(TokenListCase { capacity: 1024, whole: true, by_key_head: true, ..Default::default() });
    AttentionCase { heads: (32, 8), lengths: (1, 16384), dims: (128, 128), token_lists, ..AttentionCase::default() }
}

/// Random shapes, lists, params, types, lengths and layouts: at most 2·10⁷ multiply-adds each.
pub fn random_token_list_cases(count: usize, seed: u64) -> Vec<AttentionCase> {
    random_flash_cases(count, seed).into_iter().map(with_lists).collect()
}

/// The gradients of random cases.
pub fn random_token_list_backward_cases(count: usize, seed: u64) -> Vec<BackwardCase> {
    random_token_list_cases(count, seed).into_iter().map(BackwardCase::of).collect()
}

/// A flash case over lists, without what these do not go with, and within the eight storage buffers that every device has: lists take one.
fn with_lists(case: AttentionCase) -> AttentionCase {
    let mut random = SmallRng::seed_from_u64(case.seed);
    let r = &mut random;
    let lists = TokenListCase {
        block: 1 << r.random_range(0..=8),
        capacity: *[1, 30, 64, 150, 400].choose(r).expect("five"),
        whole: r.random_range(0..4) == 0,
        repeated: [(); 2].map(|()| r.random_range(0..3) == 0),
        by_key_head: r.random_range(0..2) == 0,
    };
    let mut hooks = case.hooks.clone();
    hooks.retain(|hook| !matches!(hook, KnownHook::Relative | KnownHook::Documents(_)));
    AttentionCase {
        params: FlashParams { window: Window::default(), alibi_slopes: None, ..case.params.clone() },
        bias: case.bias.filter(|_| hooks.is_empty() && case.mask.is_none()),
        mask: case.mask.filter(|_| hooks.is_empty()),
        cu_seqlens: None,
        dtypes: if case.seed.is_multiple_of(2) { [DType::F32; 3] } else { case.dtypes },
        hooks,
        token_lists: Some(lists),
        known: Default::default(),
        ..case
    }
}
