// Gradient of the gates. With S and U, the state after a token and the gradient that reaches it from behind, A_t = ⟨U_t, S_t⟩:
//
//   dg_t = A_(t−1) = A_t + q_t·dq_t − k_t·(dk_t + less_t),   `less` nil but for the delta rule: its gradient of k is dk − less
//
// so a sum from the end of a segment, or with the other sign from its start, where both walks have left S and U (turned: HEAD_DIM is
// the values' width). Both are taken, each the more the nearer its end: rounding errors of the terms add up on the way, and are nil at
// either end. Segments are short, since gates that fade hard leave dg small beside the terms. A workgroup takes a segment of a head;
// workgroup memory: 4·(SEGMENT + WG) bytes.

var<workgroup> terms: array<f32, SEGMENT>;

// ⟨U, S⟩ where segment `number` begins: S is what it begins with on the one walk, U what the one before it does on the other.
fn product_of_states(w: Work, number: u32, thread: u32) -> f32 {
    let segments = segments_of(w.batch);
    let columns = (HEAD_DIM_V + 3u) / 4u;
    var sum = 0.0;
    for (var at = thread; at < select(0u, HEAD_DIM * columns, number <= segments); at += WG) {
        let row = at / columns;
        let column = 4u * (at % columns);
        let s = load_states4(at_states(w.batch, w.head, number * HEAD_DIM + row) + column, HEAD_DIM_V - column);
        let u = load_behind4(at_behind(w.batch, w.head, (segments - number) * HEAD_DIM + row) + column, HEAD_DIM_V - column);
        sum += dot(s, u);
    }
    return sum_of(sum, thread);
}

// q·dq − k·(dk + less).
fn term_of(t: Token) -> f32 {
    let q = at_q(t.batch, t.head / params.groups.x, t.row);
    let k = at_k(t.batch, t.head / params.groups.y, t.row);
    let dq = at_dq(t.batch, t.head, t.row);
    let dk = at_dk(t.batch, t.head, t.row);
    let less = at_less(t.batch, t.head, t.row);
    var sum = 0.0;
    for (var d = 0u; d < HEAD_DIM_V; d += 4u) {
        let n = HEAD_DIM_V - d;
        let of_k = load_dk4(dk + d, n) + load_less4(less + d, n);
        sum += dot(load_q4(q + d, n), load_dq4(dq + d, n)) - dot(load_k4(k + d, n), of_k);
    }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, params.first.z + workgroup.x, 0u);
    let before = product_of_states(w, w.place, thread);
    let after = product_of_states(w, w.place + 1u, thread);
    for (var n = thread; n < w.count; n += WG) { terms[n] = term_of(token_at(w, n)); }
    workgroupBarrier();
    for (var n = thread; n < w.count; n += WG) {
        var from_start = before;
        for (var earlier = 0u; earlier < n; earlier++) { from_start -= terms[earlier]; }
        var from_end = after;
        for (var later = w.count; later > n; later--) { from_end += terms[later - 1u]; }
        let sum = mix(from_start, from_end, f32(n) / f32(w.count));
        store_dg(at_dg(w.batch, w.head, token_at(w, n).row), bitcast<u32>(sum));
    }
}
