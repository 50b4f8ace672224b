// The last state is written.
fn write_state(batch: u32, head: u32, row: u32, column: u32, x: vec4f) {
    let at = row_of(params.ht, batch, head, row) + column;
    for (var e = 0u; e < 4u; e++) {
        if (column + e < HEAD_DIM_V) { store_ht(at + e, bitcast<u32>(x[e])); }
    }
}
