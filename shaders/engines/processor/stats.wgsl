// Statistics of a tile's columns for gradients in engine `processor`: loaded as the columns are.

fn column_stats(w: Work, visit: Visit, tile: Tile, thread: u32) -> array<vec2f, CT> {
    let own = stats_of(w, col_token(visit, tile, column_of(thread / PARTS, thread)));
    var all: array<vec2f, CT>;
    for (var j = 0u; j < EACH_CT; j++) { all[j] = subgroupBroadcast(own, j * PARTS); }
    return all;
}
