// Where dq is added to nothing.
fn so_far(w: Work, token: u32, d: u32) -> vec4f { return vec4f(); }
