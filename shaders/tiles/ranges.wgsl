// Who sees whom, where a row sees one range of columns: tiles of both follow the sequence.
//
// seen_range(i, queries, keys) names the columns [x, y) that row i of the sequence sees, not cut off at the last column. Both
// ends grow with i, so a tile of rows sees one run of columns: from the first row's x to the last row's y.

// The table `dense`: which diagonal is causal, keys seen to the left and to the right of the own position or NONE.
const CAUSAL_BOTTOM_RIGHT: u32 = 1u;
const CAUSAL_TOP_LEFT: u32 = 2u;

const FULL: u32 = 0u;
const BORDER: u32 = 1u;

struct Visit { row0: u32, rows: u32, cols: u32, first_tile: u32, end_tile: u32, full_from: u32, full_to: u32 }
struct Tile { base: u32, kind: u32 }
struct Row { token: u32, lo: u32, len: u32 }
struct Col { token: u32, at: u32 }

// Rows past the end of the sequence see nothing, and do not count when tiles are chosen.
fn visit_of(w: Work) -> Visit {
    let row0 = w.tile * BR;
    var visit = Visit(row0, rows_of_sequence(w), cols_of_sequence(w), 0u, 0u, 0u, 0u);
    if (row0 < visit.rows) {
        let first = seen_range(row0, w.queries, w.keys);
        let last = seen_range(min(row0 + BR, visit.rows) - 1u, w.queries, w.keys);
        let end = min(last.y, visit.cols);
        visit.first_tile = first.x / BC;
        visit.end_tile = select(0u, (end + BC - 1u) / BC, end > first.x);
        visit.full_from = last.x;
        visit.full_to = min(first.y, visit.cols);
    }
    return visit;
}

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

// Rows behind a sequence's end that are its own are written too.
fn written_token(w: Work, visit: Visit, r: u32) -> u32 {
    return select(NONE, visit.row0 + r, visit.row0 + r < rows_end(w));
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    return select(NONE, tile.base + c, tile.base + c < visit.cols);
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
