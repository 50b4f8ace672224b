// Features through a linear map without bias, head by head.

fn left(p: Place, row: u32, f: u32) -> f32 {
    if (!exists(p.batch, row)) { return 0.0; }
    return load_x(feature_at(p.batch, p.head, row, f));
}

fn right(p: Place, f: u32, column: u32) -> vec4f {
    return load_weights4(row_of(params.weights, 0u, p.head, f) + 4u * column, GATE_DIM - 4u * column);
}

fn project(p: Place, thread: u32) {
    multiply(p, params.joined * WIDTH_X, thread);
}
