// Which of the tiles that ranges.wgsl names are visited, and which of their pairs are: by a block mask, head by head.
//
// A head sees every key, or the first `sink` keys and the `local` last ones up to the query's own position, or the blocks that
// are chosen. blocks: for each (batch entry, head, block of rows) a bit for each block of columns, 32 to a word, set where it is
// chosen. full_blocks, likewise: set where masks hide nothing of it. Sizes of blocks are powers of two, within tiles or beyond.

// The constant SEVERAL is 1 where a tile holds several blocks: then pairs are told apart, which costs loads. The table
// `block_mask`: first (log2 of a block's rows, log2 of its columns, whether key heads share blocks, 0), then for each head (kind,
// sink, local, 0).
const SKIPS: bool = true;
const DENSE: u32 = 0u;
const STREAMING: u32 = 1u;
const LISTED: u32 = 2u;

// The last row of the tile.
fn last_row(visit: Visit) -> u32 {
    return min(visit.row0 + BR, visit.rows) - 1u;
}

fn block_head(w: Work) -> u32 { return select(w.head, w.kv_head, block_mask[0].z == 1u); }
fn block_row(w: Work, row: u32) -> u32 { return at_blocks(w.batch, block_head(w), row); }
fn full_block_row(w: Work, row: u32) -> u32 { return at_full_blocks(w.batch, block_head(w), row); }

// The next tile from number i on of which something is seen, or `count`.
fn next_tile(w: Work, visit: Visit, i: u32, count: u32) -> u32 {
    let head = block_mask[1u + w.head];
    if (i >= count || head.x == DENSE) { return i; }
    let tile = visit.first_tile + i;
    if (head.x == STREAMING) { return min(next_streamed(w, visit, tile, head) - visit.first_tile, count); }
    let shift = block_mask[0].y;
    let last = (visit.cols - 1u) >> shift;
    var block = (tile * BC) >> shift;
    var next = visit.first_tile + count;
    while (block <= last) {
        let seen = chosen_blocks(w, visit, block / 32u) >> (block % 32u);
        if (seen != 0u) {
            next = min(next, max(tile, ((block + countTrailingZeros(seen)) << shift) / BC));
            break;
        }
        block = (block / 32u + 1u) * 32u;
    }
    return next - visit.first_tile;
}

// Word number `word` of what the tile's rows have chosen together.
fn chosen_blocks(w: Work, visit: Visit, word: u32) -> u32 {
    let end = last_row(visit) >> block_mask[0].x;
    var bits = 0u;
    for (var row = visit.row0 >> block_mask[0].x; row <= end; row++) { bits |= load_blocks(block_row(w, row) + word); }
    return bits;
}

fn next_streamed(w: Work, visit: Visit, tile: u32, head: vec4u) -> u32 {
    let seen = streamed(w, visit, head.y, head.z);
    let at = i32(tile * BC);
    var next = NONE;
    if (at < seen.y && seen.x < seen.y) { next = max(tile, u32(max(seen.x, 0)) / BC); }
    if (at < seen.w && seen.z < seen.w) { next = min(next, max(tile, u32(max(seen.z, 0)) / BC)); }
    return next;
}

// The word that the tile's blocks begin in: a row's is then loaded once for all columns of the tile.
var<private> tile_word: u32;

// What the mask and the caller's masks make of tile number i, which someone sees.
fn masked_kind(w: Work, visit: Visit, i: u32, kind: u32) -> u32 {
    let head = block_mask[1u + w.head];
    let base = (visit.first_tile + i) * BC;
    tile_word = (base >> block_mask[0].y) / 32u;
    var whole = kind == FULL;
    if (head.x == LISTED) {
        // A tile within one block is visited only where that is chosen.
        if (HAS_MASK || SEVERAL == 1u) { whole = whole && all_chosen(w, visit, base); }
    } else {
        if (HAS_MASK) { whole = false; }
        if (head.x == STREAMING) { whole = whole && all_streamed(w, visit, base, head.y, head.z); }
    }
    return select(BORDER, FULL, whole);
}

// Whether every block of the tile is chosen, and nothing of it hidden by the caller's masks.
fn all_chosen(w: Work, visit: Visit, base: u32) -> bool {
    let first = base >> block_mask[0].y;
    let last = (base + BC - 1u) >> block_mask[0].y;
    let end = last_row(visit) >> block_mask[0].x;
    var all = true;
    for (var row = visit.row0 >> block_mask[0].x; row <= end; row++) {
        for (var word = first / 32u; word <= last / 32u; word++) {
            let start = max(first, 32u * word) % 32u;
            let end_bit = min(last, 32u * word + 31u) % 32u;
            let wanted = (NONE << start) & (NONE >> (31u - end_bit));
            var found = load_blocks(block_row(w, row) + word);
            if (HAS_MASK) { found &= load_full_blocks(full_block_row(w, row) + word); }
            all = all && (found & wanted) == wanted;
        }
    }
    return all;
}

// Whether the mask lets a pair of a visited tile see each other. A token past the end comes to the last one.
fn chosen(r: Row, c: Col, w: Work) -> bool {
    let head = block_mask[1u + w.head];
    if (head.x == STREAMING) {
        let at = position_of(r, c, w);
        let distance = i32(at.query + at.keys) - i32(at.queries + at.key);
        return distance >= 0 && (at.key < head.y || distance < i32(head.z));
    }
    if (SEVERAL == 0u || head.x == DENSE) { return true; }
    let row = block_row(w, min(r.token, rows_of_sequence(w) - 1u) >> block_mask[0].x);
    let col = min(c.token, cols_of_sequence(w) - 1u) >> block_mask[0].y;
    let last = ((cols_of_sequence(w) - 1u) >> block_mask[0].y) / 32u;
    let bits = vec2u(load_blocks(row + tile_word), load_blocks(row + min(tile_word + 1u, last)));
    return ((select(bits.x, bits.y, col / 32u != tile_word) >> (col % 32u)) & 1u) == 1u;
}
