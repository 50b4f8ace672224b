// Tiles of columns that follow a list: BLOCK rows have one between them, and a tile of rows lies within such a block. A column of a tile is a place
// in the list.
//
// tokens: for each (batch entry, head, list) how many tokens it has, then the tokens, ascending (lists/ascending.wgsl). LIST_HEADS says whose
// heads these are.

const LISTS_OF_ALL: u32 = 0u;
const LISTS_OF_KEY_HEADS: u32 = 1u;
const LISTS_OF_QUERY_HEADS: u32 = 2u;

struct Visit { row0: u32, rows: u32, cols: u32, first_tile: u32, end_tile: u32, full_from: u32, full_to: u32, own_end: u32, list: u32 }

fn list_head(w: Work) -> u32 {
    return select(select(0u, w.kv_head, LIST_HEADS == LISTS_OF_KEY_HEADS), w.head, LIST_HEADS == LISTS_OF_QUERY_HEADS);
}

// Rows past the end of the sequence see nothing, and do not count when tiles are chosen.
fn visit_of(w: Work) -> Visit {
    let number = w.tile / TILES_OF_LIST;
    let row0 = number * BLOCK + w.tile % TILES_OF_LIST * BR;
    let own_end = (number + 1u) * BLOCK;
    var visit = Visit(row0, min(own_end, w.queries), 0u, 0u, 0u, 0u, 0u, own_end, at_tokens(w.batch, list_head(w), number));
    if (row0 < visit.rows) {
        let count = load_tokens(visit.list);
        let first = seen_range(row0, w.queries, w.keys);
        let last = seen_range(min(row0 + BR, visit.rows) - 1u, w.queries, w.keys);
        visit.cols = place_in_list(visit.list, count, min(last.y, w.keys));
        let begin = place_in_list(visit.list, count, first.x);
        visit.first_tile = begin / BC;
        visit.end_tile = select(0u, (visit.cols + BC - 1u) / BC, visit.cols > begin);
        visit.full_from = place_in_list(visit.list, count, last.x);
        visit.full_to = place_in_list(visit.list, count, min(first.y, w.keys));
    }
    return visit;
}

// Rows behind a sequence's end that are its own are written too.
fn written_token(w: Work, visit: Visit, r: u32) -> u32 {
    let row = visit.row0 + r;
    return select(NONE, row, row < min(visit.own_end, rows_end(w)));
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    let place = tile.base + c;
    return select(NONE, load_tokens(visit.list + 1u + min(place, max(visit.cols, 1u) - 1u)), place < visit.cols);
}
