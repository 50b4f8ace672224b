// Which tensors the engine multiplies: rows are queries, columns keys, and values are summed up.

fn row_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_q4(q_row(w, token) + 4u * d, HEAD_DIM - 4u * d) * params.q_factor;
}

fn col_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_k4(k_row(w, token) + 4u * d, HEAD_DIM - 4u * d);
}

fn sum_width(what: u32) -> u32 { return DV4; }

fn sum_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_v4(v_row(w, token) + 4u * d, HEAD_DIM_V - 4u * d);
}
