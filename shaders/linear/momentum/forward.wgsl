// Memory and momentum, from token to token (shared.wgsl), in place in `memory` and `momentum`; outputs, and, where states are KEPT, for the
// gradients, errors [batch, heads, tokens, HEAD_DIM_V] and states instead. With chunks of several tokens, the errors of all of them come first.
// BATCH tokens are read before the lanes' parts of their results are added up; an error is added up at once. Workgroup memory:
// 16·(BATCH + 2)·WG bytes, or 16·BATCH·WG with chunks of several tokens.

var<workgroup> parts: array<vec4f, BATCH * WG>;
// Of two tokens in turns, so that one barrier is enough.
var<workgroup> errors_of_lanes: array<vec4f, select(2u * WG, 1u, CHUNK > 1u)>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let s = stretch_of(workgroup, false);
    if (s.begin >= s.end) { return; }
    load_slot(s, slot_of(s.begin), thread);
    for (var chunk = s.begin; chunk < s.end; chunk += CHUNK) {
        let end = min(chunk + CHUNK, s.end);
        if (CHUNK > 1u) {
            for (var n = chunk; n < end; n++) {
                parts[(n - chunk) % BATCH * WG + thread] = read_by(token_of(s, n), false, thread);
                if ((n - chunk) % BATCH == BATCH - 1u || n + 1u == end) { write_batch(s, n - (n - chunk) % BATCH, n + 1u, false, thread); }
            }
            storageBarrier();
        }
        for (var n = chunk; n < end; n++) {
            if (KEPT == 1u && place_in_segment(n) == 0u) { store_slot(s, slot_of(n), thread); }
            // The errors of the next chunk take the place of outputs: a batch ends with its chunk.
            if (CHUNK > 1u) { pass_token(s, n, chunk, end, thread); } else { pass_token(s, n, s.begin, s.end, thread); }
        }
    }
    // In place, or as what the next segment begins with.
    if (KEPT == 0u || place_in_segment(s.end) == 0u) { store_slot(s, slot_of(s.end), thread); }
}

// One of tokens [first, end).
fn pass_token(s: Stretch, n: u32, first: u32, end: u32, thread: u32) {
    let t = token_of(s, n);
    let step = step_of(t);
    let column = column_of(s, thread);
    var e = vec4f();
    if (CHUNK > 1u) {
        e = error_of(t, column);
    } else {
        let turn = n % 2u * WG;
        errors_of_lanes[turn + thread] = read_by(t, false, thread);
        workgroupBarrier();
        for (var lane = 0u; lane < LANES; lane++) { e += errors_of_lanes[turn + lane * QUADS + thread % QUADS]; }
        e -= value_of(t, column);
        if (KEPT == 1u && thread < QUADS) { store_error(t, column, e); }
    }
    absorb(t, step, e, thread);
    if (KEPT == 0u) {
        let place = (n - first) % BATCH;
        parts[place * WG + thread] = read_by(t, true, thread);
        if (place == BATCH - 1u || n + 1u == end) { write_batch(s, n - place, n + 1u, true, thread); }
    }
}

// This thread's part of Mᵀ q, or Mᵀ k.
fn read_by(t: Token, by_query: bool, thread: u32) -> vec4f {
    var sum = vec4f();
    for (var i = 0u; i < PART; i++) {
        var x = vec4f();
        if (by_query) { x = query_of(t, row_of(i, thread)); } else { x = key_of(t, row_of(i, thread)); }
        for (var r = 0u; r < 4u; r++) { sum = fma(vec4f(x[r]), memory[i][r], sum); }
    }
    return sum;
}

// Four columns of a value; 0 past the last.
fn value_of(t: Token, column: u32) -> vec4f {
    let inside = inside_row(column);
    let v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + inside, HEAD_DIM_V - inside);
    return select(vec4f(), v, column < HEAD_DIM_V);
}

// The outputs, or the errors, of tokens [first, end).
fn write_batch(s: Stretch, first: u32, end: u32, outputs: bool, thread: u32) {
    workgroupBarrier();
    for (var at = thread; at < (end - first) * QUADS; at += WG) {
        let quad = at % QUADS;
        let n = at / QUADS;
        var sum = vec4f();
        for (var lane = 0u; lane < LANES; lane++) { sum += parts[n * WG + lane * QUADS + quad]; }
        let t = token_of(s, first + n);
        let column = s.column + 4u * quad;
        if (!outputs) {
            store_error(t, column, sum - value_of(t, column));
        } else if (column < HEAD_DIM_V) {
            store_o4(at_o(t.batch, t.head, t.row) + column, HEAD_DIM_V - column, params.scale * sum);
        }
    }
    workgroupBarrier();
}
