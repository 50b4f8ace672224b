// The state begins with another.
fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    return load_h04(row_of(params.h0, w.batch, w.head, row) + column, HEAD_DIM_V - column);
}
