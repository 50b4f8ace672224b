/// Merges partial results into one, row by row: `lse = ln Σ exp(lse_i)`, `out = Σ exp(lse_i − lse) · out_i`. Each part is its output
/// \[rows, value_dim\] and its log-sum-exp \[rows\]; a part whose LSE is −∞ has seen nothing.
///
/// ```
/// use wgpu_attention::reference::merge;
/// let (out, lse) = merge(&[(&[1.0], &[0.0]), (&[5.0], &[f32::ln(3.0)])], 1); // weights 1/4 and 3/4
/// assert!((out[0] - 4.0).abs() < 1e-6 && (lse[0] - 4f64.ln()).abs() < 1e-6);
/// ```
pub fn merge(parts: &[(&[f32], &[f32])], value_dim: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = parts.first().map_or(0, |(_, lse)| lse.len());
    let (mut out, mut lse) = (vec![0.0; rows * value_dim], vec![f64::NEG_INFINITY; rows]);
    for (row, (out, lse)) in out.chunks_mut(value_dim.max(1)).zip(&mut lse).enumerate() {
        let seen = || parts.iter().filter(|(_, lse)| lse[row] != f32::NEG_INFINITY);
        if seen().next().is_none() {
            continue;
        }
        let top = seen().map(|(_, lse)| f64::from(lse[row])).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = seen().map(|(_, lse)| (f64::from(lse[row]) - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        *lse = top + sum.ln();
        for ((values, _), weight) in seen().zip(weights) {
            for (out, &value) in out.iter_mut().zip(&values[row * value_dim..]) {
                *out += weight / sum * f64::from(value);
            }
        }
    }
    (out, lse)
}
