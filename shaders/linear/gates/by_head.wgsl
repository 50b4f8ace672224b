// A head fades at the same rate throughout: the table `slopes` has −g of each, four a row. Without it nothing fades.
fn gate_of(t: Token) -> f32 {
    if (HAS_SLOPES) { return -slopes[t.head / 4u][t.head % 4u]; }
    return 0.0;
}
fn gates_of(t: Token, d: u32) -> vec4f { return vec4f(gate_of(t)); }
