// A walk token by token over a state S [HEAD_DIM, HEAD_DIM_V] of each (batch entry, head), f32. For each token, in this order:
//
//   S ← e^g · S                          g a number, or (GATED) one for each row or each column of S
//   S ← S + gain · k vᵀ                  ADDS
//   e = v2 − Sᵀ k2,  u = beta · e        CORRECTS = 1: the delta rule
//   e = Sᵀ k2,       u = beta · e        CORRECTS = 2: its gradient, where u is taken away
//   o = scale · Sᵀ q                     READS = 1
//   S ← S ± k2 uᵀ, or S − k2 v2ᵀ, or S + k2 v2ᵀ     ADDS_AFTER: 1 adds, 2 takes away
//   o = scale · Sᵀ q                     READS = 2
//
// q, k, k2 [batch, their heads, tokens, HEAD_DIM], v, v2, o, e, u [batch, heads, tokens, HEAD_DIM_V] by strides. Where not CAUSAL,
// every token reads the last S. Where KEPT, what each SEGMENT tokens begin with is written, and what the last of them leave.
//
// How S is divided among the threads of a workgroup, which takes COLS columns of it, is in recurrent/.

const BY_ROW: u32 = 1u;
const BY_COLUMN: u32 = 2u;
const TAKES_AWAY: u32 = 2u;

// x · e^g as x · keep + x · rest: shared.wgsl, fade_of.
struct Fade { keep: vec4f, rest: vec4f }

fn fade_by(g: vec4f) -> Fade {
    let x = fade_of(g.x);
    if (GATED == 0u) { return Fade(vec4f(x.x), vec4f(x.y)); }
    let y = fade_of(g.y);
    let z = fade_of(g.z);
    let w = fade_of(g.w);
    return Fade(vec4f(x.x, y.x, z.x, w.x), vec4f(x.y, y.y, z.y, w.y));
}

// The gate by which the state fades as token n of the walk comes: its own, or, where states fade late, that of the token before it. A
// segment begins with a state that has faded. Where gates are reported, each token's own is seen.
fn gate_at(w: Work, n: u32) -> f32 {
    if (params.late == 0u) { return gate_of(token_at(w, n)); }
    if (HAS_PROBLEM && n < w.count) { let own = gate_of(token_at(w, n)); }
    if (n == 0u) { return 0.0; }
    return gate_of(token_at(w, n - 1u));
}

// The same of four rows or columns, from d on.
fn gates_at(w: Work, n: u32, d: u32) -> vec4f {
    if (params.late == 0u) { return gates_of(token_at(w, n), d); }
    if (HAS_PROBLEM && n < w.count) { let own = gates_of(token_at(w, n), d); }
    if (n == 0u) { return vec4f(); }
    return gates_of(token_at(w, n - 1u), d);
}

// How four columns fade as token n comes: what is the same for all rows of it.
fn fade_of_columns(w: Work, n: u32, column: u32) -> Fade {
    if (GATED == BY_COLUMN) { return fade_by(gates_at(w, n, column)); }
    if (GATED == BY_ROW) { return Fade(vec4f(1.0), vec4f()); }
    return fade_by(vec4f(gate_at(w, n)));
}

// What a token is corrected by, of four columns of the state; `read` is Sᵀ k2.
fn error_of(t: Token, column: u32, read: vec4f) -> vec4f {
    if (CORRECTS == TAKES_AWAY) { return read; }
    return value_of(t, column) - read;
}

fn write_correction(t: Token, column: u32, e: vec4f, u: vec4f) {
    if (column < HEAD_DIM_V) {
        store_e4(at_e(t.batch, t.head, t.row) + column, HEAD_DIM_V - column, e);
        store_u4(at_u(t.batch, t.head, t.row) + column, HEAD_DIM_V - column, u);
    }
}

// Four columns of v2; 0 past the last.
fn value_of(t: Token, column: u32) -> vec4f {
    let inside = min(column, (HEAD_DIM_V - 1u) / 4u * 4u);
    let v = load_v24(at_v2(t.batch, t.head / V2_GROUP, t.row) + inside, HEAD_DIM_V - inside);
    return select(vec4f(), v, column < HEAD_DIM_V);
}

fn write_out(t: Token, column: u32, o: vec4f) {
    if (column < HEAD_DIM_V) { store_o4(at_o(t.batch, t.head, t.row) + column, HEAD_DIM_V - column, params.scale * o); }
}

// All tokens, and between them the states that are kept.
fn pass_segments(w: Work, thread: u32) {
    var segment = first_kept(w);
    var next = SEGMENT;
    // The other way round, the first segment has what is left over.
    if (params.reverse == 1u) { next = (w.count + SEGMENT - 1u) % SEGMENT + 1u; }
    var more = true;
    for (var n = 0u; ; segment++) {
        store_state(w, segment, true, n, thread);
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
    if (TO != 0u) { store_state(w, 0u, false, w.count, thread); }
    if (HAS_PROBLEM && w.column == 0u) { report(w, thread); }
}
