// The last state is not wanted.
fn write_state(w: Work, row: u32, column: u32, x: vec4f) {}
