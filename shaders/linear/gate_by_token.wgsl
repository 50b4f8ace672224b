// Every token of a head has its own gate g ≤ 0. One that is positive or NaN counts as 0, and the first such of a head is reported:
// problem[batch · heads + head] = its row + 1, else 0.

var<private> wrong: u32;

// e^g − 1 for −1/2 < g ≤ 0, to the last place.
fn change_near_zero(g: f32) -> f32 {
    let high = fma(g, fma(g, fma(g, fma(g, 1.0 / 40320.0, 1.0 / 5040.0), 1.0 / 720.0), 1.0 / 120.0), 1.0 / 24.0);
    return g * fma(g, fma(g, fma(g, high, 1.0 / 6.0), 0.5), 1.0);
}

fn change_of(t: Token) -> f32 {
    let g = load_g(row_of(params.g, t.batch, t.head, t.row));
    let bits = bitcast<u32>(g);
    // −0 and below, down to −∞; what decides is bits.
    let good = bits == 0u || (bits >= 0x80000000u && bits <= 0xff800000u);
    if (!good && wrong == 0u) { wrong = t.row + 1u; }
    if (!good) { return 0.0; }
    if (bits == 0xff800000u) { return -1.0; }
    return select(exp(g) - 1.0, change_near_zero(g), g > -0.5);
}

fn report(batch: u32, head: u32) {
    problem[batch * params.heads + head] = wrong;
}
