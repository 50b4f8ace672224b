//! What attention is computed of, and where its rows lie.

/// The position of a pair of query and key, which the caller's functions are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Batch entry, or number of the packed sequence.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Position of the query in its sequence.
    pub query: usize,
    /// Position of the key in its sequence.
    pub key: usize,
    /// Queries of the sequence.
    pub queries: usize,
    /// Keys of the sequence.
    pub keys: usize,
}

/// One flash attention problem on the host: contiguous [batch, heads, sequence, head_dim] values.
#[derive(Clone, Copy, Default)]
pub struct FlashProblem<'a> {
    /// Queries [batch, heads_q, queries, head_dim].
    pub q: &'a [f32],
    /// Keys [batch, heads_kv, keys, head_dim].
    pub k: &'a [f32],
    /// Values [batch, heads_kv, keys, value_dim].
    pub v: &'a [f32],
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub heads_q: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Additional keys that every query sees: [batch, heads_kv, any number, head_dim].
    pub additional_k: &'a [f32],
    /// Their values.
    pub additional_v: &'a [f32],
    /// Width of q and k.
    pub head_dim: usize,
    /// Width of v.
    pub value_dim: usize,
    /// The number of queries in each batch entry.
    pub seqlens_q: Option<&'a [usize]>,
    /// The number of keys in each batch entry.
    pub seqlens_k: Option<&'a [usize]>,
    /// Packed sequences in the one batch entry: offsets of the queries and of the keys.
    pub cu_seqlens: Option<[&'a [usize]; 2]>,
    /// Added to the scores: [batch, heads_q, queries, keys]; for packed sequences [sequences, heads_q, longest queries,
    /// longest keys].
    pub bias: Option<&'a [f32]>,
    /// Zero where a key is not seen; shaped likewise.
    pub mask: Option<&'a [f32]>,
    /// Changes a score, after everything else that changes it; −∞ hides the key.
    pub score_mod: Option<&'a dyn Fn(f64, At) -> f64>,
    /// Whether a key is seen, in addition to everything else that hides keys.
    pub mask_mod: Option<&'a dyn Fn(At) -> bool>,
}

impl<'a> FlashProblem<'a> {
    /// q, k and v of these shapes, at full length.
    pub fn new([q, k, v]: [&'a [f32]; 3], [of_q, of_k, of_v]: [[usize; 4]; 3]) -> Self {
        let [batch, heads_q, queries, head_dim] = of_q;
        let [_, heads_kv, keys, _] = of_k;
        let value_dim = of_v[3];
        Self { q, k, v, batch, heads_q, heads_kv, queries, keys, head_dim, value_dim, ..Self::default() }
    }

    /// Additional keys of each head.
    pub(super) fn additional(&self) -> usize {
        self.additional_k.len() / (self.batch * self.heads_kv * self.head_dim).max(1)
    }

    /// Where key `j` of a sequence lies; the additional ones are numbered from `keys` on.
    pub(super) fn key(&self, rows: &Rows, j: usize) -> (&'a [f32], usize) {
        self.place(rows, j, [self.k, self.additional_k], self.head_dim)
    }

    pub(super) fn value(&self, rows: &Rows, j: usize) -> (&'a [f32], usize) {
        self.place(rows, j, [self.v, self.additional_v], self.value_dim)
    }

    fn place(&self, rows: &Rows, j: usize, [own, more]: [&'a [f32]; 2], width: usize) -> (&'a [f32], usize) {
        match j.checked_sub(self.keys) {
            None => (own, (rows.key + j) * width),
            Some(j) => (more, (rows.head * self.additional() + j) * width),
        }
    }
}

/// Where the rows of a query lie.
pub(super) struct Rows {
    /// Row of q, out and LSE.
    pub query: usize,
    /// Row of the sequence's first key.
    pub key: usize,
    /// Batch entry and key head, as one number.
    head: usize,
    /// First element of the query's part of bias and mask.
    pub pairs: usize,
}

/// The rows of one sequence.
struct Sequence {
    entry: usize,
    first_query: usize,
    queries: usize,
    first_key: usize,
    keys: usize,
}

fn sequences(p: &FlashProblem) -> Vec<Sequence> {
    match p.cu_seqlens {
        None => (0..p.batch)
            .map(|b| Sequence {
                entry: b,
                first_query: 0,
                queries: p.seqlens_q.map_or(p.queries, |s| s[b]),
                first_key: 0,
                keys: p.seqlens_k.map_or(p.keys, |s| s[b]),
            })
            .collect(),
        Some([q, k]) => q
            .windows(2)
            .zip(k.windows(2))
            .map(|(q, k)| Sequence {
                entry: 0,
                first_query: q[0],
                queries: q[1] - q[0],
                first_key: k[0],
                keys: k[1] - k[0],
            })
            .collect(),
    }
}

/// Calls `each` for every query of every sequence and head.
pub(super) fn for_each_query(p: &FlashProblem, mut each: impl FnMut(&Rows, At)) {
    let sequences = sequences(p);
    let longest = match p.cu_seqlens {
        None => (p.queries, p.keys),
        Some(_) => sequences.iter().fold((0, 0), |(q, k), s| (q.max(s.queries), k.max(s.keys))),
    };
    for (batch, s) in sequences.iter().enumerate() {
        for head in 0..p.heads_q {
            for query in 0..s.queries {
                let kv_head = s.entry * p.heads_kv + head / (p.heads_q / p.heads_kv);
                let rows = Rows {
                    query: (s.entry * p.heads_q + head) * p.queries + s.first_query + query,
                    key: kv_head * p.keys + s.first_key,
                    head: kv_head,
                    pairs: ((batch * p.heads_q + head) * longest.0 + query) * longest.1,
                };
                each(&rows, At { batch, head, query, key: 0, queries: s.queries, keys: s.keys });
            }
        }
    }
}

pub(super) fn row(values: &[f32], index: usize, width: usize) -> &[f32] {
    &values[index * width..(index + 1) * width]
}

/// Where element `index` of [batch, heads, queries, keys] is found in a bias or mask of this shape, whose dimensions of 1 are repeated.
pub fn place_of(index: usize, pairs: [usize; 4], shape: [usize; 4]) -> usize {
    let (row, key) = (index / pairs[3], index % pairs[3]);
    let at = [row / pairs[2] / pairs[1], row / pairs[2] % pairs[1], row % pairs[2], key];
    at.into_iter().zip(shape).fold(0, |place, (at, count)| place * count + at % count)
}
