// The weights of one tile again, from the row's log-sum-exp, and the gradients of its scores:
//
//   p = exp(s − lse),   dp = dout · vᵀ,   ds = p · (dp − Δ),   Δ = Σ dout · out − dlse   (delta.wgsl)
//
// and through what changed the score back to scale · q·k. Leaves p in `s` and the gradients in `t`.

const GRADIENTS: bool = true;

var<private> t: array<array<f32, CT>, RT>;

fn gradient_tile(w: Work, visit: Visit, tile: Tile, thread: u32) {
    multiply_weight_gradients(w, visit, tile, thread);
    take_gradients();
    multiply_scores(w, visit, tile, thread);
    if (is_masked(tile)) {
        masked_gradients(w, visit, tile, thread);
    } else {
        plain_gradients();
    }
}

// What delta.wgsl found of a query. A token past the end has weight 0 everywhere.
fn stats_of(w: Work, token: u32) -> vec2f {
    return select(vec2f(UNSEEN, 0.0), stats[stats_place(w.batch, w.head, query_of(w, token))], token != NONE);
}

fn take_gradients() {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) { t[i][j] = s[i][j]; }
    }
}

fn give_gradients() {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) { s[i][j] = t[i][j]; }
    }
}

fn plain_gradients() {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) {
            let known = pair_stats(i, j);
            let p = exp2(s[i][j] - known.x);
            s[i][j] = p;
            t[i][j] = p * (t[i][j] - known.y);
        }
    }
}

// A pair that does not see each other has no gradient, whatever lies there.
fn masked_gradients(w: Work, visit: Visit, tile: Tile, thread: u32) {
    let row0 = (thread / TC) * RT;
    for (var i = 0u; i < EACH_RT; i++) {
        let row = row_state(w, visit, row0 + i);
        for (var j = 0u; j < EACH_CT; j++) {
            let col = col_state(w, visit, tile, column_of(j, thread));
            let known = pair_stats(i, j);
            let raw = s[i][j];
            let x = score(raw, row, col, w);
            var seen = visible(row, col) & (bitcast<u32>(x) != MINUS_INFINITY_BITS);
            if (tile.kind == BORDER) { seen = seen & chosen(row, col, w) & mask_allows(row, col, w); }
            let p = exp2(x - known.x);
            let gradient = score_gradient(raw, p * (t[i][j] - known.y), row, col, w);
            s[i][j] = select(0.0, p, seen);
            t[i][j] = select(0.0, gradient, seen);
        }
    }
}

fn reset_sums(sums: ptr<private, Sums>) {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var c = 0u; c < EACH_OV; c++) { (*sums)[i][c] = vec4f(); }
    }
}
