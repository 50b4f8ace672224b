// The state begins with nothing.
fn initial_state(w: Work, row: u32, column: u32) -> vec4f { return vec4f(); }
