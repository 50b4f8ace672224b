// Without a map, a mask may hide something of any tile.

fn next_tile(w: Work, i: u32, count: u32) -> u32 {
    return i;
}

fn veiled_kind(w: Work, i: u32, kind: u32) -> u32 {
    return select(kind, BORDER, VEILED);
}
