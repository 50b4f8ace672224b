// The products of a chunk's tokens with those before them, a row of CHUNK numbers for each token n, `weights` [batch, heads, tokens, CHUNK]:
//
//   A_nm = Σ_d q_nd k_md e^(G_nd − G_md)      for m < n and, unless INVERTS, for m = n; 0 for those after it
//
// G is the running sum of the gates of each channel, or of all (factor.wgsl; with momentum, momentum/factor.wgsl has a count instead). Token m's
// key fades from one token to the next: no exponent is positive, nothing is divided by a decay. Where it INVERTS, q is k, and what is written is
//
//   diag(beta) · (I + A · diag(beta))⁻¹
//
// With the delta rule (arXiv 2406.06484) it makes a chunk's corrections of what their values differ by from what the state before the chunk
// has for their keys. For walks whose state fades before a token reads it. A workgroup has CHUNK threads; thread m has token m's key.

// Tokens that pass through workgroup memory at a time, vec4 of their channels, rows that are inverted at a time.
const TOKENS: u32 = 8u;
const PIECE: u32 = 16u;
const ROWS: u32 = 16u;
const D4: u32 = (HEAD_DIM + 3u) / 4u;

var<workgroup> queries: array<vec4f, TOKENS * PIECE>;
var<workgroup> changes: array<vec4f, select(1u, TOKENS * PIECE, BY_CHANNEL == 1u)>;
var<workgroup> block: array<f32, select(1u, ROWS * CHUNK, INVERTS == 1u)>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, params.first.z + workgroup.x, 0u);
    sum_gates(w, 0u, w.count, thread);
    multiply(w, thread);
    if (INVERTS == 1u) { invert(w, thread); }
    if (HAS_PROBLEM) { report(w, thread); }
}

fn key_of(t: Token, d: u32) -> vec4f {
    let inside = 4u * min(d, D4 - 1u);
    return select(vec4f(), load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + inside, HEAD_DIM - inside), d < D4);
}

fn query_of(t: Token, d: u32) -> vec4f {
    if (INVERTS == 1u) { return key_of(t, d); }
    let inside = 4u * min(d, D4 - 1u);
    return select(vec4f(), load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + inside, HEAD_DIM - inside), d < D4);
}

fn stage(w: Work, n0: u32, d0: u32, thread: u32) {
    for (var at = thread; at < TOKENS * PIECE; at += CHUNK) {
        let n = min(n0 + at / PIECE, w.count - 1u);
        let d = d0 + at % PIECE;
        queries[at] = query_of(token_at(w, n), d);
        if (BY_CHANNEL == 1u) {
            // By which a key fades as token n comes.
            changes[at] = changes_of(gates_of(token_at(w, n), 4u * min(d, D4 - 1u)));
        }
    }
}

fn multiply(w: Work, thread: u32) {
    for (var d0 = 0u; d0 < D4; d0 += PIECE) {
        var key: array<vec4f, PIECE>;
        for (var d = 0u; d < PIECE; d++) { key[d] = vec4f(); }
        if (thread < w.count) {
            for (var d = 0u; d < PIECE; d++) { key[d] = key_of(token_at(w, thread), d0 + d); }
        }
        for (var n0 = 0u; n0 < w.count; n0 += TOKENS) {
            stage(w, n0, d0, thread);
            workgroupBarrier();
            for (var i = 0u; i < min(TOKENS, w.count - n0); i++) {
                let n = n0 + i;
                var sum = vec4f();
                for (var d = 0u; d < PIECE; d++) {
                    if (BY_CHANNEL == 1u && n > thread) { key[d] = fma(key[d], changes[i * PIECE + d], key[d]); }
                    sum = fma(queries[i * PIECE + d], key[d], sum);
                }
                add_product(w, n, d0, (sum.x + sum.y) + (sum.z + sum.w), thread);
            }
            workgroupBarrier();
        }
    }
}

fn weight_at(w: Work, n: u32, column: u32) -> u32 {
    let t = token_at(w, n);
    return at_weights(t.batch, t.head, t.row) + column;
}

fn add_product(w: Work, n: u32, d0: u32, product: f32, thread: u32) {
    let at = weight_at(w, n, thread);
    var x = 0.0;
    if (thread < n + 1u - INVERTS) {
        x = product * factor_of(w, n, thread);
        if (d0 > 0u) { x += bitcast<f32>(load_weights(at)); }
    }
    store_weights(at, bitcast<u32>(x));
}

// By forward substitution, ROWS rows at a time; thread m has column m.
fn invert(w: Work, thread: u32) {
    var beta = 0.0;
    if (thread < w.count) { beta = beta_of(token_at(w, thread)); }
    for (var n0 = 0u; n0 < w.count; n0 += ROWS) {
        storageBarrier();
        for (var i = 0u; i < ROWS; i++) {
            var x = 0.0;
            if (n0 + i < w.count) { x = bitcast<f32>(load_weights(weight_at(w, n0 + i, thread))); }
            block[i * CHUNK + thread] = beta * x;
        }
        workgroupBarrier();
        var rows: array<f32, ROWS>;
        for (var i = 0u; i < ROWS; i++) { rows[i] = select(0.0, 1.0, n0 + i == thread); }
        for (var m = thread; m < n0; m++) {
            let x = bitcast<f32>(load_weights(weight_at(w, m, thread)));
            for (var i = 0u; i < ROWS; i++) { rows[i] = fma(-block[i * CHUNK + m], x, rows[i]); }
        }
        for (var m = 0u; m < ROWS - 1u; m++) {
            for (var i = m + 1u; i < ROWS; i++) { rows[i] = fma(-block[i * CHUNK + n0 + m], rows[m], rows[i]); }
        }
        for (var i = 0u; i < ROWS; i++) {
            if (n0 + i < w.count) { store_weights(weight_at(w, n0 + i, thread), bitcast<u32>(rows[i])); }
        }
        workgroupBarrier();
    }
    for (var n = thread; n < w.count; n++) {
        let at = weight_at(w, n, thread);
        store_weights(at, bitcast<u32>(beta_of(token_at(w, n)) * bitcast<f32>(load_weights(at))));
    }
}
