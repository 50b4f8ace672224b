// (alpha, eta, theta, 0) of a token, as steps.wgsl has written them.
fn step_of(t: Token) -> vec4f { return load_steps4(at_steps(t.batch, t.head, t.row), 4u); }
