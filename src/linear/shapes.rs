//! What linear attention reads and writes.

use super::LinearParams;
use super::parts::Part;
#[cfg(doc)]
use crate::Error;
use crate::arguments::number_buffers;
use crate::error::{require, require_set};
use crate::packed::check_offsets;
use crate::softmax::{MAX_HEAD_DIM, MAX_SEQUENCE, check_lengths};
use crate::steps::{Places, Tensors};
use crate::{DType, Layout, Result, Tensor};

/// What linear attention reads. Heads of the state are the most that q, k and v have; each of them has as many or a divisor of that
/// (grouped queries, grouped values).
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs<'a> {
    /// Queries [batch, heads of its own, tokens, head_dim].
    pub q: &'a Tensor,
    /// Keys [batch, heads of its own, tokens, head_dim].
    pub k: &'a Tensor,
    /// Values [batch, heads of its own, tokens, value_dim].
    pub v: &'a Tensor,
    /// A gate for each token, the natural logarithm of what stays: at most 0, [batch, heads, tokens, 1]. A positive gate or a NaN
    /// counts as 0, and makes reading a result an error.
    pub g: Option<&'a Tensor>,
    /// The state to begin with, f32 [batch or sequences, heads, head_dim, value_dim]. Unset: 0.
    pub h0: Option<&'a Tensor>,
    /// Tokens of each batch entry; the rest is padding, and its output is left alone.
    pub seqlens: Option<&'a [usize]>,
    /// Packed sequences: batch is 1, and sequence i has the rows `[cu_seqlens[i], cu_seqlens[i + 1])`, and a state of its own.
    pub cu_seqlens: Option<&'a [u32]>,
}

impl<'a> LinearInputs<'a> {
    /// Without gates, from an empty state, in full length.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self { q, k, v, g: None, h0: None, seqlens: None, cu_seqlens: None }
    }

    /// The tensors by their names.
    pub(super) fn given(&self) -> Vec<(&'static str, &'a Tensor)> {
        let optional = [("g", self.g), ("h0", self.h0)];
        let optional = optional.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
        [("q", self.q), ("k", self.k), ("v", self.v)].into_iter().chain(optional).collect()
    }
}

/// Where the last state goes.
#[derive(Clone, Copy, Debug)]
pub enum LinearState<'a> {
    /// Nowhere.
    Unwanted,
    /// Into a tensor of its own, f32 [batch or sequences, heads, head_dim, value_dim].
    Written(&'a Tensor),
    /// Where it came from: the tensor holds the state before, and then the one after. `h0` is unset.
    InPlace(&'a Tensor),
}

impl<'a> LinearState<'a> {
    pub(super) fn tensor(&self) -> Option<&'a Tensor> {
        match *self {
            LinearState::Unwanted => None,
            LinearState::Written(tensor) | LinearState::InPlace(tensor) => Some(tensor),
        }
    }
}

/// What linear attention writes.
#[derive(Clone, Copy, Debug)]
pub struct LinearOutputs<'a> {
    /// [batch, heads, tokens, value_dim], of any type.
    pub o: &'a Tensor,
    /// The last state.
    pub state: LinearState<'a>,
    /// The state after every token, f32 [batch or sequences, heads, tokens · head_dim, value_dim]: rows
    /// [n · head_dim, (n + 1) · head_dim) after token n in the order of the walk, for speculative decoding to roll back to.
    pub snapshots: Option<&'a Tensor>,
}

/// Types, shapes and strides of linear attention's tensors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearShapes {
    /// Queries.
    pub q: Layout,
    /// Keys.
    pub k: Layout,
    /// Values.
    pub v: Layout,
    /// Gates of tokens.
    pub g: Option<Layout>,
    /// The state to begin with.
    pub h0: Option<Layout>,
    /// Tokens of each batch entry.
    pub seqlens: Option<Vec<usize>>,
    /// Packed sequences.
    pub cu_seqlens: Option<Vec<u32>>,
    /// The output.
    pub o: Layout,
    /// The last state.
    pub ht: Option<Layout>,
    /// The state after every token.
    pub snapshots: Option<Layout>,
    /// Whether it is the one to begin with, too.
    pub in_place: bool,
    /// Which of q, k, v, g, h0, o, ht, snapshots lie in one buffer: those with the same number.
    pub buffers: [usize; 8],
}

/// In the order of [`LinearShapes::buffers`].
const SLOTS: [Part; 8] = [Part::Q, Part::K, Part::V, Part::G, Part::H0, Part::O, Part::Ht, Part::Snapshots];

fn slots<'a>(inputs: &LinearInputs<'a>, to: &LinearOutputs<'a>) -> [Option<&'a Tensor>; 8] {
    let LinearInputs { q, k, v, g, h0, .. } = *inputs;
    [Some(q), Some(k), Some(v), g, h0, Some(to.o), to.state.tensor(), to.snapshots]
}

/// The tensors of a call.
pub(super) fn tensors<'a>(inputs: &LinearInputs<'a>, to: &LinearOutputs<'a>) -> Tensors<'a, Part> {
    SLOTS.into_iter().zip(slots(inputs, to)).filter_map(|(part, tensor)| Some((part, tensor?))).collect()
}

impl LinearShapes {
    /// A buffer for each, in full length, the output of v's type, with or without the last state.
    pub fn new(q: Layout, k: Layout, v: Layout, state: bool) -> Self {
        let buffers = std::array::from_fn(|i| i);
        let (g, h0, seqlens, cu_seqlens, o, ht, snapshots) = (None, None, None, None, v.clone(), None, None);
        Self { q, k, v, g, h0, seqlens, cu_seqlens, o, ht, snapshots, in_place: false, buffers }.with_outputs(state)
    }

    /// With outputs of their own, by these inputs.
    pub fn with_outputs(mut self, state: bool) -> Self {
        let [batch, _, tokens, _] = self.q.shape;
        self.o = Layout::heads_first(self.v.dtype, [batch, self.heads(), tokens, self.v.shape[3]]);
        self.ht = state.then(|| Layout::heads_first(DType::F32, self.state_shape()));
        self
    }

    /// As the inputs are, with outputs of their own.
    pub fn of_inputs(inputs: &LinearInputs, state: bool) -> Self {
        let layout = |tensor: &Tensor| tensor.layout().clone();
        let new = Self::new(layout(inputs.q), layout(inputs.k), layout(inputs.v), state);
        let (seqlens, cu_seqlens) = (inputs.seqlens.map(<[_]>::to_vec), inputs.cu_seqlens.map(<[_]>::to_vec));
        Self { g: inputs.g.map(layout), h0: inputs.h0.map(layout), seqlens, cu_seqlens, ..new }.with_outputs(state)
    }

    /// As the tensors are.
    pub fn of(inputs: &LinearInputs, to: &LinearOutputs) -> Self {
        let layout = |tensor: &Tensor| tensor.layout().clone();
        Self {
            o: layout(to.o),
            ht: to.state.tensor().map(layout),
            snapshots: to.snapshots.map(layout),
            in_place: matches!(to.state, LinearState::InPlace(_)),
            buffers: number_buffers(slots(inputs, to)),
            ..Self::of_inputs(inputs, false)
        }
    }

    /// Heads of the state.
    pub(super) fn heads(&self) -> usize {
        [&self.q, &self.k, &self.v].into_iter().map(|layout| layout.shape[1]).max().unwrap_or(0)
    }

    /// [batch or sequences, heads, head_dim, value_dim].
    pub(super) fn state_shape(&self) -> [usize; 4] {
        let entries = self.cu_seqlens.as_ref().map_or(self.q.shape[0], |offsets| offsets.len().saturating_sub(1));
        [entries, self.heads(), self.q.shape[3], self.v.shape[3]]
    }

    /// [batch or sequences, heads, tokens · head_dim, value_dim].
    pub(super) fn snapshots_shape(&self) -> [usize; 4] {
        let [entries, heads, head_dim, value_dim] = self.state_shape();
        let longest = self.sequences().iter().map(|sequence| sequence[1] as usize).max().unwrap_or(0);
        [entries, heads, longest * head_dim, value_dim]
    }

    pub(super) fn snapshots_layout(&self) -> Layout {
        Layout::heads_first(DType::F32, self.snapshots_shape())
    }

    /// # Errors
    /// [`Error::Argument`] for what other shapes have, or have not. (Layouts are checked tensor by tensor.)
    pub(super) fn check_as_prepared(&self, given: &Self) -> Result<()> {
        for (name, given, prepared) in [
            ("g", given.g.is_some(), self.g.is_some()),
            ("h0", given.h0.is_some(), self.h0.is_some()),
            ("state", given.ht.is_some(), self.ht.is_some()),
            ("snapshots", given.snapshots.is_some(), self.snapshots.is_some()),
        ] {
            require_set(name, given, prepared, "as prepared")?;
        }
        let bound = format!("in place: {}, as prepared", self.in_place);
        require(given.in_place == self.in_place, "state", format!("in place: {}", given.in_place), bound)?;
        for (name, same, value) in [
            ("seqlens", given.seqlens == self.seqlens, format!("{:?}", given.seqlens)),
            ("cu_seqlens", given.cu_seqlens == self.cu_seqlens, format!("{:?}", given.cu_seqlens)),
        ] {
            require(same, name, value, "as prepared")?;
        }
        Ok(())
    }

    /// Where each tensor lies.
    pub(super) fn places(&self) -> Places<Part> {
        let Self { q, k, v, g, h0, o, ht, snapshots, .. } = self;
        let all = [Some(q), Some(k), Some(v), g.as_ref(), h0.as_ref(), Some(o), ht.as_ref(), snapshots.as_ref()];
        let mut places = Places::default();
        for ((part, layout), buffer) in SLOTS.into_iter().zip(all).zip(self.buffers) {
            if let Some(layout) = layout {
                places = places.with(part, layout, buffer);
            }
        }
        places
    }

    /// (first row, tokens) of each batch entry or sequence.
    pub(super) fn sequences(&self) -> Vec<[u32; 4]> {
        let [batch, _, tokens, _] = self.q.shape;
        match (&self.cu_seqlens, &self.seqlens) {
            (Some(offsets), _) => offsets.windows(2).map(|w| [w[0], w[1] - w[0], 0, 0]).collect(),
            (None, Some(lengths)) => lengths.iter().map(|&length| [0, length as u32, 0, 0]).collect(),
            (None, None) => vec![[0, tokens as u32, 0, 0]; batch],
        }
    }

    /// # Errors
    /// [`Error::Argument`] for what does not fit together.
    pub(super) fn check(&self, params: &LinearParams) -> Result<()> {
        params.check()?;
        let Self { q, k, v, g, h0, o, ht, snapshots, .. } = self;
        let ([batch, _, tokens, head_dim], value_dim, heads) = (q.shape, v.shape[3], self.heads());
        for (what, value) in [("q.shape[3] (head_dim)", head_dim), ("v.shape[3] (value width)", value_dim)] {
            require((1..=MAX_HEAD_DIM).contains(&value), what, value, format!("within 1..={MAX_HEAD_DIM}"))?;
        }
        require(tokens <= MAX_SEQUENCE, "q.shape[2] (tokens)", tokens, format!("at most {MAX_SEQUENCE}"))?;
        for (name, layout, width) in [("q", q, head_dim), ("k", k, head_dim), ("v", v, value_dim)] {
            let own = layout.shape[1];
            let bound = format!("a divisor of {heads}, the most heads of q, k and v");
            require(own > 0 && heads.is_multiple_of(own), &format!("{name}.shape[1] (heads)"), own, bound)?;
            let wanted = [batch, own, tokens, width];
            let bound = format!("{wanted:?}, by q");
            require(layout.shape == wanted, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
        }
        self.check_lengths(batch, tokens)?;
        let (rows, state) = ([batch, heads, tokens], self.state_shape());
        let of_g = [rows[0], rows[1], rows[2], 1];
        let of_o = [rows[0], rows[1], rows[2], value_dim];
        for (name, layout, wanted) in [
            ("g", g.as_ref(), of_g),
            ("o", Some(o), of_o),
            ("h0", h0.as_ref(), state),
            ("ht", ht.as_ref(), state),
            ("snapshots", snapshots.as_ref(), self.snapshots_shape()),
        ] {
            let Some(layout) = layout else { continue };
            let bound = format!("{wanted:?}, by q, k and v");
            require(layout.shape == wanted, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
        }
        for (name, layout) in [("q", Some(q)), ("k", Some(k)), ("v", Some(v)), ("g", g.as_ref()), ("o", Some(o))] {
            let Some(layout) = layout else { continue };
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        for (name, layout) in [("h0", h0), ("ht", ht), ("snapshots", snapshots)] {
            let Some(layout) = layout else { continue };
            require(layout.dtype == DType::F32, &format!("{name}.dtype"), layout.dtype, "f32")?;
            layout.byte_span()?;
        }
        for (name, layout) in [("o", Some(o)), ("ht", ht.as_ref()), ("snapshots", snapshots.as_ref())] {
            layout.map_or(Ok(()), |layout| layout.check_output(name))?;
        }
        if self.in_place {
            require(h0.is_none(), "h0", "set", "unset where the state goes on in place")?;
        }
        if g.is_some() {
            require(params.slopes.is_none(), "g", "set", "unset, as the params have slopes")?;
            require(params.causal, "g", "set", "unset where attention is not causal: all tokens read one state")?;
        }
        if let Some(slopes) = &params.slopes {
            require(slopes.len() == heads, "slopes.len()", slopes.len(), format!("{heads}, one a head"))?;
        }
        Ok(())
    }

    fn check_lengths(&self, batch: usize, tokens: usize) -> Result<()> {
        let both = self.seqlens.is_some() && self.cu_seqlens.is_some();
        require(!both, "seqlens", "set", "unset with cu_seqlens, which say the lengths")?;
        check_lengths("seqlens", self.seqlens.as_deref(), batch, tokens)?;
        let Some(offsets) = &self.cu_seqlens else { return Ok(()) };
        require(batch == 1, "q.shape[0] (batch)", batch, "1 with packed sequences")?;
        check_offsets("cu_seqlens", offsets, tokens)?;
        let last = offsets[offsets.len() - 1] as usize;
        let bound = format!("{tokens}, the tensor's tokens");
        require(last == tokens, &format!("cu_seqlens[{}]", offsets.len() - 1), last, bound)
    }
}
