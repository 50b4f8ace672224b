// Scores of one tile: s = score(q_factor · q·kᵀ) in log2 units, MASKED where the row does not see the key.
// An engine multiplies: `multiply_scores`, and for gradients `multiply_weight_gradients` (dout · vᵀ).

// −2^127: loses against every score that f32 can carry through the product; recognised by its bits.
const MASKED: f32 = -170141183460469231731687303715884105728.0;
const MASKED_BITS: u32 = 0xff000000u;
const TC: u32 = BC / CT;

var<private> s: array<array<f32, CT>, RT>;

// Tile number i of the visit, with what the masks make of it.
fn nth_tile(w: Work, visit: Visit, i: u32) -> Tile {
    var tile = tile_at(visit, i);
    tile.kind = masked_kind(w, visit, i, tile.kind);
    return tile;
}

// What sides/ are asked for: what makes the scores, or what values and their gradients are multiplied with.
const SCORES: u32 = 0u;
const VALUES: u32 = 1u;

// vec4 of a row of either.
fn width_of(what: u32) -> u32 { return select(D4, DV4, what == VALUES); }

// Leaves the scores in `s`.
fn score_tile(w: Work, visit: Visit, tile: Tile, thread: u32) {
    let row0 = (thread / TC) * RT;
    multiply_scores(w, visit, tile, thread);
    // Second passes over the registers. No `&&` in them: where lanes differ, a branch costs more than what it saves.
    if (SCORED) { change_scores(w, visit, tile, thread, row0); }
    if (tile.kind == BORDER) { hide_scores(w, visit, tile, thread, row0); }
}

// Which are infinite or NaN. By the bits: compilers may assume that there is no infinity.
fn is_broken(x: vec4f) -> vec4<bool> {
    return (bitcast<vec4u>(x) & vec4u(0x7f800000u)) == vec4u(0x7f800000u);
}

fn is_finite4(x: vec4f) -> bool { return !any(is_broken(x)); }

// Whether scores of this tile can be MASKED: by the visiting order, by a mask, or because something made them −inf.
fn is_masked(tile: Tile) -> bool {
    return SCORED || tile.kind == BORDER;
}

fn change_scores(w: Work, visit: Visit, tile: Tile, thread: u32, row0: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        let row = row_state(w, visit, row0 + i);
        for (var j = 0u; j < EACH_CT; j++) {
            let col = col_state(w, visit, tile, column_of(j, thread));
            let x = score(s[i][j], row, col, w);
            s[i][j] = select(x, MASKED, bitcast<u32>(x) == MINUS_INFINITY_BITS);
        }
    }
}

fn hide_scores(w: Work, visit: Visit, tile: Tile, thread: u32, row0: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        let row = row_state(w, visit, row0 + i);
        for (var j = 0u; j < EACH_CT; j++) {
            let col = col_state(w, visit, tile, column_of(j, thread));
            let seen = visible(row, col) & chosen(row, col, w) & mask_allows(row, col, w)
                & (bitcast<u32>(s[i][j]) != MINUS_INFINITY_BITS);
            s[i][j] = select(MASKED, s[i][j], seen);
        }
    }
}
