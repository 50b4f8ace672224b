//! Inputs and comparison.

use super::Outcome;
use crate::{DType, Gpu, Layout, Result, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// `count` normal values of the given standard deviation, rounded to `dtype`, the same for the same seed.
pub fn normal(seed: u64, count: usize, amplitude: f32, dtype: DType) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| dtype.round(amplitude * random.sample::<f32, _>(StandardNormal))).collect()
}

/// A tensor whose buffer holds NaN wherever the layout has no element, and beyond its end.
///
/// # Errors
/// Those of [`Tensor::wrap`], and a lack of memory.
pub async fn poisoned(gpu: &Gpu, layout: Layout, values: &[f32]) -> Result<Tensor> {
    let values = layout.dtype.encode(values);
    poisoned_bytes(gpu, layout, &values).await
}

/// The same from the bytes of the elements, one after another.
///
/// # Errors
/// Those of [`poisoned`]; [`crate::Error::Argument`] and [`crate::Error::Limit`] for a layout that no buffer could hold.
pub async fn poisoned_bytes(gpu: &Gpu, layout: Layout, values: &[u8]) -> Result<Tensor> {
    let (end, size) = (layout.byte_span()?.end, layout.dtype.bytes() as usize);
    gpu.caps().within("a tensor", "maxBufferSize", end.saturating_add(64), gpu.caps().buffer_bytes)?;
    // All bits set is a NaN in every type.
    let mut bytes = vec![0xff_u8; (end as usize + 64 * size).next_multiple_of(16)];
    let [_, heads, length, width] = layout.shape;
    for (row, values) in values.chunks_exact((width * size).max(1)).enumerate() {
        let index = [row / length / heads, row / length % heads, row % length];
        let start = layout.offset + index.iter().zip(layout.strides).map(|(i, s)| i * s).sum::<usize>();
        bytes[start * size..][..values.len()].copy_from_slice(values);
    }
    Tensor::upload_bytes(gpu, layout, &bytes).await
}

/// The types of tokens.
pub(super) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// How far a result may be from float64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Type in which the result is stored.
    pub dtype: DType,
    /// For f32: error allowed for values around 1 and scores up to 64.
    pub unit: f64,
    /// Largest scale·Σ|q·k| of a visible key: a rounded score of this size costs that much.
    pub magnitude: f64,
}

impl Tolerance {
    /// Compares element by element. f32: `unit · max(1, max|expected|) · max(1, magnitude/64)`. 16-bit: twice the largest
    /// rounding of the reference to that type, and one unit in the last place; but no closer than f32 has to be, because what
    /// cancels in the reference leaves f32's rounding behind. NaN and infinity must stand where they stand in the reference.
    pub fn compare(&self, found: &[f32], expected: &[f64]) -> Outcome {
        assert_eq!(found.len(), expected.len(), "a result has as many values as its reference");
        let finite = || expected.iter().copied().filter(|x| x.is_finite());
        let largest = finite().fold(1.0, |a, x| x.abs().max(a));
        let rounding = finite().map(|x| (self.round(x) - x).abs()).filter(|r| r.is_finite()).fold(0.0, f64::max);
        let f32_bound = self.unit * largest * (self.magnitude / 64.0).max(1.0);
        let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
        for (&found, &expected) in found.iter().zip(expected) {
            let found = f64::from(found);
            let allowed = match self.dtype {
                DType::F32 => f32_bound,
                _ => (2.0 * rounding + self.last_place(expected)).max(f32_bound),
            };
            let error = (found - expected).abs();
            let good =
                if expected.is_nan() { found.is_nan() } else { found == expected || self.round(expected) == found };
            let one = match (good, error.is_finite()) {
                (true, _) => Outcome { error: if error.is_finite() { error } else { 0.0 }, over_tolerance: 0.0 },
                (false, true) => Outcome { error, over_tolerance: error / allowed },
                (false, false) => Outcome { error: f64::INFINITY, over_tolerance: f64::INFINITY },
            };
            outcome = outcome.and(one);
        }
        outcome
    }

    fn round(&self, x: f64) -> f64 {
        match self.dtype {
            DType::F32 | DType::U8 | DType::U32 => x,
            DType::F16 => half::f16::from_f64(x).to_f64(),
            DType::Bf16 => half::bf16::from_f64(x).to_f64(),
        }
    }

    /// The unit in the last place of a 16-bit value of this size, not below the smallest normal's.
    fn last_place(&self, x: f64) -> f64 {
        let (digits, smallest) = if self.dtype == DType::F16 { (10, -14) } else { (7, -126) };
        let exponent = if x == 0.0 || !x.is_finite() { smallest } else { x.abs().log2().floor() as i32 };
        2f64.powi(exponent.max(smallest) - digits)
    }
}

/// Lengths or offsets on a GPU.
pub(super) async fn upload_numbers(gpu: &Gpu, numbers: &[usize]) -> Result<Tensor> {
    Tensor::upload_u32(gpu, &numbers.iter().map(|&n| n as u32).collect::<Vec<_>>()).await
}
