//! Gates and betas from what a model computes for each token.

use super::checks::{check_output, check_tensor};
use super::sequences::Sequences;
use super::shapes::NUMBERS;
use super::task::{Decay, Frame, THREADS, Task};
use crate::error::require;
use crate::layout::MAX_SEQUENCE;
use crate::program::shader::{AccessKind, file};
use crate::program::{Builder, Operand, Program};
use crate::{Caps, DType, Layout, Result, Shapes};

/// Tokens of a sum of gradients, and where these are.
const SEGMENT: usize = 1024;
const SUMS: &str = "sums of segments";

/// How models make gates and betas of linear attention from x, what they compute for each token.
///
/// ```
/// use wgpu_attention::LinearGateActivation;
/// // Gated DeltaNet's gates and betas; its `allow_neg_eigval` has betas up to 2.
/// let both = [LinearGateActivation::Softplus, LinearGateActivation::Sigmoid { factor: 1.0 }];
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LinearGateActivation {
    /// g = −exp(a_log) · softplus(x + dt_bias): Mamba-2 (arXiv 2405.21060; its x is dt), Gated DeltaNet (arXiv 2412.06464), Kimi Delta
    /// Attention (arXiv 2510.26692).
    Softplus,
    /// β = factor · 1 / (1 + e^(−x)).
    Sigmoid {
        /// The most that a beta can be: 1, or 2 where the delta rule may turn what the state has for a key.
        factor: f32,
    },
}

/// What the kernels go over.
struct Call {
    x: Operand,
    a_log: Option<Operand>,
    dt_bias: Option<Operand>,
    frame: Frame,
}

impl LinearGateActivation {
    /// Plans `out`, f32, of x [batch, heads, tokens, width], of any type: width is 1, or head_dim for gates of channels. With
    /// [`LinearGateActivation::Softplus`] there is `a_log`, f32 [1, heads, 1, 1], and may be `dt_bias`, f32 [1, heads, 1, width]. Numbers: seqlens or
    /// cu_seqlens; rows of no sequence are left alone.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for shapes, types and a factor that do not fit; [`crate::Error::Limit`].
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&["x", "a_log", "dt_bias", "seqlens", "cu_seqlens", "out"], &NUMBERS)?;
        let mut builder = Builder::new(caps, shapes)?;
        let call = self.call(&mut builder, shapes)?;
        let shape = call.x.shape();
        check_output("out", Some(&builder.output("out", Layout::heads_first(DType::F32, shape))?), shape, true)?;
        self.each(&call, "out", None).add(&mut builder, &call.frame)?;
        builder.finish(format!("{self:?} of gates, four channels of a token a thread"))
    }

    /// Plans the gradients: reads `dout`, f32, with the shape of x, besides what [`LinearGateActivation::plan`] does, and writes `dx`, with the
    /// shape and type of x, and where they are there, `da_log` and `ddt_bias`, with theirs.
    ///
    /// # Errors
    /// Those of [`LinearGateActivation::plan`].
    pub fn plan_backward(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(
            &["x", "a_log", "dt_bias", "seqlens", "cu_seqlens", "dout", "dx", "da_log", "ddt_bias"],
            &NUMBERS,
        )?;
        let mut builder = Builder::new(caps, shapes)?;
        let call = self.call(&mut builder, shapes)?;
        let (shape, dtype) = (call.x.shape(), call.x.layout.dtype);
        check_tensor("dout", Some(&builder.input("dout")?), Some(shape), true)?;
        check_output("dx", Some(&builder.output("dx", Layout::heads_first(dtype, shape))?), shape, false)?;
        let mut sums = vec![];
        for (name, of) in [("da_log", &call.a_log), ("ddt_bias", &call.dt_bias)] {
            let Some(of) = of else { continue };
            let layout = Layout::heads_first(DType::F32, of.shape());
            check_output(name, Some(&builder.output(name, layout)?), of.shape(), true)?;
            sums.push(name);
        }
        self.each(&call, "dx", Some("dout")).add(&mut builder, &call.frame)?;
        if !sums.is_empty() {
            let (rows, heads) = (call.frame.segments(SEGMENT), call.frame.heads);
            let width = shape[3].next_multiple_of(4) + 4;
            builder.scratch(SUMS, Layout::heads_first(DType::F32, [call.frame.entries(), heads, rows, width]))?;
            for task in self.sums(&call, &sums) {
                task.add(&mut builder, &call.frame)?;
            }
        }
        builder.finish(format!(
            "gradients of {self:?} of gates, four channels of a token a thread, sums of segments of {SEGMENT} tokens"
        ))
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Softplus => Ok(()),
            Self::Sigmoid { factor } => require((0.0..=2.0).contains(factor), "factor", factor, "within [0, 2]"),
        }
    }

    fn call(&self, builder: &mut Builder, shapes: &Shapes) -> Result<Call> {
        self.check()?;
        let x = builder.input("x")?;
        let [batch, heads, tokens, width] = x.shape();
        require(tokens <= MAX_SEQUENCE, "x.shape[2] (tokens)", tokens, format!("at most {MAX_SEQUENCE}"))?;
        require(width > 0, "x.shape[3] (channels)", width, "at least 1")?;
        check_tensor("x", Some(&x), None, false)?;
        let sequences = Sequences::of(builder, shapes, "x", [batch, tokens])?;
        let [a_log, dt_bias] = ["a_log", "dt_bias"].map(|name| builder.tensor(name));
        let softplus = *self == Self::Softplus;
        require(
            softplus == a_log.is_some(),
            "a_log",
            a_log.as_ref().map_or("unset", |_| "set"),
            "set with softplus, and only there",
        )?;
        require(softplus || dt_bias.is_none(), "dt_bias", "set", "unset, except with softplus")?;
        check_tensor("a_log", a_log.as_ref(), Some([1, heads, 1, 1]), true)?;
        check_tensor("dt_bias", dt_bias.as_ref(), Some([1, heads, 1, width]), true)?;
        let gain = if let Self::Sigmoid { factor } = *self { factor } else { 1.0 };
        let frame = Frame {
            decay: Decay::None,
            heads,
            dims: (width, width),
            rows: sequences.rows(builder, [batch, tokens])?,
            tokens,
            reverse: false,
            late: false,
            scale: 1.0,
            gain,
        };
        Ok(Call { x, a_log, dt_bias, frame })
    }

    /// Gates or betas, or, with their gradient `dout`, that of x.
    fn each(&self, call: &Call, to: &'static str, dout: Option<&'static str>) -> Task {
        let quads = call.frame.dims.0.div_ceil(4);
        let mut task = self.task(call, file::LINEAR_ACTIVATION_MAP);
        task.constants.push(("GRADIENT", usize::from(dout.is_some())));
        task.tensors.extend(dout.map(|dout| ("dy", dout, AccessKind::Load4)));
        task.tensors.push(("o", to, AccessKind::Store4));
        task.work[2] = (call.frame.longest() * quads).div_ceil(THREADS);
        Task { flops: (160 * THREADS) as f64, ..task }
    }

    /// What the tokens of a head share: sums of segments, and of those.
    fn sums(&self, call: &Call, names: &[&'static str]) -> [Task; 2] {
        let (entries, heads, width) = (call.frame.entries(), call.frame.heads, call.frame.dims.0);
        let segments = call.frame.segments(SEGMENT);
        let mut part = self.task(call, file::LINEAR_ACTIVATION_SUMS);
        part.files.push(file::SUM);
        part.tensors.extend([("dy", "dout", AccessKind::Load4), ("sums", SUMS, AccessKind::Store4)]);
        let kind = |name| if name == "da_log" { AccessKind::StoreBits } else { AccessKind::Store4 };
        let results = names.iter().map(|&name| (name, name, kind(name)));
        let total = Task {
            name: "totals of gradients of gates",
            files: vec![file::LINEAR_ACTIVATION, file::LINEAR_ACTIVATION_TOTAL],
            tensors: [("sums", SUMS, AccessKind::Load4)].into_iter().chain(results).collect(),
            segment: SEGMENT,
            work: [1, heads, 1],
            flops: (entries * segments * (width + 4)) as f64,
            ..self.task(call, file::LINEAR_ACTIVATION_TOTAL)
        };
        let total = Task { constants: [&total.constants[..], &[("ENTRIES", entries)]].concat(), ..total };
        let part = Task {
            name: "sums of gradients of gates",
            segment: SEGMENT,
            work: [entries, heads, segments],
            flops: (50 * SEGMENT * width) as f64,
            ..part
        };
        [part, total]
    }

    fn task(&self, call: &Call, text: &'static str) -> Task {
        let shared = [("a_log", &call.a_log, AccessKind::Load1), ("dt_bias", &call.dt_bias, AccessKind::Load4)];
        let shared = shared.into_iter().filter(|(_, of, _)| of.is_some()).map(|(name, _, kind)| (name, name, kind));
        Task {
            name: "activation of gates",
            files: vec![file::LINEAR_ACTIVATION, text],
            constants: vec![
                ("WG", THREADS),
                ("WIDTH", call.frame.dims.0),
                ("KIND", usize::from(*self != Self::Softplus)),
            ],
            tensors: [("x", "x", AccessKind::Load4)].into_iter().chain(shared).collect(),
            segment: call.frame.whole(),
            work: [call.frame.entries(), call.frame.heads, 1],
            runs: 0..1,
            flops: 1.0,
        }
    }
}
