// Linear attention, token by token, for adapters whose shaders run on a CPU (engines/processor/products.wgsl says what is dear there):
//
//   S ← e^g · S + gain · k vᵀ,   o = scale · Sᵀ q
//
// S [HEAD_DIM, HEAD_DIM_V] of each (batch entry, head), f32. q, k [batch, their heads, tokens, HEAD_DIM], v, o [batch, heads,
// tokens, HEAD_DIM_V] by strides. Where not CAUSAL, every token reads the last S. Where KEPT, what each SEGMENT tokens begin with is
// written, and what the last of them leave.
//
// A workgroup is one subgroup of WG threads. A thread keeps four columns of S in registers, all rows. It loads every WG-th vec4 of a key
// and of a query, and hands them round by broadcasts. No workgroup memory. Sums are taken as in recurrent.wgsl: by LANES parts, the rows
// in turns, so that decoding goes on with the same bits.

const COLS: u32 = 4u * WG;

// Rows by four.
var<private> state: array<array<vec4f, FOUR>, LOADS * WG>;
// What the state still has to fade by, where it fades after a token has read it.
var<private> pending: f32;

fn column_of(w: Work, thread: u32) -> u32 { return w.column + 4u * thread; }

fn is_inside(row: u32, column: u32) -> bool { return row < HEAD_DIM && column < HEAD_DIM_V; }

// (Loops over D4 in which memory is reached stay loops: a load takes a compiler longer than the choice of a register.)
fn load_state(w: Work, thread: u32) {
    let column = column_of(w, thread);
    for (var n = 0u; n < D4; n++) {
        for (var e = 0u; e < EACH_FOUR; e++) {
            var x = vec4f();
            if (is_inside(4u * n + e, column)) { x = initial_state(w, 4u * n + e, column); }
            for (var d = 0u; d < EACH_D4; d++) { state[d][e] = select(state[d][e], x, d == n); }
        }
    }
}

// To where the walk ends, or as what segment number `segment` begins with.
fn store_state(w: Work, segment: u32, kept: bool, thread: u32) {
    let column = column_of(w, thread);
    let fade = fade_of(pending);
    for (var n = 0u; n < D4; n++) {
        for (var e = 0u; e < EACH_FOUR; e++) {
            var x = vec4f();
            for (var d = 0u; d < EACH_D4; d++) { x = select(x, state[d][e], d == n); }
            x = select(fade.x * x + fade.y * x, x, pending == 0.0);
            let row = 4u * n + e;
            let at = at_states(w.batch, w.head, segment * HEAD_DIM + row) + column;
            if (is_inside(row, column)) {
                if (kept) { store_states4(at, HEAD_DIM_V - column, x); } else { write_state(w, row, column, x); }
            }
        }
    }
}

fn pass_token(w: Work, n: u32, absorbs: bool, reads: bool, thread: u32) {
    let t = token_at(w, n);
    let column = column_of(w, thread);
    var fade = vec2f(1.0, 0.0);
    var v = vec4f();
    if (absorbs) {
        let gate = gate_of(t);
        fade = fade_of(select(gate, pending, params.late == 1u));
        pending = select(0.0, gate, params.late == 1u);
        let inside = min(column, (HEAD_DIM_V - 1u) / 4u * 4u);
        v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + inside, HEAD_DIM_V - inside);
        v = select(vec4f(), params.gain * v, column < HEAD_DIM_V);
    }
    var parts: array<vec4f, LANES>;
    for (var lane = 0u; lane < EACH_LANES; lane++) { parts[lane] = vec4f(); }
    for (var load = 0u; load < EACH_LOADS; load++) {
        let inside = 4u * min(load * WG + thread, D4 - 1u);
        var keys = vec4f();
        var queries = vec4f();
        if (absorbs) { keys = load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + inside, HEAD_DIM - inside); }
        if (reads) { queries = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + inside, HEAD_DIM - inside); }
        for (var part = 0u; part < EACH_WG; part++) {
            if (load * WG + part < D4) {
                let k = subgroupBroadcast(keys, part);
                let q = subgroupBroadcast(queries, part);
                for (var e = 0u; e < EACH_FOUR; e++) {
                    var x = state[load * WG + part][e];
                    if (absorbs) {
                        x = fma(vec4f(fade.x), x, fma(vec4f(k[e]), v, fade.y * x));
                        state[load * WG + part][e] = x;
                    }
                    let lane = (load * WG + part) % LANES;
                    parts[lane] = fma(vec4f(q[e]), x, parts[lane]);
                }
            }
        }
    }
    var o = vec4f();
    for (var lane = 0u; lane < EACH_LANES; lane++) { o += parts[lane]; }
    if (reads && column < HEAD_DIM_V) { store_o4(at_o(w.batch, w.head, t.row) + column, HEAD_DIM_V - column, params.scale * o); }
}

// All tokens, and between them the states that are kept.
fn pass_segments(w: Work, thread: u32) {
    let start = w.first - sequences[w.batch].x;
    var segment = start / SEGMENT;
    var next = SEGMENT;
    // The other way round, the first segment has what is left over.
    if (params.reverse == 1u) {
        segment = (sequences[w.batch].y + SEGMENT - 1u) / SEGMENT - (start + w.count + SEGMENT - 1u) / SEGMENT;
        next = (w.count + SEGMENT - 1u) % SEGMENT + 1u;
    }
    var more = true;
    for (var n = 0u; ; segment++) {
        store_state(w, segment, true, thread);
        if (!more) { break; }
        for (; n < min(next, w.count); n++) { pass_token(w, n, true, true, thread); }
        more = n < w.count;
        next += SEGMENT;
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    load_state(w, thread);
    if (CAUSAL == 0u) {
        for (var n = 0u; n < w.count; n++) { pass_token(w, n, true, false, thread); }
        for (var n = 0u; n < w.count; n++) { pass_token(w, n, false, true, thread); }
    } else if (KEPT == 0u) {
        for (var n = 0u; n < w.count; n++) { pass_token(w, n, true, true, thread); }
    } else if (w.count > 0u || w.place == 0u) {
        pass_segments(w, thread);
    }
    if (TO != 0u) { store_state(w, 0u, false, thread); }
    if (w.column == 0u) { report(w, thread); }
}
