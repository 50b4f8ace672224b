// What keys and queries have for rows d … d + 3 of the state, and how the state fades over a chunk.

fn query_at(t: Token, d: u32) -> vec4f { return load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + d, HEAD_DIM - d); }
fn key_at(t: Token, d: u32) -> vec4f { return load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + d, HEAD_DIM - d); }

fn fade_state(w: Work, n0: u32, count: u32, thread: u32) {
    let change = vec4f(change_of(gates_between(count, 0u)));
    for (var i = 0u; i < RD; i++) {
        let row = thread / TC * RD + i;
        var left = 1.0;
        if (HAS_FADES) { left = left_of_channel(w, n0, min(row, HEAD_DIM - 1u)); }
        for (var c = 0u; c < OV; c++) {
            if (HAS_FADES) { state[i][c] *= left; } else { state[i][c] = fma(change, state[i][c], state[i][c]); }
        }
    }
}
