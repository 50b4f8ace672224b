// Who is seen by whom: as dense.wgsl, with the sides exchanged. Rows are keys, columns are the queries that see them.
//
// Key j is seen by the queries [lo, hi): from the inverse of what query i sees,
//   lo = max(j − diagonal − right, j − causal diagonal),  hi = j − diagonal + left + 1,  cut to [0, queries).
// Both grow with j, so a tile of keys is seen by one run of queries.

const NONE: u32 = 0xffffffffu;
const FULL: u32 = 0u;
const BORDER: u32 = 1u;

struct Visit { row0: u32, queries: u32, keys: u32, first_tile: u32, end_tile: u32, full_from: u32, full_to: u32 }
struct Tile { base: u32, kind: u32 }
struct Row { token: u32, lo: u32, len: u32 }
struct Col { token: u32, at: u32 }

// The queries that see key `j`, as [x, y).
fn query_range(j: u32, queries: u32, keys: u32) -> vec2u {
    let diagonal = i32(keys) - i32(queries);
    let at = i32(j);
    var lo = 0;
    var hi = i32(queries);
    if (params.causal == CAUSAL_BOTTOM_RIGHT) { lo = max(lo, at - diagonal); }
    if (params.causal == CAUSAL_TOP_LEFT) { lo = max(lo, at); }
    if (params.right != NONE) { lo = max(lo, at - diagonal - i32(params.right)); }
    if (params.left != NONE) { hi = min(hi, at - diagonal + i32(params.left) + 1); }
    return vec2u(u32(lo), u32(max(hi, lo)));
}

fn visit_of(w: Work) -> Visit {
    let row0 = w.tile * BR;
    var visit = Visit(row0, w.queries, w.keys, 0u, 0u, 0u, 0u);
    if (row0 < w.keys) {
        let first = query_range(row0, w.queries, w.keys);
        let last = query_range(min(row0 + BR, w.keys) - 1u, w.queries, w.keys);
        let end = min(last.y, w.queries);
        visit.first_tile = first.x / BC;
        visit.end_tile = select(0u, (end + BC - 1u) / BC, end > first.x);
        visit.full_from = last.x;
        visit.full_to = min(first.y, w.queries);
    }
    return visit;
}

fn rows_of_sequence(w: Work) -> u32 {
    return w.keys;
}

fn tile_count(visit: Visit) -> u32 {
    return max(visit.end_tile, visit.first_tile) - visit.first_tile;
}

fn tile_at(visit: Visit, i: u32) -> Tile {
    let base = (visit.first_tile + i) * BC;
    return Tile(base, select(BORDER, FULL, base >= visit.full_from && base + BC <= visit.full_to));
}

fn row_token(visit: Visit, r: u32) -> u32 {
    return select(NONE, visit.row0 + r, visit.row0 + r < visit.keys);
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    return select(NONE, tile.base + c, tile.base + c < visit.queries);
}

fn row_state(w: Work, visit: Visit, token: u32) -> Row {
    let range = query_range(token, visit.queries, visit.keys);
    return Row(token, range.x, select(range.y - range.x, 0u, token == NONE));
}

fn col_state(w: Work, token: u32) -> Col {
    return Col(token, token);
}

// A query past the end is none of the range: it comes as NONE.
fn visible(r: Row, c: Col) -> bool {
    return (c.at - r.lo < r.len) & (c.token != NONE);
}

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, min(c.token, w.queries - 1u), min(r.token, w.keys - 1u), w.queries, w.keys);
}
