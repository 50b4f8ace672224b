// Second of three passes: from what each segment's tokens leave to the state that each segment begins with,
//
//   S_(n+1) = e^(G_n) S_n + local_n,   S_0 the initial state,
//
// in place, in the order of the walk; a thread takes four columns of a row. The last state goes to its place, and, where KEPT, behind
// the entry's last segment. Where not CAUSAL, every segment begins with the last state instead.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let at = (params.first.z + workgroup.x) * WG + thread;
    let columns = (HEAD_DIM_V + 3u) / 4u;
    let row = at / columns;
    let column = 4u * (at % columns);
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, column);
    let segments = segments_of(w.batch);
    if (row < HEAD_DIM) {
        var x = initial_state(w, row, column);
        for (var n = 0u; n < segments; n++) {
            let local = exchange(w, n, row, column, x, n + 1u - WHOLE < segments);
            x = faded(w, n, row, x) + local;
        }
        if (WHOLE == 1u) { write_state(w, row, column, x); }
        if (KEPT == 1u) { store_states4(state_at(w, segments, row, column), HEAD_DIM_V - column, x); }
        for (var n = 0u; n < select(segments, 0u, CAUSAL == 1u); n++) { exchange(w, n, row, column, x, false); }
    }
}

// By the gates of segment n.
fn faded(w: Work, n: u32, row: u32, x: vec4f) -> vec4f {
    if (!HAS_FADES) { return fma(vec4f(change_of(bitcast<f32>(load_totals(at_totals(w.batch, w.head, 0u) + n)))), x, x); }
    let segment = segment_at(w.batch, w.head, n, w.column);
    var left = x;
    var n0 = 0u;
    while (n0 < segment.count) {
        left *= left_of_channel(segment, n0, row);
        n0 += tokens_of_chunk(segment, n0);
    }
    return left;
}

fn state_at(w: Work, n: u32, row: u32, column: u32) -> u32 {
    return at_states(w.batch, w.head, n * HEAD_DIM + row) + column;
}

// Writes the state that segment n begins with; returns what its tokens leave, if that was computed.
fn exchange(w: Work, n: u32, row: u32, column: u32, x: vec4f, known: bool) -> vec4f {
    let at = state_at(w, n, row, column);
    var local = vec4f();
    if (known) { local = load_states4(at, HEAD_DIM_V - column); }
    store_states4(at, HEAD_DIM_V - column, x);
    return local;
}
