// Soft cap: score' = cap · tanh(score / cap). tanh of thousands is NaN on one driver: beyond 10 it is 1 in f32 anyway.

fn softcap(score: f32, at: Position) -> f32 {
    let x = clamp(score / params.softcap, -10.0, 10.0);
    return params.softcap * (1.0 - 2.0 / (1.0 + exp(2.0 * x)));
}

// d score = d score' · (1 − tanh²(score / cap)) = d score' · 4 / (exp(x) + exp(−x))²
fn softcap_grad(score: f32, at: Position, d_out: f32) -> f32 {
    let x = clamp(score / params.softcap, -10.0, 10.0);
    let cosh2 = exp(x) + exp(-x);
    return d_out * 4.0 / (cosh2 * cosh2);
}
