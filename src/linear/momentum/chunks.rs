//! The same over chunks, as the delta rule goes over them: both states are one, whose rows are those of the memory and of the momentum in turns.

use super::Plan;
use crate::error::require;
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
use crate::{Caps, DType, Layout, Result};

/// Both states, before and after.
const BEFORE: Tensor = "both states before";
const AFTER: Tensor = "both states after";
/// Views of their rows: the memory's, and the momentum's.
const BEGIN: [Tensor; 2] = ["memory before", "momentum before"];
const END: [Tensor; 2] = ["memory after", "momentum after"];
/// Tokens of a chunk at most: each has a thread.
const MOST: usize = 256;

/// How it goes over chunks.
pub(super) struct Chunks {
    walk: Walk,
    how: How,
}

impl Plan<'_> {
    /// How it goes over chunks, if it does, and why.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] or [`crate::Error::Limit`] where that is asked for, and cannot be.
    pub fn chunks(&self, params: &LinearParams, caps: &Caps) -> Result<(Option<Chunks>, String)> {
        let errors = self.spans.chunk;
        let asked = params.algorithm.filter(|&algorithm| algorithm != LinearAlgorithm::Recurrent);
        // Whole numbers of what has errors of one memory, from the first token of the walk on.
        let chunk = (1..=MOST / 32).map(|i| 32 * i).find(|&chunk| chunk >= CHUNK && chunk.is_multiple_of(errors));
        let fits = chunk.is_some() && (errors == 1 || !params.reverse);
        if !fits {
            let bound = format!(
                "unset or recurrent where errors of {errors} tokens are of one memory{}: \
                 others go by chunks of 64 to {MOST} tokens, a multiple of 32 and of these, from the first one on",
                if params.reverse { ", the last first" } else { "" }
            );
            let found = asked.map_or(String::new(), |algorithm| format!("{algorithm:?}"));
            require(asked.is_none(), "algorithm", found, bound)?;
            return Ok((None, String::new()));
        }
        let chunk = chunk.unwrap_or(CHUNK);
        let (rows, columns) = self.frame.dims;
        let frame = Frame { decay: Decay::WithMomentum { errors }, dims: (2 * rows, columns), ..self.frame.clone() };
        let chunking = match Chunking::new(caps, chunk, frame.dims) {
            Err(_) if asked.is_none() => return Ok((None, String::new())),
            found => found?,
        };
        let names = self.inputs.names;
        let correction = Some(Correction { beta: None, to: None });
        let walk = Walk {
            reads: Some([names.q, names.o]),
            after: Some(After { k: names.k, v: Some(names.v), takes_away: false, correction }),
            from: StateSource::H0(BEFORE),
            segment: segment_tokens(chunk),
            ..Walk::over(frame, "states")
        };
        let packed = self.inputs.are_packed();
        let of_tokens = LinearParams { chunk: None, ..params.clone() };
        let (algorithm, why) = of_tokens.choose(caps, &walk, &chunking, packed)?;
        let how = How { algorithm, chunking, packed };
        Ok(((algorithm != LinearAlgorithm::Recurrent).then_some(Chunks { walk, how }), why))
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
        self.add_both(builder, BEFORE, BEGIN)?;
        for ((from, _), to) in ends.into_iter().zip(BEGIN) {
            plan.bring(builder, from, to)?;
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
