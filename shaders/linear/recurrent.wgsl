// Linear attention, token by token:
//
//   S ← e^g · S + k vᵀ,   o = scale · Sᵀ q
//
// e^g · S is S + (e^g − 1) · S: a gate near 0 that is rounded once would be off by as much in every token after it.
//
// S [HEAD_DIM, HEAD_DIM_V] of each (batch entry, head), f32, from h0 or 0; ht gets the last. q, k [batch, their heads, tokens,
// HEAD_DIM], v, o [batch, heads, tokens, HEAD_DIM_V] by strides. Where not causal, every token reads the last S.
//
// A workgroup takes COLS columns of S. Thread (lane, quad) keeps four columns of every LANES-th row in registers; BATCH tokens are
// read before the lanes' parts of their results are added up. Workgroup memory: 16·BATCH·WG bytes.

const QUADS: u32 = COLS / 4u;
const LANES: u32 = WG / QUADS;
const PART: u32 = (HEAD_DIM + LANES - 1u) / LANES;

var<private> state: array<vec4f, PART>;
var<workgroup> parts: array<vec4f, BATCH * WG>;

// A token of a head: where its rows lie.
struct Token { batch: u32, head: u32, row: u32 }

fn nth_token(batch: u32, head: u32, n: u32) -> Token {
    let sequence = sequences[batch];
    return Token(batch, head, sequence.x + select(n, sequence.y - 1u - n, params.reverse == 1u));
}

fn absorb(t: Token, lane: u32, column: u32) {
    let change = change_of(t);
    let k = row_of(params.k, t.batch, t.head / params.groups.y, t.row);
    var v: vec4f;
    if (column < HEAD_DIM_V) {
        v = load_v4(row_of(params.v, t.batch, t.head / params.groups.z, t.row) + column, HEAD_DIM_V - column);
    }
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        if (d < HEAD_DIM) { state[i] = fma(vec4f(load_k(k + d)), v, fma(vec4f(change), state[i], state[i])); }
    }
}

// This thread's part of a token's result.
fn read_out(t: Token, lane: u32) -> vec4f {
    let q = row_of(params.q, t.batch, t.head / params.groups.x, t.row);
    var sum: vec4f;
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        if (d < HEAD_DIM) { sum = fma(vec4f(load_q(q + d)), state[i], sum); }
    }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let tile = params.first.z + workgroup.x;
    let lane = thread / QUADS;
    let column = tile * COLS + 4u * (thread % QUADS);
    let count = sequences[batch].y;
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        if (d < HEAD_DIM) { state[i] = initial_state(batch, head, d, column); }
    }
    if (params.causal == 0u) {
        for (var n = 0u; n < count; n++) { absorb(nth_token(batch, head, n), lane, column); }
    }
    for (var base = 0u; base < count; base += BATCH) {
        for (var n = 0u; n < min(BATCH, count - base); n++) {
            let t = nth_token(batch, head, base + n);
            if (params.causal == 1u) { absorb(t, lane, column); }
            parts[n * WG + thread] = read_out(t, lane);
        }
        workgroupBarrier();
        for (var at = thread; at < min(BATCH, count - base) * QUADS; at += WG) {
            let quad = at % QUADS;
            let n = at / QUADS;
            var sum: vec4f;
            for (var other = 0u; other < LANES; other++) { sum += parts[n * WG + other * QUADS + quad]; }
            let d = tile * COLS + 4u * quad;
            if (d < HEAD_DIM_V) {
                let t = nth_token(batch, head, base + n);
                store_o4(row_of(params.o, batch, head, t.row) + d, HEAD_DIM_V - d, params.scale * sum);
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PART; i++) {
        let d = lane + LANES * i;
        if (d < HEAD_DIM) { write_state(batch, head, d, column, state[i]); }
    }
    if (thread == 0u && tile == 0u) { report(batch, head); }
}
