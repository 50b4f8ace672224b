// Tiles of columns that follow the sequence. Both ends of what a row sees grow with the row, so a tile of rows sees one run of columns: from the first
// row's x to the last row's y.

struct Visit { row0: u32, rows: u32, cols: u32, first_tile: u32, end_tile: u32, full_from: u32, full_to: u32 }

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

// Rows behind a sequence's end that are its own are written too.
fn written_token(w: Work, visit: Visit, r: u32) -> u32 {
    return select(NONE, visit.row0 + r, visit.row0 + r < rows_end(w));
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    return select(NONE, tile.base + c, tile.base + c < visit.cols);
}
