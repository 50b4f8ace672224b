// Features through a linear map without bias, head by head; or as they are, where they are as wide as the gate.

fn left(p: Place, row: u32, f: u32) -> f32 {
    if (!exists(p.batch, row)) { return 0.0; }
    return load_x(feature_at(p.batch, p.head, row, f));
}

fn right(p: Place, f: u32, column: u32) -> vec4f {
    return load_weights4(at_weights(0u, p.head, f) + 4u * column, GATE_DIM - 4u * column);
}

fn project(p: Place, thread: u32) {
    if (HAS_WEIGHTS) {
        multiply(p, params.joined * WIDTH_X, thread);
        return;
    }
    for (var i = 0u; i < PART; i++) {
        let row = p.row0 + min(row_of_part(thread, i), ROWS - 1u);
        sums[i] = vec4f();
        for (var e = 0u; e < 4u; e++) {
            let d = 4u * (thread % WIDTH4) + e;
            if (exists(p.batch, row) && d < GATE_DIM) { sums[i][e] = load_x(feature_at(p.batch, p.head, row, d)); }
        }
    }
}
