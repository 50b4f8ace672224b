// The state begins with another, whose rows are this one's columns.
fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    var x = vec4f();
    for (var e = 0u; e < 4u; e++) {
        if (column + e < HEAD_DIM_V) { x[e] = load_h0(row_of(params.h0, w.batch, w.head, column + e) + row); }
    }
    return x;
}
