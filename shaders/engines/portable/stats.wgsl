// Statistics of a tile's columns for gradients in engine `portable`: each thread loads those of its own.

fn column_stats(w: Work, visit: Visit, tile: Tile, thread: u32) -> array<vec2f, CT> {
    var all: array<vec2f, CT>;
    for (var j = 0u; j < CT; j++) { all[j] = stats_of(w, col_token(visit, tile, column_of(j, thread))); }
    return all;
}
