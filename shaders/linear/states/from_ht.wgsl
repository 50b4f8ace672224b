// The state goes on where it lies.
fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    return load_ht4(row_of(params.ht, w.batch, w.head, row) + column, HEAD_DIM_V - column);
}
