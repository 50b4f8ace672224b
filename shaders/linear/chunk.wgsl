// A state in registers, and how a chunk of CHUNK tokens is absorbed by it:
//
//   S ← e^(G_C) S + Σ_j e^(G_C − G_j) gain · k_j v_jᵀ,   G = running sum of the gates inside of the chunk
//
// A workgroup keeps COLS columns of S. Its WG threads form a grid: thread (tr, tc) owns rows tr·RD … of the state and the vec4
// columns tc, tc + TC, … (OV of them), and of the chunk's tokens the rows tr·RT …. BATCH tokens pass through workgroup memory at
// a time (vec4 elements of `tile`):
//   pairs    V [BATCH][COL4], K [BATCH][TR·RD/4], weights [BATCH/4][CHUNK]     BATCH·(COL4 + TR·RD/4 + CHUNK/4)
//   reading  queries [BD4][CHUNK], keys [BD4][CHUNK], state [4·BD4][COL4]      BD4·(2·CHUNK + COLS)
// src/linear/chunking.rs makes TILE the larger of the two; 8·CHUNK bytes for `edges` besides.

const TC: u32 = 8u;
const TR: u32 = WG / TC;
const COL4: u32 = COLS / 4u;
const OV: u32 = COL4 / TC;
const RT: u32 = CHUNK / TR;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const PD4: u32 = TR * RD / 4u;
const V_AT: u32 = 0u;
const K_AT: u32 = BATCH * COL4;

var<private> state: array<array<vec4f, OV>, RD>;
var<workgroup> tile: array<vec4f, TILE>;
// Of each token of the chunk: what is left of the state before the chunk as the token reads it, and of the token after the chunk.
var<workgroup> edges: array<vec2f, CHUNK>;

// First element of vec4 column c of this thread.
fn column_of(w: Work, thread: u32, c: u32) -> u32 {
    return w.column + 4u * (thread % TC + TC * c);
}

fn load_state(w: Work, thread: u32) {
    for (var i = 0u; i < RD; i++) {
        let row = thread / TC * RD + i;
        for (var c = 0u; c < OV; c++) {
            let column = column_of(w, thread, c);
            state[i][c] = vec4f();
            if (row < HEAD_DIM && column < HEAD_DIM_V) { state[i][c] = initial_state(w, row, column); }
        }
    }
}

fn store_state(w: Work, thread: u32) {
    for (var i = 0u; i < RD; i++) {
        let row = thread / TC * RD + i;
        for (var c = 0u; c < OV; c++) {
            let column = column_of(w, thread, c);
            if (row < HEAD_DIM && column < HEAD_DIM_V) { write_state(w, row, column, state[i][c]); }
        }
    }
}

// As what segment number `segment` of the walk begins with.
fn keep_state(w: Work, segment: u32, thread: u32) {
    for (var i = 0u; i < RD; i++) {
        let row = thread / TC * RD + i;
        for (var c = 0u; c < OV; c++) {
            let column = column_of(w, thread, c);
            let at = at_states(w.batch, w.head, segment * HEAD_DIM + row) + column;
            if (row < HEAD_DIM && column < HEAD_DIM_V) { store_states4(at, HEAD_DIM_V - column, state[i][c]); }
        }
    }
}

// The gates of the chunk of `count` tokens from token n0 of the walk on. Afterwards all may read.
fn begin_chunk(w: Work, n0: u32, count: u32, thread: u32) {
    sum_gates(w, n0, count, thread);
    if (thread < CHUNK) {
        let place = place_of(thread);
        edges[thread] = vec2f(decay(place, 0u), decay(count, place));
    }
    workgroupBarrier();
}

// Brings values and faded keys of BATCH tokens into workgroup memory, from token t0 of the chunk on.
fn stage_pairs(w: Work, n0: u32, count: u32, t0: u32, thread: u32) {
    stage_values(w, n0, count, t0, thread);
    stage_keys(w, n0, count, t0, thread);
}

fn stage_values(w: Work, n0: u32, count: u32, t0: u32, thread: u32) {
    for (var n = thread; n < BATCH * COL4; n += WG) {
        let j = t0 + n / COL4;
        let d = w.column + 4u * (n % COL4);
        let inside = min(d, (HEAD_DIM_V - 1u) / 4u * 4u);
        let t = token_at(w, n0 + min(j, count - 1u));
        let v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + inside, HEAD_DIM_V - inside);
        tile[V_AT + n] = select(vec4f(), params.gain * v, j < count && d < HEAD_DIM_V);
    }
}

fn stage_keys(w: Work, n0: u32, count: u32, t0: u32, thread: u32) {
    for (var n = thread; n < BATCH * PD4; n += WG) {
        let j = t0 + n / PD4;
        let d = n % PD4;
        let inside = 4u * min(d, D4 - 1u);
        let last = min(j, count - 1u);
        let t = token_at(w, n0 + last);
        let k = edges[last].y * left_after(t, inside) * key_at(t, inside);
        tile[K_AT + n] = select(vec4f(), k, j < count && d < D4);
    }
}

// S += Σ_j k_j v_jᵀ over the staged tokens.
fn absorb_pairs(thread: u32) {
    for (var j = 0u; j < BATCH; j++) {
        var v: array<vec4f, OV>;
        for (var c = 0u; c < OV; c++) { v[c] = tile[V_AT + j * COL4 + thread % TC + TC * c]; }
        for (var d = 0u; d < RD / 4u; d++) {
            let k = tile[K_AT + j * PD4 + thread / TC * (RD / 4u) + d];
            for (var c = 0u; c < OV; c++) {
                state[4u * d][c] = fma(vec4f(k.x), v[c], state[4u * d][c]);
                state[4u * d + 1u][c] = fma(vec4f(k.y), v[c], state[4u * d + 1u][c]);
                state[4u * d + 2u][c] = fma(vec4f(k.z), v[c], state[4u * d + 2u][c]);
                state[4u * d + 3u][c] = fma(vec4f(k.w), v[c], state[4u * d + 3u][c]);
            }
        }
    }
}

// The segment's tokens from n0 on, none of which reads. Returns the sum of their gates.
fn absorb_chunk(w: Work, n0: u32, count: u32, thread: u32) -> f32 {
    begin_chunk(w, n0, count, thread);
    let sum = gates_between(count, 0u);
    fade_state(w, n0, count, thread);
    for (var t0 = 0u; t0 < count; t0 += BATCH) {
        stage_pairs(w, n0, count, t0, thread);
        workgroupBarrier();
        absorb_pairs(thread);
        workgroupBarrier();
    }
    return sum;
}
