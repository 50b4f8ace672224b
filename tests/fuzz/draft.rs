//! What calls are drafted from: sizes that fit together, and tensors by name that are spoilt.

use super::source::Source;
use wgpu_attention::plan::{Caps, Program, Shapes};
use wgpu_attention::{DType, Gpu, Layout, Prepared, Result};

pub type Plan = Box<dyn Fn(&Caps, &Shapes) -> Result<Program>>;
pub type Prepare = Box<dyn Fn(&Gpu, &Shapes) -> Result<Prepared>>;
/// A kernel in words, how it is planned and prepared, and what it is called with.
pub type Drafted = ((String, Plan, Prepare), Draft);

/// Shapes that are made, and spoilt.
#[derive(Default)]
pub struct Draft {
    pub tensors: Vec<(String, Layout)>,
    pub numbers: Vec<(String, Vec<usize>)>,
    pub wanted: Vec<String>,
}

impl Draft {
    pub fn tensor(&mut self, s: &mut Source, name: impl Into<String>, dtype: DType, shape: [usize; 4]) {
        self.tensors.push((name.into(), s.layout(dtype, shape)));
    }

    /// An output that may be brought, wanted or left out.
    pub fn output(&mut self, s: &mut Source, name: &str, dtype: DType, shape: [usize; 4]) {
        match s.below(3) {
            0 => self.tensors.push((name.into(), Layout::heads_first(dtype, shape))),
            1 => self.wanted.push(name.into()),
            _ => {}
        }
    }

    pub fn numbers(&mut self, name: &str, numbers: impl Into<Vec<usize>>) {
        self.numbers.push((name.into(), numbers.into()));
    }

    /// Lengths or offsets, on the host or on the GPU.
    pub fn counts(&mut self, s: &mut Source, on_gpu: bool, name: &str, numbers: Vec<usize>) {
        match on_gpu != s.odd(8) {
            true => self.tensors.push((name.into(), Layout::heads_first(DType::U32, [1, 1, 1, numbers.len()]))),
            false => self.numbers.push((name.into(), numbers)),
        }
    }

    pub fn spoil(&mut self, s: &mut Source) {
        let any = |s: &mut Source, count: usize| (count > 0).then(|| s.below(count));
        match s.below(8) {
            0 | 1 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                let (which, n) = (s.below(4), s.number());
                self.tensors[i].1.shape[which] = n;
            }
            2 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                let (which, n) = (s.below(4), s.number());
                let layout = &mut self.tensors[i].1;
                *layout.strides.get_mut(which).unwrap_or(&mut layout.offset) = n;
            }
            3 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                self.tensors[i].1.dtype = s.pick(&[DType::F32, DType::F16, DType::Bf16, DType::U8, DType::U32]);
            }
            4 => {
                let Some(i) = any(s, self.tensors.len()) else { return };
                self.tensors.swap_remove(i);
            }
            5 => {
                let (name, dtype) = (s.name(), s.token_type());
                let shape = [(); 4].map(|()| s.small());
                self.tensors.push((name, Layout::heads_first(dtype, shape)));
            }
            6 => {
                let Some(i) = any(s, self.numbers.len()) else { return };
                let numbers = &mut self.numbers[i].1;
                match (s.below(3), any(s, numbers.len())) {
                    (0, _) | (_, None) => numbers.push(s.number()),
                    (1, Some(at)) => drop(numbers.remove(at)),
                    (_, Some(at)) => numbers[at] = s.number(),
                }
            }
            _ => {
                let (name, count) = (s.name(), s.below(4));
                let numbers: Vec<usize> = (0..count).map(|_| s.number()).collect();
                self.numbers.push((name, numbers));
            }
        }
    }

    pub fn shapes(self) -> Shapes {
        let shapes = Shapes::new(self.tensors);
        let shapes = self.numbers.into_iter().fold(shapes, |shapes, (name, numbers)| shapes.numbers(name, numbers));
        self.wanted.into_iter().fold(shapes, Shapes::wanted)
    }
}

/// Sizes of one attention problem.
pub struct Sizes {
    pub batch: usize,
    pub heads: [usize; 2],
    pub rows: [usize; 2],
    pub widths: [usize; 2],
    pub dtype: DType,
}

impl Sizes {
    pub fn new(s: &mut Source) -> Self {
        let heads_kv = s.pick(&[1, 2, 3]);
        let width = |s: &mut Source| s.pick(&[1, 2, 4, 8, 8, 16, 20, 32, 33]);
        let d = width(s);
        Self {
            batch: s.pick(&[0, 1, 1, 2, 3]),
            heads: [heads_kv * s.pick(&[1, 1, 2, 4]), heads_kv],
            rows: [s.small(), s.small()],
            widths: [d, if s.one_in(3) { width(s) } else { d }],
            dtype: s.token_type(),
        }
    }

    pub fn q(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.widths[0]]
    }

    pub fn k(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.rows[1], self.widths[0]]
    }

    pub fn v(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.rows[1], self.widths[1]]
    }

    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.widths[1]]
    }

    pub fn lse(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], 1]
    }

    pub fn pairs(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.rows[0], self.rows[1]]
    }
}

/// Ascending offsets of a few sequences.
pub fn offsets(s: &mut Source, count: usize, rows: usize) -> Vec<usize> {
    let mut offsets: Vec<usize> = (0..count).map(|_| s.below(rows + 1)).collect();
    offsets.push(0);
    offsets.sort_unstable();
    offsets
}
