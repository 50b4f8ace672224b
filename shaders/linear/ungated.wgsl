// Nothing decays: e^g − 1 = 0.
fn change_of(t: Token) -> f32 { return 0.0; }
fn report(batch: u32, head: u32) {}
