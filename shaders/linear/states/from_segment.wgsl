// The state that a segment begins with, as scan.wgsl has left it.
fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    return load_states4(row_of(params.states, w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column);
}
