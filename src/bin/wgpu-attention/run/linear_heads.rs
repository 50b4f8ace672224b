//! States of `run linear`, as many as the file has heads of them, and one for each head of a call.

use super::call::Named;
use super::file::Floats;

/// Heads of the state in the file, which queries may share, and in the call, where each head has a state of its own.
#[derive(Clone, Copy)]
pub struct Heads {
    pub file: usize,
    pub call: usize,
}

impl Heads {
    pub fn of(tensors: &Named) -> Self {
        let most = |names: &[&str]| {
            names.iter().filter_map(|name| tensors.get(name)).map(|floats| floats.shape[1]).max().unwrap_or(1)
        };
        let (file, call) = (most(&["k", "v", "g", "beta", "alpha", "eta", "theta"]), most(&["q", "k", "v"]));
        Self { file: if file > 0 && call.is_multiple_of(file) { file } else { call }, call }
    }

    /// How many heads of the call share a state.
    fn group(self) -> usize {
        (self.call / self.file.max(1)).max(1)
    }

    /// A state for each head of the call; one that has those already, or other ones, is left as it is.
    fn spread(self, state: Floats, value: impl Fn(usize, f32) -> f32) -> Floats {
        let Floats { dtype, shape: [batch, heads, rows, width], ref values } = state;
        if heads != self.file || self.group() == 1 {
            return state;
        }
        let of_heads = values.chunks_exact((rows * width).max(1));
        let values = of_heads.flat_map(|head| (0..self.group()).flat_map(move |n| head.iter().map(move |&x| (n, x))));
        let values = values.map(|(n, x)| value(n, x)).collect();
        Floats { dtype, shape: [batch, self.call, rows, width], values }
    }

    pub fn repeat(self, state: Floats) -> Floats {
        self.spread(state, |_, x| x)
    }

    /// A gradient, which counts once.
    pub fn first(self, state: Floats) -> Floats {
        self.spread(state, |n, x| if n == 0 { x } else { 0.0 })
    }

    /// One of the states that are alike, or the sum of their gradients.
    pub fn merge(self, state: Floats, sums: bool) -> Floats {
        let Floats { dtype, shape: [batch, _, rows, width], values } = state;
        let size = rows * width;
        let group = |alike: &[f32]| -> Vec<f32> {
            let all = if sums { self.group() } else { 1 };
            (0..size).map(|i| (0..all).map(|n| alike[n * size + i]).sum()).collect()
        };
        let values = values.chunks_exact((self.group() * size).max(1)).flat_map(group).collect();
        Floats { dtype, shape: [batch, self.file, rows, width], values }
    }
}
