// Chunks with momentum (shared.wgsl): rows 2 d and 2 d + 1 of the state are row d of the memory and of the momentum, for each of CHANNELS
// channels. fades.wgsl has written what is left of them.

// Of both, as token t reads the memory: its error, or its output.
fn left_before(t: Token, d: u32) -> vec4f {
    let left = load_fades4(at_fades(t.batch, t.head, t.row), 4u);
    return select(left.xyxy, left.zwzw, CORRECTS == 1u);
}

// What token t adds to both, after the chunk.
fn left_after(t: Token, d: u32) -> vec4f { return load_rests4(at_rests(t.batch, t.head, t.row), 4u).xyxy; }

// Two channels, each for both states.
fn query_at(t: Token, d: u32) -> vec4f {
    let inside = d / 8u * 4u;
    let q = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + inside, CHANNELS - inside);
    return select(q.xxyy, q.zzww, d % 8u == 4u);
}

fn key_at(t: Token, d: u32) -> vec4f {
    let inside = d / 8u * 4u;
    let k = load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + inside, CHANNELS - inside);
    return select(k.xxyy, k.zzww, d % 8u == 4u);
}

fn fade_state(w: Work, n0: u32, count: u32, thread: u32) {
    let last = token_at(w, n0 + count - 1u);
    let left = load_fades4(at_fades(last.batch, last.head, last.row), 4u);
    let first = token_at(w, n0);
    let momentum = load_rests4(at_rests(first.batch, first.head, first.row), 4u).z;
    for (var i = 0u; i < RD; i += 2u) {
        for (var c = 0u; c < OV; c++) {
            state[i][c] = fma(vec4f(left.x), state[i][c], left.y * state[i + 1u][c]);
            state[i + 1u][c] *= momentum;
        }
    }
}
