// The last state is written.
fn write_state(w: Work, row: u32, column: u32, x: vec4f) {
    store_ht4(row_of(params.ht, w.batch, w.head, row) + column, HEAD_DIM_V - column, x);
}
