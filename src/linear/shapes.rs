//! What linear attention reads and writes.

use super::checks::check_tensor;
use super::ends::{StateSource, Unit};
use super::joint::joint;
use super::names::{Names, Tensor};
use super::sequences::{Rows, Sequences};
use super::steps::MomentumInputs;
use super::task::{Decay, Frame};
use super::walk::{After, Correction};
use super::{LinearParams, LinearRule};
use crate::error::require;
use crate::layout::{MAX_HEAD_DIM, MAX_SEQUENCE};
use crate::program::{Builder, Operand};
use crate::{DType, Layout, Result, Shapes};

/// Tensors and numbers of a forward pass.
pub(super) const INPUTS: [&str; 13] =
    ["q", "k", "v", "g", "beta", "alpha", "eta", "theta", "h0", "z0", "s0", "seqlens", "cu_seqlens"];
pub(super) const NUMBERS: [&str; 3] = ["seqlens", "cu_seqlens", "max_seqlen"];

/// The inputs of linear attention. Heads of the state are the most that q, k and v have; each of them has as many or a divisor of that.
pub(super) struct LinearShapes {
    pub q: Operand,
    pub k: Operand,
    pub v: Operand,
    pub g: Option<Operand>,
    pub beta: Option<Operand>,
    pub h0: Option<Operand>,
    pub z0: Option<Operand>,
    /// What the rule momentum reads besides.
    pub momentum: Option<MomentumInputs>,
    /// Features of a query or key: rows of a state.
    features: usize,
    pub names: Names,
    /// Columns of a state beyond those of values.
    more: usize,
    /// Whether only what the tokens do to a state is wanted: queries are not read.
    pub is_summary: bool,
    sequences: Sequences,
    rows: Rows,
}

impl LinearShapes {
    /// Those of a call, checked.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for what does not fit together.
    pub fn new(builder: &mut Builder, params: &LinearParams, shapes: &Shapes, is_summary: bool) -> Result<Self> {
        params.check()?;
        let q = builder.input("q")?;
        let [batch, _, tokens, _] = q.shape();
        let sequences = Sequences::of(builder, shapes, "q", [batch, tokens])?;
        let features = params.feature_map.features(q.shape()[3]);
        let more = match params.rule {
            _ if params.normalize.is_some() => 1,
            LinearRule::Linear if is_summary => 1,
            LinearRule::Delta if is_summary => features,
            _ => 0,
        };
        let found = Self {
            features,
            names: Names::of(params, more > 0),
            more,
            is_summary,
            q,
            k: builder.input("k")?,
            v: builder.input("v")?,
            g: builder.tensor("g"),
            beta: builder.tensor("beta"),
            h0: builder.tensor("h0"),
            z0: builder.tensor("z0"),
            momentum: MomentumInputs::of(builder, params)?,
            rows: sequences.rows(builder, [batch, tokens])?,
            sequences,
        };
        found.check(params).map(|()| found)
    }

    /// Heads of the state.
    pub fn heads(&self) -> usize {
        [&self.q, &self.k, &self.v].into_iter().map(|operand| operand.shape()[1]).max().unwrap_or(0)
    }

    /// Whether a state comes in, with the normaliser's part or only that.
    pub fn has_state(&self) -> bool {
        self.h0.is_some() || self.z0.is_some()
    }

    /// What a walk begins with, unless its state is updated in place.
    pub fn from(&self) -> StateSource {
        match self.is_summary {
            true => StateSource::Unit(self.unit()),
            false if self.has_state() => StateSource::H0(self.names.h0),
            false => StateSource::Nothing,
        }
    }

    /// What a walk from the other end begins with.
    pub fn behind(&self, builder: &Builder) -> StateSource {
        let there = self.is_summary || ["dht", "dzt"].iter().any(|name| builder.tensor(name).is_some());
        if there { StateSource::H0(self.names.dht) } else { StateSource::Nothing }
    }

    /// q and the gradient of o: none in a summary.
    pub fn queries(&self) -> Option<[Tensor; 2]> {
        (!self.is_summary).then_some([self.names.q, self.names.dout])
    }

    /// What a summary begins with beside an empty state: the identity, or ones where no row of a state changes another.
    fn unit(&self) -> Unit {
        Unit { at: self.v.shape()[3].next_multiple_of(4), ones: self.more == 1, turned: false }
    }

    /// Columns of values, and of a state beyond them.
    pub fn widths(&self) -> [usize; 2] {
        [self.v.shape()[3], self.more]
    }

    /// [batch, heads, tokens, value_dim].
    pub fn output_shape(&self) -> [usize; 4] {
        let [batch, _, tokens, _] = self.q.shape();
        [batch, self.heads(), tokens, self.v.shape()[3]]
    }

    /// f32 [batch or sequences, heads, features, value_dim].
    pub fn state(&self) -> Layout {
        let entries = self.sequences.entries(self.q.shape()[0]);
        Layout::heads_first(DType::F32, [entries, self.heads(), self.features, self.v.shape()[3]])
    }

    /// The normaliser's part of a state, f32 [batch or sequences, heads, features, 1].
    pub fn key_sums(&self) -> Layout {
        let [entries, heads, features, _] = self.state().shape;
        Layout::heads_first(DType::F32, [entries, heads, features, 1])
    }

    /// f32 [batch or sequences, heads, tokens · head_dim, value_dim].
    pub fn snapshots(&self) -> Layout {
        let [entries, heads, head_dim, value_dim] = self.state().shape;
        let longest = self.rows.longest;
        Layout::heads_first(DType::F32, [entries, heads, longest * head_dim, value_dim])
    }

    /// Whether sequences lie one after another in one batch entry.
    pub fn are_packed(&self) -> bool {
        self.sequences.are_packed()
    }

    /// How the delta rule changes the state; what it corrects by, and beta times that, goes to `to`.
    pub fn delta(&self, to: Option<[Tensor; 2]>) -> After {
        let correction = Some(Correction { beta: self.beta.as_ref().map(|_| "beta"), to });
        After { k: self.names.k, v: Some(self.names.v), takes_away: false, correction }
    }

    /// What all kernels of the forward walk know.
    pub fn frame(&self, params: &LinearParams) -> Frame {
        let (head_dim, value_dim) = (self.q.shape()[3], self.v.shape()[3]);
        Frame {
            decay: match (&params.slopes, &self.g) {
                (_, Some(g)) if g.shape()[3] > 1 => Decay::ByChannel,
                (_, Some(_)) => Decay::ByToken,
                (Some(slopes), None) => Decay::ByHead(slopes.clone()),
                (None, None) => Decay::None,
            },
            heads: self.heads(),
            dims: (self.features, if self.more > 0 { joint([value_dim, self.more]) } else { value_dim }),
            rows: self.rows.clone(),
            tokens: self.q.shape()[2],
            reverse: params.reverse,
            late: false,
            scale: params.outer_scale(head_dim),
            gain: 1.0,
        }
    }

    fn check(&self, params: &LinearParams) -> Result<()> {
        let Self { q, k, v, g, beta, h0, z0, features, .. } = self;
        let ([batch, _, tokens, head_dim], value_dim, heads) = (q.shape(), v.shape()[3], self.heads());
        for (what, value) in [("q.shape[3] (head_dim)", head_dim), ("v.shape[3] (value width)", value_dim)] {
            require((1..=MAX_HEAD_DIM).contains(&value), what, value, format!("within 1..={MAX_HEAD_DIM}"))?;
        }
        let bound = format!("at most {MAX_HEAD_DIM}, the rows of a state: a smaller head_dim");
        require(*features <= MAX_HEAD_DIM, "features of q and k", features, bound)?;
        require(tokens <= MAX_SEQUENCE, "q.shape[2] (tokens)", tokens, format!("at most {MAX_SEQUENCE}"))?;
        for (name, operand, width) in [("q", q, head_dim), ("k", k, head_dim), ("v", v, value_dim)] {
            let own = operand.shape()[1];
            let bound = format!("a divisor of {heads}, the most heads that q, k or v has");
            require(own > 0 && heads.is_multiple_of(own), &format!("{name}.shape[1] (heads)"), own, bound)?;
            let wanted = [batch, own, tokens, width];
            let bound = format!("{wanted:?}, to match q");
            require(operand.shape() == wanted, &format!("{name}.shape"), format!("{:?}", operand.shape()), bound)?;
        }
        for (name, operand) in [("q", q), ("k", k), ("v", v)] {
            check_tensor(name, Some(operand), None, false)?;
        }
        if let Some(g) = g {
            let (shape, own) = (g.shape(), g.shape()[1].max(1));
            let wide = [1, *features].contains(&shape[3]) && shape == [batch, own, tokens, shape[3]];
            let wanted = [batch, heads, tokens, 1];
            let bound =
                format!("{wanted:?}, or with a divisor of {heads} heads, or {features} wide, one per row of the state");
            require(wide && heads.is_multiple_of(own), "g.shape", format!("{shape:?}"), bound)?;
            check_tensor("g", Some(g), None, false)?;
        }
        if let Some(beta) = beta {
            require(params.rule == LinearRule::Delta, "beta", "set", "unset, except for the delta rule")?;
            let (shape, own) = (beta.shape(), beta.shape()[1].max(1));
            let fits = heads.is_multiple_of(own) && shape == [batch, own, tokens, 1];
            let bound = format!("{:?}, or with a divisor of {heads} heads", [batch, heads, tokens, 1]);
            require(fits, "beta.shape", format!("{shape:?}"), bound)?;
            check_tensor("beta", Some(beta), None, false)?;
        }
        check_tensor("h0", h0.as_ref(), Some(self.state().shape), false)?;
        require(z0.is_none() || params.normalize.is_some(), "z0", "set", "unset without a normaliser")?;
        let both = params.normalize.is_none() || h0.is_some() == z0.is_some();
        let found = if z0.is_some() { "set" } else { "unset" };
        require(both, "z0", found, "set with a normaliser where h0 is, and only there: the state has both parts")?;
        check_tensor("z0", z0.as_ref(), Some(self.key_sums().shape), true)?;
        if let Some(momentum) = &self.momentum {
            require(g.is_none(), "g", "set", "unset with the rule momentum: alpha is what memory forgets")?;
            momentum.check([batch, heads, tokens], self.state().shape)?;
        }
        if g.is_some() {
            require(params.slopes.is_none(), "g", "set", "unset, as the params have slopes")?;
            require(params.causal, "g", "set", "unset where attention is not causal: all tokens read one state")?;
        }
        if let Some(slopes) = &params.slopes {
            require(slopes.len() == heads, "slopes.len()", slopes.len(), format!("{heads}, one per head"))?;
        }
        Ok(())
    }
}
