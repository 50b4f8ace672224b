// Linear attention, token by token:
//
//   S ← e^g · S + k vᵀ,   o = scale · Sᵀ q
//
// S [HEAD_DIM, HEAD_DIM_V] of each (batch entry, head), f32. q, k [batch, their heads, tokens, HEAD_DIM], v, o [batch, heads,
// tokens, HEAD_DIM_V] by strides. Where not CAUSAL, every token reads the last S.
//
// A workgroup takes COLS columns of S. Thread (lane, quad) keeps four columns of every LANES-th four rows in registers; BATCH tokens
// are read before the lanes' parts of their results are added up. Workgroup memory: 16·BATCH·WG bytes.

const QUADS: u32 = COLS / 4u;
const LANES: u32 = WG / QUADS;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const PART: u32 = (D4 + LANES - 1u) / LANES;

var<private> state: array<array<vec4f, 4>, PART>;
var<workgroup> parts: array<vec4f, BATCH * WG>;

// Past the last row, keys and queries are 0.
fn absorb(w: Work, t: Token, lane: u32, column: u32) {
    let fade = fade_of(gate_of(t));
    let at = at_k(t.batch, t.head / params.groups.y, t.row);
    var v = vec4f();
    if (column < HEAD_DIM_V) { v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + column, HEAD_DIM_V - column); }
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        let inside = 4u * min(d, D4 - 1u);
        let k = select(vec4f(), load_k4(at + inside, HEAD_DIM - inside), d < D4);
        for (var e = 0u; e < 4u; e++) {
            state[i][e] = fma(vec4f(fade.x), state[i][e], fma(vec4f(k[e]), v, fade.y * state[i][e]));
        }
    }
}

// The state after a token: rows [n · HEAD_DIM, (n + 1) · HEAD_DIM) for token n.
fn snapshot(w: Work, n: u32, row: u32, column: u32, x: vec4f) {
    let at = at_snapshots(w.batch, w.head, n * HEAD_DIM + row) + column;
    store_snapshots4(at, HEAD_DIM_V - column, x);
}

// This thread's part of a token's result.
fn read_out(t: Token, lane: u32) -> vec4f {
    let at = at_q(t.batch, t.head / params.groups.x, t.row);
    var sum = vec4f();
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        let inside = 4u * min(d, D4 - 1u);
        let q = select(vec4f(), load_q4(at + inside, HEAD_DIM - inside), d < D4);
        for (var e = 0u; e < 4u; e++) { sum = fma(vec4f(q[e]), state[i][e], sum); }
    }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let lane = thread / QUADS;
    let column = w.column + 4u * (thread % QUADS);
    for (var i = 0u; i < PART; i++) {
        for (var e = 0u; e < 4u; e++) {
            let d = 4u * (lane + LANES * i) + e;
            state[i][e] = vec4f();
            if (d < HEAD_DIM && column < HEAD_DIM_V) { state[i][e] = initial_state(w, d, column); }
        }
    }
    if (CAUSAL == 0u) {
        for (var n = 0u; n < w.count; n++) { absorb(w, token_at(w, n), lane, column); }
    }
    for (var base = 0u; base < w.count; base += BATCH) {
        let count = min(BATCH, w.count - base);
        for (var n = 0u; n < count; n++) {
            let t = token_at(w, base + n);
            if (CAUSAL == 1u) { absorb(w, t, lane, column); }
            parts[n * WG + thread] = read_out(t, lane);
            for (var i = 0u; i < PART; i++) {
                for (var e = 0u; e < 4u; e++) {
                    let d = 4u * (lane + LANES * i) + e;
                    if (HAS_SNAPSHOTS && d < HEAD_DIM && column < HEAD_DIM_V) { snapshot(w, w.place * params.segment + base + n, d, column, state[i][e]); }
                }
            }
        }
        workgroupBarrier();
        for (var at = thread; at < count * QUADS; at += WG) {
            let quad = at % QUADS;
            let n = at / QUADS;
            var sum = vec4f();
            for (var other = 0u; other < LANES; other++) { sum += parts[n * WG + other * QUADS + quad]; }
            let d = w.column + 4u * quad;
            if (d < HEAD_DIM_V) {
                store_o4(at_o(w.batch, w.head, token_at(w, base + n).row) + d, HEAD_DIM_V - d, params.scale * sum);
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PART; i++) {
        for (var e = 0u; e < 4u; e++) {
            let d = 4u * (lane + LANES * i) + e;
            if (d < HEAD_DIM && column < HEAD_DIM_V) { write_state(w, d, column, state[i][e]); }
        }
    }
    if (w.column == 0u) { report(w, thread); }
}
