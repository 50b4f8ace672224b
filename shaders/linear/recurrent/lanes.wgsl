// A walk token by token (recurrent.wgsl). Thread (lane, quad) of a workgroup keeps four columns of every LANES-th four rows of S in
// registers. BATCH tokens are read before the lanes' parts of their results are added up; a correction is added up at once. Workgroup
// memory: 16·(BATCH + CORRECTIONS)·WG bytes.

const QUADS: u32 = COLS / 4u;
const LANES: u32 = WG / QUADS;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const PART: u32 = (D4 + LANES - 1u) / LANES;

var<private> state: array<array<vec4f, 4>, PART>;
var<workgroup> parts: array<vec4f, BATCH * WG>;
// Of two tokens in turns, so that one barrier is enough.
var<workgroup> corrections: array<vec4f, max(1u, CORRECTIONS * WG)>;

fn column_of(w: Work, thread: u32) -> u32 { return w.column + 4u * (thread % QUADS); }

// Four rows: 4 · row_of(i), …
fn row_of(i: u32, thread: u32) -> u32 { return thread / QUADS + LANES * i; }

fn load_state(w: Work, thread: u32) {
    let column = column_of(w, thread);
    for (var i = 0u; i < PART; i++) {
        for (var e = 0u; e < 4u; e++) {
            let row = 4u * row_of(i, thread) + e;
            state[i][e] = vec4f();
            if (row < HEAD_DIM && column < HEAD_DIM_V) { state[i][e] = initial_state(w, row, column); }
        }
    }
}

// After n tokens: to where the walk ends, or as what segment number `segment` begins with.
fn store_state(w: Work, segment: u32, kept: bool, n: u32, thread: u32) {
    let column = column_of(w, thread);
    let fades = params.late == 1u && n > 0u;
    var fade = Fade(vec4f(1.0), vec4f());
    if (fades) { fade = fade_of_columns(w, n, column); }
    for (var i = 0u; i < PART; i++) {
        var rows = Fade(vec4f(1.0), vec4f());
        if (GATED == BY_ROW && fades) { rows = fade_by(gates_at(w, n, 4u * row_of(i, thread))); }
        for (var e = 0u; e < 4u; e++) {
            let row = 4u * row_of(i, thread) + e;
            var x = state[i][e];
            if (GATED == BY_ROW) { fade = Fade(vec4f(rows.keep[e]), vec4f(rows.rest[e])); }
            x = select(x, fade.keep * x + fade.rest * x, fades);
            if (row < HEAD_DIM && column < HEAD_DIM_V) {
                let at = at_states(w.batch, w.head, segment * HEAD_DIM + row) + column;
                if (kept) { store_states4(at, HEAD_DIM_V - column, x); } else { write_state(w, row, column, x); }
            }
        }
    }
}

// Four elements of a key or a query of HEAD_DIM; past the last, keys and queries are 0.
fn is_row(d: u32) -> bool { return d < D4; }
fn inside_of(d: u32) -> u32 { return 4u * min(d, D4 - 1u); }

fn key_of(t: Token, d: u32) -> vec4f {
    let inside = inside_of(d);
    return select(vec4f(), load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + inside, HEAD_DIM - inside), is_row(d));
}

fn key_after(t: Token, d: u32) -> vec4f {
    let inside = inside_of(d);
    return select(vec4f(), load_k24(at_k2(t.batch, t.head / K2_GROUP, t.row) + inside, HEAD_DIM - inside), is_row(d));
}

fn query_of(t: Token, d: u32) -> vec4f {
    let inside = inside_of(d);
    return select(vec4f(), load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + inside, HEAD_DIM - inside), is_row(d));
}

// S fades and, where it ADDS, absorbs a token.
fn absorb(w: Work, n: u32, thread: u32) {
    let t = token_at(w, n);
    let column = column_of(w, thread);
    var fade = fade_of_columns(w, n, column);
    var v = vec4f();
    if (ADDS == 1u && column < HEAD_DIM_V) {
        v = params.gain * load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + column, HEAD_DIM_V - column);
    }
    for (var i = 0u; i < PART; i++) {
        var rows = Fade(vec4f(1.0), vec4f());
        if (GATED == BY_ROW) { rows = fade_by(gates_at(w, n, inside_of(row_of(i, thread)))); }
        var k = vec4f();
        if (ADDS == 1u) { k = key_of(t, row_of(i, thread)); }
        for (var e = 0u; e < 4u; e++) {
            if (GATED == BY_ROW) { fade = Fade(vec4f(rows.keep[e]), vec4f(rows.rest[e])); }
            let x = state[i][e];
            if (ADDS == 1u) {
                state[i][e] = fma(fade.keep, x, fma(vec4f(k[e]), v, fade.rest * x));
            } else {
                state[i][e] = fma(fade.keep, x, fade.rest * x);
            }
        }
    }
}

// This thread's part of Sᵀ x.
fn read_by(t: Token, by_query: bool, thread: u32) -> vec4f {
    var sum = vec4f();
    for (var i = 0u; i < PART; i++) {
        let d = row_of(i, thread);
        var x = vec4f();
        if (by_query) { x = query_of(t, d); } else { x = key_after(t, d); }
        for (var e = 0u; e < 4u; e++) { sum = fma(vec4f(x[e]), state[i][e], sum); }
    }
    return sum;
}

fn sum_of_lanes(turn: u32, thread: u32) -> vec4f {
    var sum = vec4f();
    for (var lane = 0u; lane < LANES; lane++) { sum += corrections[turn * WG + lane * QUADS + thread % QUADS]; }
    return sum;
}

fn pass_token(w: Work, n: u32, absorbs: bool, reads: bool, thread: u32) {
    let t = token_at(w, n);
    let column = column_of(w, thread);
    if (absorbs) { absorb(w, n, thread); }
    if (reads && READS == 1u) { parts[n % BATCH * WG + thread] = read_by(t, true, thread); }
    if (ADDS_AFTER > 0u) {
        var u = vec4f();
        if (CORRECTS > 0u) {
            corrections[n % 2u * WG + thread] = read_by(t, false, thread);
            workgroupBarrier();
            let error = error_of(t, column, sum_of_lanes(n % 2u, thread));
            u = beta_of(t) * error;
            // One lane writes what all compute.
            if (thread < QUADS) { write_correction(t, column, error, u); }
        } else {
            u = value_of(t, column);
        }
        if (ADDS_AFTER == TAKES_AWAY) { u = -u; }
        for (var i = 0u; i < PART; i++) {
            let k = key_after(t, row_of(i, thread));
            for (var e = 0u; e < 4u; e++) { state[i][e] = fma(vec4f(k[e]), u, state[i][e]); }
        }
        if (READS == 2u) { parts[n % BATCH * WG + thread] = read_by(t, true, thread); }
    }
    if (HAS_SNAPSHOTS) { keep_snapshot(w, w.place * params.segment + n, column, thread); }
    if (reads && READS > 0u && (n % BATCH == BATCH - 1u || n + 1u == w.count)) { write_batch(w, n - n % BATCH, n % BATCH + 1u, thread); }
}

// The state after a token: rows [n · HEAD_DIM, (n + 1) · HEAD_DIM) for token n.
fn keep_snapshot(w: Work, n: u32, column: u32, thread: u32) {
    for (var i = 0u; i < PART; i++) {
        for (var e = 0u; e < 4u; e++) {
            let row = 4u * row_of(i, thread) + e;
            let at = at_snapshots(w.batch, w.head, n * HEAD_DIM + row) + column;
            if (row < HEAD_DIM && column < HEAD_DIM_V) { store_snapshots4(at, HEAD_DIM_V - column, state[i][e]); }
        }
    }
}

// The outputs of `count` tokens from n0 on.
fn write_batch(w: Work, n0: u32, count: u32, thread: u32) {
    workgroupBarrier();
    for (var at = thread; at < count * QUADS; at += WG) {
        let quad = at % QUADS;
        let n = at / QUADS;
        var sum = vec4f();
        for (var lane = 0u; lane < LANES; lane++) { sum += parts[n * WG + lane * QUADS + quad]; }
        write_out(token_at(w, n0 + n), w.column + 4u * quad, sum);
    }
    workgroupBarrier();
}
