// A workgroup visits all that its tile does: tiles [x, y).
fn part_of_visit(w: Work, visit: Visit, count: u32) -> vec2u { return vec2u(0u, count); }
