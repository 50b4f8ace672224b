// Every token of a head has its own gate g ≤ 0.
fn gate_of(t: Token) -> f32 { return checked_gate(load_g(at_g(t.batch, t.head / G_GROUP, t.row)), t.row); }
fn gates_of(t: Token, d: u32) -> vec4f { return vec4f(gate_of(t)); }
