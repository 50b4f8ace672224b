// A walk token by token (recurrent.wgsl) for adapters whose shaders run on a CPU (engines/processor/products.wgsl says what is dear
// there). A workgroup is one subgroup of WG threads. A thread keeps four columns of S in registers, all rows. It loads every WG-th vec4
// of a key and of a query, and hands them round by broadcasts. No workgroup memory. Sums are taken as in lanes.wgsl: by LANES parts, the
// rows in turns, so that decoding goes on with the same bits.

const COLS: u32 = 4u * WG;

// Rows by four.
var<private> state: array<array<vec4f, FOUR>, LOADS * WG>;

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

// After n tokens: to where the walk ends, or as what segment number `segment` begins with.
fn store_state(w: Work, segment: u32, kept: bool, n: u32, thread: u32) {
    let column = column_of(w, thread);
    let fades = params.late == 1u && n > 0u;
    var fade = Fade(vec4f(1.0), vec4f());
    if (fades) { fade = fade_of_columns(w, n, column); }
    for (var r = 0u; r < D4; r++) {
        var rows = Fade(vec4f(1.0), vec4f());
        if (GATED == BY_ROW && fades) { rows = fade_by(gates_at(w, n, 4u * r)); }
        for (var e = 0u; e < EACH_FOUR; e++) {
            var x = vec4f();
            for (var d = 0u; d < EACH_D4; d++) { x = select(x, state[d][e], d == r); }
            if (GATED == BY_ROW) { fade = Fade(vec4f(rows.keep[e]), vec4f(rows.rest[e])); }
            x = select(x, fade.keep * x + fade.rest * x, fades);
            let row = 4u * r + e;
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
    var fade = Fade(vec4f(1.0), vec4f());
    var v = vec4f();
    if (absorbs) {
        fade = fade_of_columns(w, n, column);
        if (ADDS == 1u) {
            let inside = min(column, (HEAD_DIM_V - 1u) / 4u * 4u);
            v = load_v4(at_v(t.batch, t.head / params.groups.z, t.row) + inside, HEAD_DIM_V - inside);
            v = select(vec4f(), params.gain * v, column < HEAD_DIM_V);
        }
    }
    // By whom the state is read before, and by whom changed after.
    var after: array<vec4f, LOADS>;
    var parts: array<vec4f, LANES>;
    for (var lane = 0u; lane < EACH_LANES; lane++) { parts[lane] = vec4f(); }
    for (var load = 0u; load < EACH_LOADS; load++) {
        let d = 4u * min(load * WG + thread, D4 - 1u);
        var keys = vec4f();
        var readers = vec4f();
        var rows = Fade(vec4f(1.0), vec4f());
        if (absorbs && ADDS == 1u) { keys = load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + d, HEAD_DIM - d); }
        if (absorbs && GATED == BY_ROW) { rows = fade_by(gates_at(w, n, d)); }
        if (ADDS_AFTER > 0u) { after[load] = load_k24(at_k2(t.batch, t.head / K2_GROUP, t.row) + d, HEAD_DIM - d); }
        if (CORRECTS > 0u) { readers = after[load]; }
        if (reads && READS == 1u) { readers = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + d, HEAD_DIM - d); }
        for (var part = 0u; part < EACH_WG; part++) {
            if (load * WG + part < D4) {
                let k = subgroupBroadcast(keys, part);
                let q = subgroupBroadcast(readers, part);
                var keep = vec4f();
                var rest = vec4f();
                if (GATED == BY_ROW) {
                    keep = subgroupBroadcast(rows.keep, part);
                    rest = subgroupBroadcast(rows.rest, part);
                }
                for (var e = 0u; e < EACH_FOUR; e++) {
                    var x = state[load * WG + part][e];
                    if (absorbs) {
                        if (GATED == BY_ROW) { fade = Fade(vec4f(keep[e]), vec4f(rest[e])); }
                        if (ADDS == 1u) {
                            x = fma(fade.keep, x, fma(vec4f(k[e]), v, fade.rest * x));
                        } else {
                            x = fma(fade.keep, x, fade.rest * x);
                        }
                        state[load * WG + part][e] = x;
                    }
                    let lane = (load * WG + part) % LANES;
                    parts[lane] = fma(vec4f(q[e]), x, parts[lane]);
                }
            }
        }
    }
    var found = vec4f();
    for (var lane = 0u; lane < EACH_LANES; lane++) { found += parts[lane]; }
    if (reads && READS == 1u) { write_out(t, column, found); }
    if (ADDS_AFTER > 0u) {
        var u = vec4f();
        if (CORRECTS > 0u) {
            let error = error_of(t, column, found);
            u = beta_of(t) * error;
            write_correction(t, column, error, u);
        } else {
            u = value_of(t, column);
        }
        if (ADDS_AFTER == TAKES_AWAY) { u = -u; }
        for (var lane = 0u; lane < EACH_LANES; lane++) { parts[lane] = vec4f(); }
        for (var load = 0u; load < EACH_LOADS; load++) {
            let d = 4u * min(load * WG + thread, D4 - 1u);
            var queries = vec4f();
            if (READS == 2u) { queries = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + d, HEAD_DIM - d); }
            for (var part = 0u; part < EACH_WG; part++) {
                if (load * WG + part < D4) {
                    let k = subgroupBroadcast(after[load], part);
                    let q = subgroupBroadcast(queries, part);
                    for (var e = 0u; e < EACH_FOUR; e++) {
                        let x = fma(vec4f(k[e]), u, state[load * WG + part][e]);
                        state[load * WG + part][e] = x;
                        let lane = (load * WG + part) % LANES;
                        parts[lane] = fma(vec4f(q[e]), x, parts[lane]);
                    }
                }
            }
        }
        if (READS == 2u) {
            found = vec4f();
            for (var lane = 0u; lane < EACH_LANES; lane++) { found += parts[lane]; }
            write_out(t, column, found);
        }
    }
}
