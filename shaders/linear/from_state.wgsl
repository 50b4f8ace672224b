// The state goes on from another.
fn initial_state(batch: u32, head: u32, row: u32, column: u32) -> vec4f {
    var x: vec4f;
    let at = row_of(params.h0, batch, head, row) + column;
    for (var e = 0u; e < 4u; e++) {
        if (column + e < HEAD_DIM_V) { x[e] = bitcast<f32>(load_h0(at + e)); }
    }
    return x;
}
