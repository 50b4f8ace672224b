// Every token of a head has a gate g ≤ 0 for each channel of its key: CHANNELS of them.
fn gates_of(t: Token, d: u32) -> vec4f {
    let inside = min(d, (CHANNELS - 1u) / 4u * 4u);
    var g = load_g4(at_g(t.batch, t.head / G_GROUP, t.row) + inside, CHANNELS - inside);
    for (var e = 0u; e < 4u; e++) { g[e] = checked_gate(g[e], t.row); }
    return g;
}
fn gate_of(t: Token) -> f32 { return 0.0; }
