// Tiles by the map that tile_map.wgsl has written.

const SKIPS: bool = true;

// The word of the map that holds tile number i of the visit.
fn map_word(w: Work, i: u32) -> u32 {
    return w.item * params.map_tile + w.head * params.map_head + i / 16u;
}

// The two bits of tile number i, and above them those of the tiles behind it in the same word.
fn map_bits(w: Work, i: u32) -> u32 {
    return tile_map[map_word(w, i)] >> (2u * (i % 16u));
}

// The next tile from number i on that someone sees, or `count`.
fn next_tile(w: Work, visit: Visit, i: u32, count: u32) -> u32 {
    var next = i;
    var seen = 0u;
    while (next < count && seen == 0u) {
        seen = map_bits(w, next) & 0x55555555u;
        next = select(next / 16u * 16u + 16u, next + countTrailingZeros(seen) / 2u, seen != 0u);
    }
    return min(next, count);
}

// What the masks make of tile number i, which someone sees.
fn masked_kind(w: Work, visit: Visit, i: u32, kind: u32) -> u32 {
    return select(FULL, BORDER, (map_bits(w, i) & 3u) == 3u);
}

fn chosen(r: Row, c: Col, w: Work) -> bool {
    return true;
}
