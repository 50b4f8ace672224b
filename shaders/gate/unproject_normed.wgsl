// Through the norm.
fn write_straight(p: Place, r: u32, column: u32) {
    let factor = norm_factor(r);
    let d = 4u * column;
    var mean = 0.0;
    for (var e = 0u; e < GATE_DIM; e++) { mean = fma(straight[r * WIDTH4 + e / 4u][e % 4u] * norm_weight(e), element(r, e), mean); }
    mean = mean / f32(GATE_DIM) * factor * factor;
    let u = straight[r * WIDTH4 + column];
    let y = projected[r * WIDTH4 + column];
    let norm = vec4f(norm_weight(d), norm_weight(d + 1u), norm_weight(d + 2u), norm_weight(d + 3u));
    store_to4(row_of(params.to, p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, factor * (u * norm - y * mean));
    store_shares4(row_of(params.shares, p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, factor * u * y);
}
