//! Calls of every kernel: such as fit together, with something wrong in many of them.

use super::draft::{Plan, Prepare};
use super::source::Source;
use super::{others, softmax};
use wgpu_attention::plan::Shapes;

/// A kernel with its params, and what it is called with.
pub struct Problem {
    pub words: String,
    pub plan: Plan,
    pub prepare: Prepare,
    pub shapes: Shapes,
}

impl Problem {
    pub fn any(s: &mut Source) -> Self {
        let ((words, plan, prepare), mut draft) = match s.below(12) {
            0 | 1 => softmax::flash(s),
            2 | 3 => softmax::neighborhood(s),
            4 | 5 => softmax::block_sparse(s),
            6 => softmax::score_reduction(s),
            7 => others::gate(s),
            8 => others::decode_gate(s),
            9 => others::linear(s),
            10 => others::merge(s),
            _ => others::rotary(s),
        };
        for _ in 0..if s.wild { s.pick(&[0, 1, 1, 2, 3]) } else { 0 } {
            draft.spoil(s);
        }
        let mut shapes = draft.shapes();
        if let Some(names) = s.maybe(16, |s| [s.pick(&["q", "out", "dq"]), s.pick(&["k", "lse", "dk", "q"])]) {
            shapes = shapes.clone().in_one_buffer(&names).unwrap_or(shapes);
        }
        Self { words, plan, prepare, shapes }
    }
}
