// Nothing fades.
fn gate_of(t: Token) -> f32 { return 0.0; }
fn report(w: Work, thread: u32) {}
