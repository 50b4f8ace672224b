// The state begins with nothing.
fn initial_state(batch: u32, head: u32, row: u32, column: u32) -> vec4f { return vec4f(); }
