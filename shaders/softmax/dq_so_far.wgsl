// What dq is added to: the part of another pass over other keys.
fn so_far(w: Work, token: u32, d: u32) -> vec4f {
    return load_dq_so_far4(row_of(params.dq_so_far, w.batch, w.head, query_of(w, token)) + 4u * d, HEAD_DIM - 4u * d);
}
