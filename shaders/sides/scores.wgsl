// Which tensors the engine multiplies where scores are all that is wanted: rows are queries, columns keys.

fn row_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_q4(at_q(w.batch, w.head, query_of(w, token)) + 4u * d, HEAD_DIM - 4u * d) * params.q_factor;
}

fn col_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    return load_k4(at_k(w.batch, w.kv_head, key_of(w, token)) + 4u * d, HEAD_DIM - 4u * d);
}
