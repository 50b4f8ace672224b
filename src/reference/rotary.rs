//! Rotary position embedding, row by row.

use crate::RotaryParams;

/// The embedding of rows of `width` elements or, with `backward`, its gradient. `positions` has the position of each row.
///
/// ```
/// use wgpu_attention::reference::rotary;
/// use wgpu_attention::RotaryParams;
/// let turned = rotary(&RotaryParams::default(), &[1.0, 0.0], 2, &[3], false);
/// assert!((turned[0] - 3f64.cos()).abs() < 1e-12 && (turned[1] - 3f64.sin()).abs() < 1e-12);
/// ```
pub fn rotary(params: &RotaryParams, x: &[f32], width: usize, positions: &[u32], backward: bool) -> Vec<f64> {
    let dim = params.dim.unwrap_or(width);
    let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    for ((out, x), &position) in out.chunks_mut(width).zip(x.chunks(width)).zip(positions) {
        for pair in 0..dim / 2 {
            let (a, b) = if params.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + dim / 2) };
            let frequency = f64::from(params.theta).powf(-((2 * pair) as f64) / dim as f64);
            let angle = f64::from(position) * frequency;
            let sine = if backward { -angle.sin() } else { angle.sin() };
            let (first, second) = (f64::from(x[a]), f64::from(x[b]));
            out[a] = first * angle.cos() - second * sine;
            out[b] = second * angle.cos() + first * sine;
        }
    }
    out
}
