// Which tiles of keys a tile of queries sees: so that masks are asked before anything is computed, tiles that nobody sees
// are skipped, and tiles that all see whole are not masked.
//
// tile_map: two bits for each tile that visit_of names, in that order, 16 to a word, for each tile of queries and each head,
// or for all heads where the masks are the same. Bit 0: some query sees some key. Bit 1: some query does not see some key, or there is no such key.
//
// A workgroup owns one tile of queries of one head, its WG threads the pairs of each tile; four bytes of workgroup memory.

const TILES_PER_WORD: u32 = 16u;

var<workgroup> found: atomic<u32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let visit = visit_of(w);
    let count = tile_count(visit);
    begin_visit(w, visit, thread);
    for (var first = 0u; first < count; first += TILES_PER_WORD) {
        if (thread == 0u) { atomicStore(&found, 0u); }
        workgroupBarrier();
        var bits = 0u;
        for (var i = 0u; i < TILES_PER_WORD && first + i < count; i++) {
            bits |= tile_bits(w, visit, tile_at(visit, first + i), thread) << (2u * i);
        }
        atomicOr(&found, bits);
        workgroupBarrier();
        if (thread == 0u) { tile_map[map_word(w, first)] = atomicLoad(&found); }
        workgroupBarrier();
    }
}

// What this thread finds: a row of the tile and every (WG / BR)-th key, or, where there are more rows than threads, every WG-th row.
fn tile_bits(w: Work, visit: Visit, tile: Tile, thread: u32) -> u32 {
    var bits = 0u;
    for (var r = thread % BR; r < BR; r += WG) {
        if (row_token(visit, r) != NONE) { bits |= row_bits(w, row_state(w, visit, r), visit, tile, thread / BR); }
    }
    return bits;
}

fn row_bits(w: Work, row: Row, visit: Visit, tile: Tile, first: u32) -> u32 {
    var bits = 0u;
    for (var c = first; c < BC; c += max(WG / BR, 1u)) {
        let col = col_state(w, visit, tile, c);
        let seen = visible(row, col) & mask_allows(row, col, w);
        bits |= select(2u, 1u, seen);
    }
    return bits;
}
