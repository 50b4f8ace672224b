//! What the engine is planned for: tensors that fit together.

use super::Sizes;
use crate::block_mask::BlockMaskShape;
use crate::error::require;
use crate::layout::{MAX_HEAD_DIM, MAX_SEQUENCE};
use crate::lists::{Lists, TokenListShape};
use crate::packed::{self, Lengths, Offsets, Schedule, Side};
use crate::program::{Builder, Operand};
use crate::{DType, Error, Layout, Result, Shapes};

/// The tensors of an attention, and its lengths.
#[derive(Clone, Debug)]
pub(crate) struct AttentionShapes {
    pub q: Operand,
    pub k: Operand,
    pub v: Operand,
    pub out: Option<Operand>,
    pub lse: Operand,
    pub bias: Option<Operand>,
    pub mask: Option<Operand>,
    pub additional: Option<[Operand; 2]>,
    pub seqlens_q: Option<Lengths>,
    pub seqlens_k: Option<Lengths>,
    /// Rows to a query: heads may be rows too.
    pub query_rows: usize,
    /// Packed sequences: both sides.
    pub packed: Option<[Offsets; 2]>,
    pub block_mask: Option<BlockMaskShape>,
    pub token_lists: Option<TokenListShape>,
}

/// As wide as u, for the keys: a row of zeros.
fn no_values(builder: &mut Builder, k: &Operand) -> Result<Operand> {
    let ([batch, heads, keys, _], [.., width]) = (k.shape(), builder.input("u")?.shape());
    let row = builder.scratch("no values", Layout::heads_first(DType::F32, [1, 1, 1, width]))?;
    Ok(row.view(row.layout.clone().expand([batch, heads, keys, width])?))
}

/// What becomes of out and lse.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outputs {
    Written,
    Read,
    /// The log-sum-exp is read, the output is not there.
    LseRead,
    /// The same, and `u` stands in for the output; nothing reads values.
    Transposed,
}

impl AttentionShapes {
    /// Those of a call. Nothing is checked yet but whether they are there.
    pub fn new(builder: &mut Builder, shapes: &Shapes, outputs: Outputs) -> Result<Self> {
        let [q, k] = [builder.input("q")?, builder.input("k")?];
        let v = match outputs {
            Outputs::Transposed => no_values(builder, &k)?,
            _ => builder.input("v")?,
        };
        let [batch, heads, queries, _] = q.shape();
        let (out, lse) = match outputs {
            Outputs::Written => {
                let of_out = Layout::heads_first(q.layout.dtype, [batch, heads, queries, v.shape()[3]]);
                let of_lse = Layout::heads_first(DType::F32, [batch, heads, queries, 1]);
                (Some(builder.output("out", of_out)?), builder.output("lse", of_lse)?)
            }
            Outputs::Read => (Some(builder.input("out")?), builder.input("lse")?),
            Outputs::LseRead => (None, builder.input("lse")?),
            Outputs::Transposed => (Some(builder.input("u")?), builder.input("lse")?),
        };
        let (additional_k, additional_v) = (builder.tensor("additional_k"), builder.tensor("additional_v"));
        for (name, given, other) in [
            ("additional_k", additional_k.is_some(), "additional_v"),
            ("additional_v", additional_v.is_some(), "additional_k"),
        ] {
            let fits = given || (additional_k.is_none() && additional_v.is_none());
            require(fits, name, "unset", format!("set, as {other} is"))?;
        }
        let [seqlens_q, seqlens_k] = packed::lengths(builder, shapes)?;
        Ok(Self {
            seqlens_q,
            seqlens_k,
            query_rows: 1,
            packed: packed::offsets(builder, shapes, [q.shape()[2], k.shape()[2]])?,
            bias: builder.tensor("bias"),
            mask: builder.tensor("mask"),
            additional: additional_k.zip(additional_v).map(|(k, v)| [k, v]),
            block_mask: BlockMaskShape::new(builder, shapes)?,
            token_lists: TokenListShape::new(builder, shapes)?,
            q,
            k,
            v,
            out,
            lse,
        })
    }

    /// Queries and keys alone.
    pub fn of_tokens(q: &Operand, k: &Operand, [seqlens_q, seqlens_k]: [Option<Lengths>; 2]) -> Self {
        let [batch, heads, queries, _] = q.shape();
        Self {
            lse: q.view(Layout::heads_first(DType::F32, [batch, heads, queries, 1])),
            q: q.clone(),
            k: k.clone(),
            v: k.clone(),
            out: None,
            bias: None,
            mask: None,
            additional: None,
            seqlens_q,
            seqlens_k,
            query_rows: 1,
            packed: None,
            block_mask: None,
            token_lists: None,
        }
    }

    /// The lengths of both sides.
    pub fn lengths(&self) -> [Option<&Lengths>; 2] {
        [self.seqlens_q.as_ref(), self.seqlens_k.as_ref()]
    }

    /// Where the sequences are, for tiles of `tile` rows of a side. What is wrong with lengths on the GPU is told by a check, if
    /// `checked`.
    pub fn schedule(
        &self,
        builder: &mut Builder,
        pass: &str,
        (side, tile): (Side, usize),
        checked: bool,
    ) -> Result<Schedule> {
        let rows = [self.rows(Side::Queries), self.rows(Side::Keys)];
        match &self.packed {
            Some(sides) => Schedule::packed(builder, pass, sides, rows, (side, tile), checked),
            None => {
                let (batch, rows) = (self.q.shape()[0], [rows[0] / self.query_rows, rows[1]]);
                Schedule::padded(builder, pass, self.lengths(), (batch, rows), self.query_rows, checked)
            }
        }
    }

    /// (first query, queries, first key, keys) of each sequence.
    ///
    /// # Errors
    /// [`Error::Argument`] for lengths that only the GPU sees.
    pub fn host_sequences(&self) -> Result<Vec<[u32; 4]>> {
        let on_gpu = |name: &str| Error::argument(name, "on the GPU", "on the host: this plan depends on the lengths");
        let ([batch, _, queries, _], lengths) = (self.q.shape(), self.lengths());
        match &self.packed {
            Some([Offsets::Host(q), Offsets::Host(k)]) => Ok(packed::host_sequences(q, k)),
            Some(_) => Err(on_gpu("cu_seqlens_q")),
            None if matches!(lengths[0], Some(Lengths::Gpu(_))) => Err(on_gpu("seqlens_q")),
            None if matches!(lengths[1], Some(Lengths::Gpu(_))) => Err(on_gpu("seqlens_k")),
            None => {
                let rows = [queries, self.k.shape()[2]];
                Ok((0..batch).map(|b| packed::padded_sequence(lengths, rows, 1, b)).collect())
            }
        }
    }

    /// The shape of the bias without what is only repeated: that of its gradient.
    pub fn bias_shape(&self) -> [usize; 4] {
        let pairs = self.pairs();
        let once = |i: usize, bias: &Layout| match i {
            3 => bias.shape[3],
            _ if bias.strides[i] == 0 => pairs[i].min(1),
            _ => pairs[i],
        };
        self.bias.as_ref().map_or([0; 4], |bias| std::array::from_fn(|i| once(i, &bias.layout)))
    }

    /// The chosen and the full blocks.
    pub fn blocks(&self) -> [Option<&Operand>; 2] {
        self.block_mask.as_ref().map_or([None, None], |mask| [mask.chosen.as_ref(), mask.full.as_ref()])
    }

    /// Query heads to a head of the block mask.
    pub fn block_group(&self) -> usize {
        self.block_mask.as_ref().map_or(1, |mask| mask.group(self.q.shape()[1]))
    }

    /// The lists of tokens, and query heads to one of their heads.
    pub fn list_tokens(&self) -> Option<(&Operand, usize)> {
        self.token_lists.as_ref().map(|lists| (&lists.tokens, lists.group(self.q.shape()[1])))
    }

    /// With lists of tokens as attention reads them, and, for gradients, as a block mask; the dispatches that make them.
    pub fn with_ready_lists(self, builder: &mut Builder, for_gradients: bool) -> Result<(Self, Vec<usize>)> {
        let Some(lists) = &self.token_lists else { return Ok((self, vec![])) };
        let (lists, mut first) = Lists::new(builder, lists, [Side::Queries, Side::Keys].map(|side| self.rows(side)))?;
        let mut found = Self { token_lists: Some(lists.ready()), ..self };
        if for_gradients {
            let (mask, bits) = lists.bits(builder)?;
            first.extend(bits);
            found.block_mask = Some(mask);
        }
        Ok((found, first))
    }

    /// # Errors
    /// [`Error::Argument`] where there are lists of tokens.
    pub fn has_no_token_lists(&self) -> Result<()> {
        require(self.token_lists.is_none(), "token_lists", "set", "unset: only `TokenListAttention` takes them")
    }

    /// Elements of a bias or mask from one key to the next: 0 where it has one for all keys.
    pub fn key_step(&self, pairs: Option<&Operand>) -> u32 {
        u32::from(pairs.is_some_and(|pairs| pairs.shape()[3] == self.pairs()[3]))
    }

    /// [batch, heads_q, queries, keys] of a bias or mask.
    pub fn pairs(&self) -> [usize; 4] {
        let [batch, heads, queries, _] = self.q.shape();
        match &self.packed {
            None => [batch, heads, queries, self.k.shape()[2]],
            Some([q, k]) => [q.sequences(), heads, q.max_seqlen(), k.max_seqlen()],
        }
    }

    /// What tile sizes are chosen by, for a family whose files use `beside` bytes of workgroup memory a row.
    pub fn sizes<'a>(&self, what: &'a str, beside: u32) -> Sizes<'a> {
        let dims = [self.q.shape()[3], self.v.shape()[3]];
        let pairs: f64 = self.pairs().iter().map(|&n| n as f64).product();
        Sizes { what, dims, beside, flops: 2.0 * pairs * (dims[0] + dims[1]) as f64 }
    }

    /// Rows of a side.
    pub fn rows(&self, side: Side) -> usize {
        match side {
            Side::Queries => self.q.shape()[2],
            Side::Keys => self.k.shape()[2],
        }
    }

    /// Shapes that fit together, lengths within the tensors, outputs that can be written.
    pub fn check(&self) -> Result<()> {
        let Self { q, k, v, lse, .. } = self;
        let [batch, heads_q, queries, head_dim] = q.shape();
        let [_, heads_kv, keys, _] = k.shape();
        let same = |what: &str, value: usize, with: &str, expected: usize| {
            require(value == expected, what, value, format!("{expected}, as in {with}"))
        };
        for (what, value) in [("q.shape[3] (head_dim)", head_dim), ("v.shape[3] (value width)", v.shape()[3])] {
            require((1..=MAX_HEAD_DIM).contains(&value), what, value, format!("within 1..={MAX_HEAD_DIM}"))?;
        }
        for (what, value) in [("q.shape[2] (queries)", queries), ("k.shape[2] (keys)", keys)] {
            require(value <= MAX_SEQUENCE, what, value, format!("at most {MAX_SEQUENCE}"))?;
        }
        require(heads_kv > 0, "k.shape[1] (heads_kv)", heads_kv, "at least 1")?;
        let multiple = format!("a multiple of heads_kv = {heads_kv}, but not 0");
        require(heads_q > 0 && heads_q.is_multiple_of(heads_kv), "q.shape[1] (heads_q)", heads_q, multiple)?;
        same("k.shape[0] (batch)", k.shape()[0], "q", batch)?;
        same("k.shape[3] (head_dim)", k.shape()[3], "q", head_dim)?;
        same("v.shape[0] (batch)", v.shape()[0], "q", batch)?;
        same("v.shape[1] (heads_kv)", v.shape()[1], "k", heads_kv)?;
        same("v.shape[2] (keys)", v.shape()[2], "k", keys)?;
        if let Some(out) = &self.out {
            let rows = [batch, heads_q, queries, v.shape()[3]];
            let bound = format!("{rows:?}, to match q and v");
            require(out.shape() == rows, "out.shape", format!("{:?}", out.shape()), bound)?;
        }
        let rows = format!("[{batch}, {heads_q}, {queries}, 1], to match q");
        require(lse.shape() == [batch, heads_q, queries, 1], "lse.shape", format!("{:?}", lse.shape()), rows)?;
        require(lse.layout.dtype == DType::F32, "lse.dtype", lse.layout.dtype, "f32")?;
        self.check_packed()?;
        packed::check_lengths(self.lengths(), batch, [queries, keys])?;
        let floats = [("q", Some(q)), ("k", Some(k)), ("v", Some(v)), ("out", self.out.as_ref())];
        for (name, operand) in floats.into_iter().chain([("bias", self.bias.as_ref())]) {
            let dtype = operand.map_or(DType::F32, |operand| operand.layout.dtype);
            require(dtype.is_float(), &format!("{name}.dtype"), dtype, "f32, f16 or bf16")?;
        }
        let pairs = self.pairs();
        for (name, operand) in [("bias", &self.bias), ("mask", &self.mask)] {
            let shape = operand.as_ref().map_or(pairs, Operand::shape);
            let bound = format!("{pairs:?}, to match q and k; `Layout::expand` repeats dimensions of 1");
            let fits = shape[..3] == pairs[..3] && [1, pairs[3]].contains(&shape[3]);
            require(fits, &format!("{name}.shape"), format!("{shape:?}"), bound)?;
        }
        let mask = self.mask.as_ref().map_or(DType::U8, |mask| mask.layout.dtype);
        require([DType::U8, DType::U32].contains(&mask), "mask.dtype", mask, "u8 or u32")?;
        self.check_additional()?;
        let more = [&self.bias, &self.mask, &self.out].into_iter().flatten().chain(self.additional.iter().flatten());
        for operand in [q, k, v, lse].into_iter().chain(more) {
            operand.layout.byte_span()?;
        }
        Ok(())
    }

    fn check_packed(&self) -> Result<()> {
        let Some(sides) = &self.packed else { return Ok(()) };
        for (name, lengths) in [("seqlens_q", &self.seqlens_q), ("seqlens_k", &self.seqlens_k)] {
            require(lengths.is_none(), name, "set", "unset with cu_seqlens_q and cu_seqlens_k: they give the lengths")?;
        }
        let batch = self.q.shape()[0];
        require(batch == 1, "q.shape[0] (batch)", batch, "1 with packed sequences")?;
        packed::check(sides, [self.q.shape()[2], self.k.shape()[2]])
    }

    fn check_additional(&self) -> Result<()> {
        let Some([k, v]) = &self.additional else { return Ok(()) };
        require(self.packed.is_none(), "additional_k", "set", "unset with packed sequences")?;
        for (name, operand, like) in [("additional_k", k, &self.k), ("additional_v", v, &self.v)] {
            let [batch, heads, _, width] = like.shape();
            let (count, found) = (k.shape()[2], operand.shape());
            let bound = format!("[{batch}, {heads}, {count}, {width}], to match k and v");
            let fits = found == [batch, heads, count, width];
            require(fits, &format!("{name}.shape"), format!("{found:?}"), bound)?;
            let dtype = operand.layout.dtype;
            require(dtype.is_float(), &format!("{name}.dtype"), dtype, "f32, f16 or bf16")?;
        }
        Ok(())
    }

    /// The additional keys, seen by every query, with the same outputs.
    pub fn additional_part(&self) -> Option<Self> {
        let [k, v] = self.additional.clone()?;
        Some(Self {
            k,
            v,
            bias: None,
            mask: None,
            additional: None,
            seqlens_k: None,
            packed: None,
            block_mask: None,
            token_lists: None,
            ..self.clone()
        })
    }
}
