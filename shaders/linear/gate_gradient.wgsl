// Gradient of the gates. With S and U, the state after a token and the gradient that reaches it from behind, A_t = ⟨U_t, S_t⟩:
//
//   dg_t = A_(t−1) = A_t + q_t·dq_t − k_t·dk_t,
//
// so a sum from the end of a segment, where both walks have left S and U (turned: HEAD_DIM is the values' width). A segment is short
// enough for f32: a sum over a whole sequence would lose what is small. A workgroup takes a segment of a head; workgroup memory:
// 4·(SEGMENT + WG) bytes.

var<workgroup> terms: array<f32, SEGMENT>;

// ⟨U, S⟩ after segment w: S is what the next segment of the one walk begins with, U what this segment of the other does.
fn product_of_states(w: Work, thread: u32) -> f32 {
    let last = segments_of(w.batch) - 1u;
    let columns = (HEAD_DIM_V + 3u) / 4u;
    var sum = 0.0;
    for (var at = thread; at < select(0u, HEAD_DIM * columns, w.place <= last); at += WG) {
        let row = at / columns;
        let column = 4u * (at % columns);
        let s = load_states4(row_of(params.states, w.batch, w.head, (w.place + 1u) * HEAD_DIM + row) + column, HEAD_DIM_V - column);
        let u = load_behind4(row_of(params.behind, w.batch, w.head, (last - w.place) * HEAD_DIM + row) + column, HEAD_DIM_V - column);
        sum += dot(s, u);
    }
    return sum_of(sum, thread);
}

// q·dq − k·dk.
fn term_of(t: Token) -> f32 {
    let q = row_of_q(t);
    let k = row_of_k(t);
    let dq = row_of(params.dq, t.batch, t.head, t.row);
    let dk = row_of(params.dk, t.batch, t.head, t.row);
    var sum = 0.0;
    for (var d = 0u; d < HEAD_DIM_V; d += 4u) {
        let n = HEAD_DIM_V - d;
        sum += dot(load_q4(q + d, n), load_dq4(dq + d, n)) - dot(load_k4(k + d, n), load_dk4(dk + d, n));
    }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, params.first.z + workgroup.x, 0u);
    let after = product_of_states(w, thread);
    for (var n = thread; n < w.count; n += WG) { terms[n] = term_of(token_at(w, n)); }
    workgroupBarrier();
    for (var n = thread; n < w.count; n += WG) {
        var sum = after;
        for (var later = w.count; later > n; later--) { sum += terms[later - 1u]; }
        store_dg(row_of(params.dg, w.batch, w.head, token_at(w, n).row), bitcast<u32>(sum));
    }
}
