//! Random choices that lean to what breaks things, from a string of bytes.

use arbitrary::Unstructured;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use wgpu_attention::{DType, Layout};

/// Bytes behind the choices of one attempt; choices beyond them are the first of their kind.
const BYTES: usize = 4096;

pub fn bytes(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

pub struct Source<'a> {
    bytes: Unstructured<'a>,
    /// Whether anything may come; if not, what fits together.
    pub wild: bool,
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut new = Self { bytes: Unstructured::new(bytes), wild: false };
        new.wild = new.one_in(2);
        new
    }

    /// At least 0, below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        self.bytes.int_in_range(0..=count.saturating_sub(1)).unwrap_or(0)
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) + 1 == count
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// The same of what fits nothing.
    pub fn odd(&mut self, one_in: usize) -> bool {
        self.wild && self.one_in(one_in)
    }

    pub fn maybe<T>(&mut self, one_in: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(one_in).then(|| make(self))
    }

    /// A number of rows, heads, blocks: small.
    pub fn small(&mut self) -> usize {
        self.pick(&[1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 32, 33, 63, 64, 65, 100])
    }

    /// Any number, those beside bounds more often.
    pub fn number(&mut self) -> usize {
        match if self.wild { self.below(4) } else { 0 } {
            0 => self.small(),
            1 => 0,
            2 => {
                let power = 1usize << self.below(64);
                self.pick(&[power - 1, power, power.saturating_add(1), power.saturating_mul(3)])
            }
            _ => self.pick(&[
                usize::MAX,
                usize::MAX / 2,
                usize::MAX / 4,
                usize::MAX - 63,
                65_535,
                65_536,
                1 << 22,
                1 << 20,
            ]),
        }
    }

    pub fn float(&mut self) -> f32 {
        match if self.wild { self.below(3) } else { 3 } {
            0 => (self.below(2001) as f32 - 1000.0) / 500.0,
            1 => self.pick(&[0.0, -0.0, 1.0, -1.0, 0.5, 1e-6, 30.0, 10_000.0]),
            3 => self.pick(&[0.125, 0.25, 0.5, 0.75, 1.0]),
            _ => self.pick(&[
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::MAX,
                f32::MIN,
                f32::MIN_POSITIVE,
                1e-45,
                -1e-45,
                1e28,
                1e30,
                16_777_217.0,
            ]),
        }
    }

    pub fn token_type(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::F16, DType::Bf16])
    }

    /// A layout of these elements: contiguous mostly, heads last, with gaps or repeated.
    pub fn layout(&mut self, dtype: DType, shape: [usize; 4]) -> Layout {
        let mut layout = match self.below(4) {
            0 => Layout::heads_last(dtype, shape),
            _ => Layout::heads_first(dtype, shape),
        };
        if self.odd(4) {
            let which = self.below(3);
            layout.strides[which] = self.pick(&[0, layout.strides[which] + 2, layout.strides[which] + 1, 1]);
        }
        if self.one_in(6) {
            layout = layout.at(self.small());
        }
        layout
    }

    /// A name: an odd one now and then.
    pub fn name(&mut self) -> String {
        let odd = [
            "q",
            "k",
            "params",
            "fn",
            "_",
            "score",
            "",
            "é",
            "a b",
            "buffers.x",
            "main",
            "__x",
            "mask",
            "block_mask.chosen",
        ];
        self.pick(&odd).into()
    }
}
