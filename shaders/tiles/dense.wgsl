// Who sees whom: every key, less what a causal mask, a sliding window and the sequence's length take away.
//
// Query i sees the keys [lo, hi):  lo = i + diagonal − left,  hi = i + min(diagonal + right, causal diagonal) + 1,  cut to
// [0, keys). Both grow with i, so a tile of rows sees one run of keys: from the first row's lo to the last row's hi.

const NONE: u32 = 0xffffffffu;
const FULL: u32 = 0u;
const BORDER: u32 = 1u;

struct Visit { row0: u32, queries: u32, keys: u32, first_tile: u32, end_tile: u32, full_from: u32, full_to: u32 }
struct Tile { base: u32, kind: u32 }
struct Row { token: u32, lo: u32, len: u32 }
struct Col { token: u32, at: u32 }

// The keys that query `i` sees, as [x, y).
fn key_range(i: u32, queries: u32, keys: u32) -> vec2u {
    let diagonal = i32(keys) - i32(queries);
    let at = i32(i);
    var lo = 0;
    var hi = i32(keys);
    if (params.causal == CAUSAL_BOTTOM_RIGHT) { hi = min(hi, at + diagonal + 1); }
    if (params.causal == CAUSAL_TOP_LEFT) { hi = min(hi, at + 1); }
    if (params.left != NONE) { lo = max(lo, at + diagonal - i32(params.left)); }
    if (params.right != NONE) { hi = min(hi, at + diagonal + i32(params.right) + 1); }
    return vec2u(u32(lo), u32(max(hi, lo)));
}

// Rows past the end of the sequence see nothing, and do not count when tiles are chosen.
fn visit_of(w: Work) -> Visit {
    let row0 = w.tile * BR;
    var visit = Visit(row0, w.queries, w.keys, 0u, 0u, 0u, 0u);
    if (row0 < w.queries) {
        let first = key_range(row0, w.queries, w.keys);
        let last = key_range(min(row0 + BR, w.queries) - 1u, w.queries, w.keys);
        visit.first_tile = first.x / BC;
        visit.end_tile = select(0u, (last.y + BC - 1u) / BC, last.y > first.x);
        visit.full_from = last.x;
        visit.full_to = first.y;
    }
    return visit;
}

// Rows are queries.
fn rows_of_sequence(w: Work) -> u32 {
    return w.queries;
}

fn tile_count(visit: Visit) -> u32 {
    return max(visit.end_tile, visit.first_tile) - visit.first_tile;
}

fn tile_at(visit: Visit, i: u32) -> Tile {
    let base = (visit.first_tile + i) * BC;
    return Tile(base, select(BORDER, FULL, base >= visit.full_from && base + BC <= visit.full_to));
}

fn row_token(visit: Visit, r: u32) -> u32 {
    return select(NONE, visit.row0 + r, visit.row0 + r < visit.queries);
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    return select(NONE, tile.base + c, tile.base + c < visit.keys);
}

fn row_state(w: Work, visit: Visit, token: u32) -> Row {
    let range = key_range(token, visit.queries, visit.keys);
    return Row(token, range.x, select(range.y - range.x, 0u, token == NONE));
}

fn col_state(w: Work, token: u32) -> Col {
    return Col(token, token);
}

// One unsigned compare: a key before lo wraps round to a large number, and so does NONE.
fn visible(r: Row, c: Col) -> bool {
    return c.at - r.lo < r.len;
}

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, min(r.token, w.queries - 1u), min(c.token, w.keys - 1u), w.queries, w.keys);
}
