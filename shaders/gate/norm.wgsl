// RMS norm: y / sqrt(mean(y²) + epsilon) · norm. Or none.

fn norm_factor(r: u32) -> f32 {
    if (!HAS_NORM) { return 1.0; }
    var squares = vec4f();
    for (var c = 0u; c < WIDTH4; c++) { squares = fma(projected[r * WIDTH4 + c], projected[r * WIDTH4 + c], squares); }
    return inverseSqrt((squares.x + squares.y + squares.z + squares.w) / f32(GATE_DIM) + params.epsilon);
}

fn norm_weight(d: u32) -> f32 {
    if (!HAS_NORM) { return 1.0; }
    return load_norm(at_norm(0u, 0u, 0u) + min(d, GATE_DIM - 1u));
}
