// Which tensors the engine multiplies: rows are queries, columns keys, and values are summed up.

fn row_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_q4(at_q(w.batch, w.head, query_of(w, token)) + 4u * d, HEAD_DIM - 4u * d) * params.q_factor;
}

fn col_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    if (what == SCORES) { return load_k4(at_k(w.batch, w.kv_head, key_of(w, token)) + 4u * d, HEAD_DIM - 4u * d); }
    return load_v4(at_v(w.batch, w.kv_head, key_of(w, token)) + 4u * d, HEAD_DIM_V - 4u * d);
}
