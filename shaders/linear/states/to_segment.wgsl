// What the tokens of a segment leave, for scan.wgsl.
fn write_state(w: Work, row: u32, column: u32, x: vec4f) {
    store_states4(row_of(params.states, w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column, x);
}
