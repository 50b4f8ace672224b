// Tiles by the map that tile_map.wgsl has written.

// The word of the map that holds tile number i of the visit.
fn map_word(w: Work, i: u32) -> u32 {
    return w.item * params.map_tile + w.head * params.map_head + i / 16u;
}

// What the masks leave of tile number i: EMPTY, FULL or BORDER.
fn veiled_kind(w: Work, i: u32, kind: u32) -> u32 {
    let bits = (tile_map[map_word(w, i)] >> (2u * (i % 16u))) & 3u;
    return select(select(FULL, BORDER, bits == 3u), EMPTY, (bits & 1u) == 0u);
}
