// States between tokens are not wanted.
fn snapshot(w: Work, n: u32, row: u32, column: u32, x: vec4f) {}
