//! The same over chunks, as the delta rule goes over them: both states are one, whose rows are those of the memory and of the momentum in turns.

use super::Plan;
use crate::linear::chunking::{CHUNK, Chunking, How, segment_tokens};
use crate::linear::chunks::FADES;
use crate::linear::ends::StateSource;
use crate::linear::names::Tensor;
use crate::linear::plan::words;
use crate::linear::task::{Decay, Frame, THREADS, Task};
use crate::linear::walk::{After, Correction, Walk};
use crate::linear::{LinearAlgorithm, LinearParams};
use crate::program::Builder;
use crate::program::shader::{AccessKind, file};
use crate::{Caps, DType, Error, Layout, Result};

/// Both states, before and after.
const BEFORE: Tensor = "both states before";
const AFTER: Tensor = "both states after";
/// Views of their rows: the memory's, and the momentum's.
const BEGIN: [Tensor; 2] = ["memory before", "momentum before"];
const END: [Tensor; 2] = ["memory after", "momentum after"];
/// Tokens of a chunk of the walk: each has a thread.
const CHUNKS: std::ops::RangeInclusive<usize> = CHUNK..=256;

/// How it goes over chunks.
pub(super) struct Chunks {
    walk: Walk,
    how: How,
}

/// Whether an algorithm over chunks is asked for: they are less exact, so that none is taken by itself.
fn is_asked(params: &LinearParams) -> Option<LinearAlgorithm> {
    params.algorithm.filter(|&algorithm| algorithm != LinearAlgorithm::Recurrent)
}

/// Tokens of a chunk of the walk: whole numbers of what has errors of one memory, from the first token on.
fn chunk_of(params: &LinearParams) -> Option<usize> {
    let errors = params.chunk.unwrap_or(1);
    let multiple = CHUNKS.step_by(32).find(|chunk| chunk.is_multiple_of(errors));
    multiple.filter(|_| errors == 1 || !params.reverse)
}

/// That an algorithm that is asked for can be.
pub(super) fn check(params: &LinearParams) -> Result<()> {
    let (Some(algorithm), None) = (is_asked(params), chunk_of(params)) else { return Ok(()) };
    let errors = params.chunk.unwrap_or(1);
    let bound = match params.reverse {
        true => format!("unset or recurrent with chunk {errors} and reverse: chunks begin at the first token"),
        false => {
            format!("unset or recurrent with chunk {errors}: no multiple of 32 from 64 to 256 is a multiple of it")
        }
    };
    Err(Error::argument("algorithm", format!("{algorithm:?}"), bound))
}

impl Plan<'_> {
    /// How it goes over chunks, if that is asked for, and why.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] for chunks that do not fit.
    pub fn chunks(&self, params: &LinearParams, caps: &Caps) -> Result<Option<(Chunks, String)>> {
        let (Some(_), Some(chunk)) = (is_asked(params), chunk_of(params)) else { return Ok(None) };
        let errors = self.spans.chunk;
        let (rows, columns) = self.frame.dims;
        let frame = Frame { decay: Decay::WithMomentum { errors }, dims: (2 * rows, columns), ..self.frame.clone() };
        let chunking = Chunking::new(caps, chunk, frame.dims)?;
        let names = self.inputs.names;
        let correction = Some(Correction { beta: None, to: None });
        let walk = Walk {
            reads: Some([names.q, names.o]),
            after: Some(After { k: names.k, v: Some(names.v), takes_away: false, correction }),
            segment: segment_tokens(chunk),
            ..Walk::over(frame, "states")
        };
        let packed = self.inputs.are_packed();
        let (algorithm, why) = params.choose(caps, &walk, &chunking, packed)?;
        Ok(Some((Chunks { walk, how: How { algorithm, chunking, packed } }, why)))
    }
}

impl Chunks {
    /// Adds the kernels, from and to where each state comes from and goes to; what they do, in words.
    pub fn add(
        mut self,
        plan: &Plan,
        builder: &mut Builder,
        ends: [(Option<Tensor>, Option<Tensor>); 2],
        why: &str,
    ) -> Result<String> {
        if ends.iter().any(|(from, _)| from.is_some()) {
            self.add_both(builder, BEFORE, BEGIN)?;
            for ((from, _), to) in ends.into_iter().zip(BEGIN) {
                plan.bring(builder, from, to)?;
            }
            self.walk.from = StateSource::H0(BEFORE);
        }
        let wanted = ends.iter().any(|(_, to)| to.is_some());
        if wanted {
            self.add_both(builder, AFTER, END)?;
            self.walk.to = Some(AFTER);
        }
        self.walk.add(builder, self.how)?;
        for ((_, to), from) in ends.into_iter().zip(END) {
            if let Some(to) = to {
                plan.bring(builder, Some(from), to)?;
            }
        }
        Ok(format!("memory with momentum: {}", words(&self.walk, self.how, "", why)))
    }

    /// Both states, row by row in turns, and a name for each.
    fn add_both(&self, builder: &mut Builder, name: Tensor, parts: [Tensor; 2]) -> Result<()> {
        let (rows, columns) = self.walk.frame.dims;
        let both = builder.scratch(name, self.walk.rows_of_states(rows))?;
        let Layout { dtype, shape: [entries, heads, ..], strides: [entry, head, row], offset } = both.layout;
        for (i, part) in parts.into_iter().enumerate() {
            let shape = [entries, heads, rows / 2, columns];
            let layout = Layout { dtype, shape, strides: [entry, head, 2 * row], offset: offset + i * row };
            builder.name(part, both.view(layout));
        }
        Ok(())
    }
}

impl Walk {
    /// What is left of both states before and after each token.
    pub fn add_fades_with_momentum(&self, builder: &mut Builder, chunk: usize, errors: usize) -> Result<()> {
        let [entries, heads, tokens, _] = builder.operand("steps").expect("added before").shape();
        for name in FADES {
            builder.scratch(name, Layout::heads_first(DType::F32, [entries, heads, tokens, 4]))?;
        }
        let to = FADES.map(|name| (name, name, AccessKind::Store4));
        let fades = Task {
            name: "fades of both states",
            files: vec![file::LINEAR_MOMENTUM_STEP, file::LINEAR_MOMENTUM_FADES],
            constants: vec![("WG", THREADS), ("ERRORS", errors)],
            tensors: [("steps", "steps", AccessKind::Load4)].into_iter().chain(to).collect(),
            segment: chunk,
            work: self.work(self.frame.segments(chunk).div_ceil(THREADS)),
            runs: 0..1,
            flops: (12 * chunk * THREADS) as f64,
        };
        self.add_tasks(builder, [fades])
    }
}
