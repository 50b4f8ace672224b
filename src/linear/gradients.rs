//! What the gradients of linear attention read and write.

use super::parts::Part;
use super::{LinearInputs, LinearParams, LinearShapes};
#[cfg(doc)]
use crate::Error;
use crate::arguments::number_buffers;
use crate::error::{require, require_set};
use crate::steps::{Places, Tensors};
use crate::{DType, Layout, Result, Tensor};

/// The gradients that come in.
#[derive(Clone, Copy, Debug)]
pub struct LinearOutputGradients<'a> {
    /// Of the output [batch, heads, tokens, value_dim], of any type.
    pub dout: &'a Tensor,
    /// Of the last state, f32 [batch or sequences, heads, head_dim, value_dim], where there is one.
    pub dht: Option<&'a Tensor>,
}

impl<'a> LinearOutputGradients<'a> {
    /// A gradient of the output, and of nothing else.
    pub fn new(dout: &'a Tensor) -> Self {
        Self { dout, dht: None }
    }
}

/// The gradients that are found.
#[derive(Clone, Debug)]
pub struct LinearGradients {
    /// Of q, of its shape: the sum over the heads that use it.
    pub dq: Tensor,
    /// Of k, likewise.
    pub dk: Tensor,
    /// Of v, likewise.
    pub dv: Tensor,
    /// Of the gates, f32 [batch, heads, tokens, 1], where tokens have some.
    pub dg: Option<Tensor>,
    /// Of the slopes, f32 [1, heads, 1, 1], where heads have some: the sum over batch entries and tokens.
    pub dslopes: Option<Tensor>,
    /// Of the initial state, of its shape, where there is one.
    pub dh0: Option<Tensor>,
}

/// Types, shapes and strides of what gradients read and write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearBackwardShapes {
    /// The inputs; the outputs of this are not looked at.
    pub forward: LinearShapes,
    /// Gradient of the output.
    pub dout: Layout,
    /// Of the last state.
    pub dht: Option<Layout>,
    /// Of q.
    pub dq: Layout,
    /// Of k.
    pub dk: Layout,
    /// Of v.
    pub dv: Layout,
    /// Of the gates of tokens.
    pub dg: Option<Layout>,
    /// Of the slopes.
    pub dslopes: Option<Layout>,
    /// Of the initial state.
    pub dh0: Option<Layout>,
    /// Which of q, k, v, g, h0, dout, dht, dq, dk, dv, dg, dslopes, dh0 lie in one buffer: those with the same number.
    pub buffers: [usize; 13],
}

/// In the order of [`LinearBackwardShapes::buffers`], with the caller's names.
pub(super) const SLOTS: [(Part, &str); 13] = [
    (Part::Q, "q"),
    (Part::K, "k"),
    (Part::V, "v"),
    (Part::G, "g"),
    (Part::H0, "h0"),
    (Part::Dout, "dout"),
    (Part::Dht, "dht"),
    (Part::Dq, "dq"),
    (Part::Dk, "dk"),
    (Part::Dv, "dv"),
    (Part::Dg, "dg"),
    (Part::Dslopes, "dslopes"),
    (Part::Dh0, "dh0"),
];

fn slots<'a>(
    inputs: &LinearInputs<'a>,
    from: &LinearOutputGradients<'a>,
    to: &'a LinearGradients,
) -> [Option<&'a Tensor>; 13] {
    let LinearInputs { q, k, v, g, h0, .. } = *inputs;
    let LinearGradients { dq, dk, dv, dg, dslopes, dh0 } = to;
    let (dg, dslopes, dh0) = (dg.as_ref(), dslopes.as_ref(), dh0.as_ref());
    [Some(q), Some(k), Some(v), g, h0, Some(from.dout), from.dht, Some(dq), Some(dk), Some(dv), dg, dslopes, dh0]
}

/// The tensors of a call.
pub(super) fn tensors<'a>(
    inputs: &LinearInputs<'a>,
    from: &LinearOutputGradients<'a>,
    to: &'a LinearGradients,
) -> Tensors<'a, Part> {
    let all = SLOTS.into_iter().zip(slots(inputs, from, to));
    all.filter_map(|((part, _), tensor)| Some((part, tensor?))).collect()
}

impl LinearBackwardShapes {
    /// With gradients of their own, of the types of what they are gradients of.
    pub fn new(params: &LinearParams, forward: LinearShapes, dout: Layout, dht: Option<Layout>) -> Self {
        let like = |layout: &Layout| Layout::heads_first(layout.dtype, layout.shape);
        let slopes = Layout::heads_first(DType::F32, [1, forward.heads(), 1, 1]);
        Self {
            dout,
            dht,
            dq: like(&forward.q),
            dk: like(&forward.k),
            dv: like(&forward.v),
            dg: forward.g.as_ref().map(|g| Layout::heads_first(DType::F32, g.shape)),
            dslopes: params.slopes.is_some().then_some(slopes),
            dh0: forward.h0.as_ref().map(like),
            buffers: std::array::from_fn(|i| i),
            forward,
        }
    }

    /// As the tensors are.
    pub fn of(inputs: &LinearInputs, from: &LinearOutputGradients, to: &LinearGradients) -> Self {
        let layout = |tensor: &Tensor| tensor.layout().clone();
        Self {
            forward: LinearShapes::of_inputs(inputs, false),
            dout: layout(from.dout),
            dht: from.dht.map(layout),
            dq: layout(&to.dq),
            dk: layout(&to.dk),
            dv: layout(&to.dv),
            dg: to.dg.as_ref().map(layout),
            dslopes: to.dslopes.as_ref().map(layout),
            dh0: to.dh0.as_ref().map(layout),
            buffers: number_buffers(slots(inputs, from, to)),
        }
    }

    /// In the order of [`SLOTS`].
    fn layouts(&self) -> [Option<&Layout>; 13] {
        let Self { forward: LinearShapes { q, k, v, g, h0, .. }, dout, dht, dq, dk, dv, dg, dslopes, dh0, .. } = self;
        let [g, h0, dht, dg, dslopes, dh0] = [g, h0, dht, dg, dslopes, dh0].map(Option::as_ref);
        [Some(q), Some(k), Some(v), g, h0, Some(dout), dht, Some(dq), Some(dk), Some(dv), dg, dslopes, dh0]
    }

    /// # Errors
    /// [`Error::Argument`] for what other shapes have, or have not.
    pub(super) fn check_as_prepared(&self, given: &Self) -> Result<()> {
        for (((_, name), given), prepared) in SLOTS.into_iter().zip(given.layouts()).zip(self.layouts()) {
            require_set(name, given.is_some(), prepared.is_some(), "as prepared")?;
        }
        Ok(())
    }

    /// Where each tensor lies.
    pub(super) fn places(&self) -> Places<Part> {
        let mut places = Places::default();
        for (((part, _), layout), buffer) in SLOTS.into_iter().zip(self.layouts()).zip(self.buffers) {
            if let Some(layout) = layout {
                places = places.with(part, layout, buffer);
            }
        }
        places
    }

    /// # Errors
    /// [`Error::Argument`] for what does not fit together.
    pub(super) fn check(&self, params: &LinearParams) -> Result<()> {
        let forward = &self.forward;
        forward.check(params)?;
        let wanted = Self::new(params, forward.clone(), forward.o.clone(), None);
        let state = forward.state_shape();
        let dh0 = wanted.dh0.map(|_| state);
        let all = [
            ("dout", Some(&self.dout), Some(forward.o.shape)),
            ("dht", self.dht.as_ref(), self.dht.as_ref().map(|_| state)),
            ("dq", Some(&self.dq), Some(forward.q.shape)),
            ("dk", Some(&self.dk), Some(forward.k.shape)),
            ("dv", Some(&self.dv), Some(forward.v.shape)),
            ("dg", self.dg.as_ref(), wanted.dg.map(|layout| layout.shape)),
            ("dslopes", self.dslopes.as_ref(), wanted.dslopes.map(|layout| layout.shape)),
            ("dh0", self.dh0.as_ref(), dh0),
        ];
        for (name, layout, wanted) in all {
            require_set(name, layout.is_some(), wanted.is_some(), "as what it is the gradient of")?;
            let Some((layout, wanted)) = layout.zip(wanted) else { continue };
            let bound = format!("{wanted:?}, by q, k and v");
            require(layout.shape == wanted, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            let plain = !["dht", "dg", "dslopes", "dh0"].contains(&name);
            let fits = if plain { layout.dtype.is_float() } else { layout.dtype == DType::F32 };
            let bound = if plain { "f32, f16 or bf16" } else { "f32" };
            require(fits, &format!("{name}.dtype"), layout.dtype, bound)?;
            layout.byte_span()?;
            if !["dout", "dht"].contains(&name) {
                layout.check_output(name)?;
            }
        }
        Ok(())
    }
}
