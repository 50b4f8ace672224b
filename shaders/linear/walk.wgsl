// Linear attention, chunk by chunk, with the state in registers. For token i of a chunk, S the state before it:
//
//   o_i = scale · (e^(G_i) S q_i + Σ_(j ≤ i) e^(G_i − G_j) (q_i · k_j) gain · v_j)
//
// (Lightning Attention 2, arXiv 2401.04658; with gates: simple GLA.) Exponents are differences, never positive: nothing is divided
// by a decay. q, k [batch, their heads, tokens, HEAD_DIM], v, o [batch, heads, tokens, HEAD_DIM_V] by strides. A workgroup goes over
// one segment; the division among threads and the workgroup memory are in chunk.wgsl. Where not CAUSAL, every token reads the
// state after all of them: the one that the segment begins with, or one that absorbs them first.
//
// With GIVEN weights, the factors in the inner sum are those of products.wgsl. Where the walk CORRECTS, the values that the state absorbs are the
// corrections u of the delta rule, which are written, with the weights W of products.wgsl:
//
//   u_i = Σ_(j ≤ i) W_ij (v_j − e^(G_j) S k_j)
//
// Where KEPT, the state before every SEGMENT tokens is written, and the last one.

const CT: u32 = CHUNK / TC;
const SCORES: u32 = select(CT, 0u, GIVEN == 1u);
const KEYS_AT: u32 = BD4 * CHUNK;
const S_AT: u32 = 2u * BD4 * CHUNK;
const P_AT: u32 = K_AT + BATCH * PD4;
// Eight tokens side by side, then along the head dimension: loads touch few cache lines, stores no bank twice.
const STAGE_TOKENS: u32 = WG / BD4;

// This thread's scores: of tokens tr·RT … with the tokens 4·(tc + TC·(j / 4)) + j % 4.
var<private> s: array<array<f32, CT>, RT>;
var<private> o: array<array<vec4f, OV>, RT>;
// Values of its own.
var<private> rows: array<array<vec4f, OV>, RT>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    load_state(w, thread);
    if (ABSORBS_FIRST == 1u) {
        for (var n0 = 0u; n0 < w.count; n0 += CHUNK) { absorb_chunk(w, n0, min(CHUNK, w.count - n0), thread); }
    }
    var segment = first_kept(w);
    var n0 = 0u;
    while (n0 < w.count) {
        let count = tokens_of_chunk(w, n0);
        if (KEPT == 1u && (n0 == 0u || select(n0, w.count - n0, params.reverse == 1u) % SEGMENT == 0u)) {
            keep_state(w, segment, thread);
            segment++;
        }
        begin_chunk(w, n0, count, thread);
        read_state(w, n0, count, thread);
        if (CORRECTS == 1u) {
            correct(w, n0, count, thread);
            absorb_corrections(w, n0, count, thread);
        } else if (CAUSAL == 1u) {
            add_chunk(w, n0, count, thread);
        }
        write_rows(w, n0, count, thread);
        n0 += count;
    }
    // A stretch beyond the end of an entry leaves what is there.
    if (w.count > 0u || w.place == 0u) {
        if (KEPT == 1u) { keep_state(w, segment, thread); }
        store_state(w, thread);
    }
    if (HAS_PROBLEM && w.column == 0u) { report(w, thread); }
}

// o = e^G · S q and, unless weights are given, s = q · kᵀ. Where it corrects, the queries are keys.
fn read_state(w: Work, n0: u32, count: u32, thread: u32) {
    for (var i = 0u; i < RT; i++) {
        for (var j = 0u; j < SCORES; j++) { s[i][j] = 0.0; }
        for (var c = 0u; c < OV; c++) { o[i][c] = vec4f(); }
    }
    for (var d0 = 0u; d0 < D4; d0 += BD4) {
        stage_tokens(w, n0, count, d0, thread);
        stage_state(d0, thread);
        workgroupBarrier();
        add_products(thread);
        workgroupBarrier();
    }
    for (var i = 0u; i < RT; i++) {
        let left = edges[thread / TC * RT + i].x;
        for (var c = 0u; c < OV; c++) { o[i][c] *= left; }
    }
}

// Queries, and keys in the order in which threads read them: token r at r / 4 + (CHUNK / 4) · (r % 4).
fn stage_tokens(w: Work, n0: u32, count: u32, d0: u32, thread: u32) {
    let d = thread / 8u % BD4;
    let inside = 4u * min(d0 + d, D4 - 1u);
    for (var r = thread % 8u + 8u * (thread / (8u * BD4)); r < CHUNK; r += STAGE_TOKENS) {
        let t = token_at(w, n0 + min(r, count - 1u));
        let valid = r < count && d0 + d < D4;
        var q = vec4f();
        var k = vec4f();
        if (CORRECTS == 0u) { q = query_at(t, inside); }
        if (CORRECTS == 1u || GIVEN == 0u) { k = key_at(t, inside); }
        if (CORRECTS == 1u) { q = k; }
        tile[d * CHUNK + r] = select(vec4f(), left_before(t, inside) * q, valid);
        if (GIVEN == 0u) { tile[KEYS_AT + d * CHUNK + r / 4u + CHUNK / 4u * (r % 4u)] = select(vec4f(), k, valid); }
    }
}

fn stage_state(d0: u32, thread: u32) {
    for (var i = 0u; i < RD; i++) {
        let row = thread / TC * RD + i - 4u * d0;
        if (row < 4u * BD4) {
            for (var c = 0u; c < OV; c++) { tile[S_AT + row * COL4 + thread % TC + TC * c] = state[i][c]; }
        }
    }
}

fn add_products(thread: u32) {
    let tc = thread % TC;
    for (var d = 0u; d < BD4; d++) {
        var k: array<vec4f, CT>;
        for (var j = 0u; j < SCORES; j++) { k[j] = tile[KEYS_AT + d * CHUNK + CHUNK / 4u * (j % 4u) + tc + TC * (j / 4u)]; }
        for (var i = 0u; i < RT; i++) {
            let q = tile[d * CHUNK + thread / TC * RT + i];
            for (var j = 0u; j < SCORES; j++) {
                s[i][j] = fma(q.w, k[j].w, fma(q.z, k[j].z, fma(q.y, k[j].y, fma(q.x, k[j].x, s[i][j]))));
            }
            for (var c = 0u; c < OV; c++) {
                let at = S_AT + 4u * d * COL4 + tc + TC * c;
                let low = fma(vec4f(q.y), tile[at + COL4], fma(vec4f(q.x), tile[at], o[i][c]));
                o[i][c] = fma(vec4f(q.w), tile[at + 3u * COL4], fma(vec4f(q.z), tile[at + 2u * COL4], low));
            }
        }
    }
}

// What the chunk's tokens see of one another; then the state absorbs them.
fn add_chunk(w: Work, n0: u32, count: u32, thread: u32) {
    for (var i = 0u; i < RT; i++) {
        let row = thread / TC * RT + i;
        for (var j = 0u; j < SCORES; j++) {
            let col = 4u * (thread % TC + TC * (j / 4u)) + j % 4u;
            // Of a token that comes later, nothing that counts.
            let left = decay(place_of(row), place_of(col));
            s[i][j] = select(0.0, s[i][j] * left, col <= row);
        }
    }
    fade_state(w, n0, count, thread);
    for (var t0 = 0u; t0 < count; t0 += BATCH) {
        stage_pairs(w, n0, count, t0, thread);
        if (GIVEN == 1u) { stage_given(w, n0, count, t0 / 4u, thread); } else { stage_weights(t0 / 4u, thread); }
        workgroupBarrier();
        weigh_values(t0 / 4u, thread);
        absorb_pairs(thread);
        workgroupBarrier();
    }
}

fn stage_weights(first: u32, thread: u32) {
    for (var e = 0u; e < CT / 4u; e++) {
        let quad = thread % TC + TC * e - first;
        if (quad < BATCH / 4u) {
            for (var i = 0u; i < RT; i++) {
                tile[P_AT + quad * CHUNK + thread / TC * RT + i] = vec4f(s[i][4u * e], s[i][4u * e + 1u], s[i][4u * e + 2u], s[i][4u * e + 3u]);
            }
        }
    }
}

fn stage_given(w: Work, n0: u32, count: u32, first: u32, thread: u32) {
    for (var at = thread; at < BATCH / 4u * CHUNK; at += WG) {
        let quad = at % (BATCH / 4u);
        let n = at / (BATCH / 4u);
        let t = token_at(w, n0 + min(n, count - 1u));
        let weights = load_weights4(at_weights(t.batch, t.head, t.row) + 4u * (first + quad), 4u);
        tile[P_AT + quad * CHUNK + n] = select(vec4f(), weights, n < count);
    }
}

// o += weights · values over the staged tokens, four at a time: those that all of this thread's tokens see, then those that some see.
fn weigh_values(first: u32, thread: u32) {
    let row0 = thread / TC * RT;
    let end = first + BATCH / 4u;
    let seen = clamp((row0 + 1u) / 4u, first, end);
    for (var quad = first; quad < seen; quad++) {
        for (var c = 0u; c < OV; c++) {
            let at = V_AT + 4u * (quad - first) * COL4 + thread % TC + TC * c;
            for (var i = 0u; i < RT; i++) {
                let p = tile[P_AT + (quad - first) * CHUNK + row0 + i];
                let low = fma(vec4f(p.y), tile[at + COL4], fma(vec4f(p.x), tile[at], o[i][c]));
                o[i][c] = fma(vec4f(p.w), tile[at + 3u * COL4], fma(vec4f(p.z), tile[at + 2u * COL4], low));
            }
        }
    }
    for (var quad = seen; quad < clamp((row0 + RT + 3u) / 4u, first, end); quad++) {
        for (var i = 0u; i < RT; i++) {
            let p = tile[P_AT + (quad - first) * CHUNK + row0 + i];
            for (var c = 0u; c < OV; c++) {
                let at = V_AT + 4u * (quad - first) * COL4 + thread % TC + TC * c;
                for (var e = 0u; e < 4u; e++) {
                    // A token that is not seen keeps even a NaN to itself.
                    let v = select(vec4f(), tile[at + e * COL4], 4u * quad + e <= row0 + i);
                    o[i][c] = fma(vec4f(p[e]), v, o[i][c]);
                }
            }
        }
    }
}

// What the values differ by from what the state has for the keys, then corrections: both in o.
fn correct(w: Work, n0: u32, count: u32, thread: u32) {
    for (var i = 0u; i < RT; i++) {
        let row = thread / TC * RT + i;
        let t = token_at(w, n0 + min(row, count - 1u));
        for (var c = 0u; c < OV; c++) {
            let d = column_of(w, thread, c);
            let inside = min(d, (HEAD_DIM_V - 1u) / 4u * 4u);
            let v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + inside, HEAD_DIM_V - inside);
            rows[i][c] = select(vec4f(), v - o[i][c], row < count && d < HEAD_DIM_V);
            o[i][c] = vec4f();
        }
    }
    for (var t0 = 0u; t0 < count; t0 += BATCH) {
        stage_rows(t0, thread);
        stage_given(w, n0, count, t0 / 4u, thread);
        workgroupBarrier();
        weigh_values(t0 / 4u, thread);
        workgroupBarrier();
    }
}

// This thread's tokens of the BATCH from token t0 of the chunk on, as values.
fn stage_rows(t0: u32, thread: u32) {
    for (var i = 0u; i < RT; i++) {
        let j = thread / TC * RT + i - t0;
        if (j < BATCH) {
            for (var c = 0u; c < OV; c++) { tile[V_AT + j * COL4 + thread % TC + TC * c] = rows[i][c]; }
        }
    }
}

fn absorb_corrections(w: Work, n0: u32, count: u32, thread: u32) {
    rows = o;
    fade_state(w, n0, count, thread);
    for (var t0 = 0u; t0 < count; t0 += BATCH) {
        stage_rows(t0, thread);
        stage_keys(w, n0, count, t0, thread);
        workgroupBarrier();
        absorb_pairs(thread);
        workgroupBarrier();
    }
}

fn write_rows(w: Work, n0: u32, count: u32, thread: u32) {
    for (var i = 0u; i < RT; i++) {
        let row = thread / TC * RT + i;
        for (var c = 0u; c < OV; c++) {
            let d = column_of(w, thread, c);
            if (row < count && d < HEAD_DIM_V) {
                let at = at_o(w.batch, w.head, token_at(w, n0 + row).row) + d;
                store_o4(at, HEAD_DIM_V - d, params.scale * o[i][c]);
            }
        }
    }
}
