// Running sums of a chunk's gates. A hard gate makes them large, and what counts is small differences after it; so they are exact:
// −g in units of 2^−40, in two words, (units of 2^−8, units of 2^−40). Workgroup memory: 8·(CHUNK + 1) bytes.

// 2^−40.
const UNIT: f32 = 9.094947017729282e-13;

var<workgroup> running: array<vec2u, CHUNK + 1u>;

fn exact(g: f32) -> vec2u {
    let high = floor(-g * 256.0);
    return vec2u(u32(high), u32(fma(-g, 256.0, -high) * 4294967296.0));
}

fn plus(a: vec2u, b: vec2u) -> vec2u {
    let low = a.y + b.y;
    return vec2u(a.x + b.x + u32(low < a.y), low);
}

// running[i] becomes the sum of the gates before token i of the chunk, running[count] that of all. Afterwards all may read.
fn sum_gates(w: Work, n0: u32, count: u32, thread: u32) {
    if (thread == 0u) { running[0] = vec2u(); }
    if (thread < count) { running[thread + 1u] = exact(gate_of(token_at(w, n0 + thread))); }
    workgroupBarrier();
    var sum = vec2u();
    for (var i = 0u; i < select(0u, thread + 1u, thread < count); i++) { sum = plus(sum, running[i + 1u]); }
    workgroupBarrier();
    if (thread < count) { running[thread + 1u] = sum; }
    workgroupBarrier();
}

// The sum of the gates from token `early` of the chunk up to, not including, token `late`.
fn gates_between(late: u32, early: u32) -> f32 {
    let a = running[late];
    let b = running[early];
    let low = a.y - b.y;
    let high = a.x - b.x - u32(a.y < b.y);
    return -fma(f32(high), 1.0 / 256.0, f32(low) * UNIT);
}

fn decay(late: u32, early: u32) -> f32 { return exp(gates_between(late, early)); }
