// Who sees whom, where a row sees one range of columns, and tiles of rows follow the sequence.
//
// seen_range(i, queries, keys) names the columns [x, y) that row i of the sequence sees, not cut off at the last column; both ends
// grow with i. How columns lie in tiles, sequence.wgsl or lists.wgsl says: visit_of finds the rows [row0, rows) of a tile, the tiles of columns
// [first_tile, end_tile) that they see, and the places [full_from, full_to) that all of them see.

// The table `dense`: which diagonal is causal, keys seen to the left and to the right of the own position or NONE.
const CAUSAL_BOTTOM_RIGHT: u32 = 1u;
const CAUSAL_TOP_LEFT: u32 = 2u;

const FULL: u32 = 0u;
const BORDER: u32 = 1u;

struct Tile { base: u32, kind: u32 }
struct Row { token: u32, lo: u32, len: u32 }
struct Col { token: u32, at: u32 }

fn begin_visit(w: Work, visit: Visit, thread: u32) {}

fn tile_count(visit: Visit) -> u32 {
    return max(visit.end_tile, visit.first_tile) - visit.first_tile;
}

fn tile_at(visit: Visit, i: u32) -> Tile {
    let base = (visit.first_tile + i) * BC;
    return Tile(base, select(BORDER, FULL, base >= visit.full_from && base + BC <= visit.full_to));
}

fn row_token(visit: Visit, r: u32) -> u32 {
    return select(NONE, visit.row0 + r, visit.row0 + r < visit.rows);
}

fn row_state(w: Work, visit: Visit, r: u32) -> Row {
    let token = row_token(visit, r);
    let range = seen_range(token, w.queries, w.keys);
    return Row(token, range.x, select(range.y - range.x, 0u, token == NONE));
}

fn col_state(w: Work, visit: Visit, tile: Tile, c: u32) -> Col {
    let token = col_token(visit, tile, c);
    return Col(token, token);
}

// One unsigned compare: a column before lo wraps round to a large number. One past the end comes as NONE.
fn visible(r: Row, c: Col) -> bool {
    return (c.at - r.lo < r.len) & (c.token != NONE);
}
