//! The angles of rotary positions, in float64.

use functions::{power, sin_cos};

/// Rows of the table: for 10, 10 and 12 bits of a position, each with the place of its lowest bit.
const PARTS: [(u64, u32); 3] = [(1 << 10, 0), (1 << 10, 10), (1 << 12, 20)];

/// How many rows there are.
pub(super) const ROWS: u64 = PARTS[0].0 + PARTS[1].0 + PARTS[2].0;

/// (cos, sin) of each part of a position, for every pair of dimensions.
pub(super) fn table(theta: f32, dim: usize) -> Vec<[f32; 2]> {
    let frequency = |pair: usize| power(f64::from(theta), -2.0 * pair as f64 / dim as f64);
    let frequencies: Vec<f64> = (0..dim / 2).map(frequency).collect();
    let positions = PARTS.into_iter().flat_map(|(count, shift)| (0..count).map(move |n| (n << shift) as f64));
    let angle = |position: f64| frequencies.iter().map(move |f| sin_cos(position * f));
    positions.flat_map(angle).map(|(sin, cos)| [cos as f32, sin as f32]).collect()
}

/// In a browser by its own functions: Rust's would be 2 % of the module that a page downloads.
#[cfg(all(target_arch = "wasm32", feature = "webgpu"))]
mod functions {
    pub(super) use js_sys::Math::pow as power;

    pub(super) fn sin_cos(angle: f64) -> (f64, f64) {
        (js_sys::Math::sin(angle), js_sys::Math::cos(angle))
    }
}

#[cfg(not(all(target_arch = "wasm32", feature = "webgpu")))]
mod functions {
    pub(super) fn power(base: f64, exponent: f64) -> f64 {
        base.powf(exponent)
    }

    pub(super) fn sin_cos(angle: f64) -> (f64, f64) {
        angle.sin_cos()
    }
}
