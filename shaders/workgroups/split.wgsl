// A workgroup visits all that its tile does, or one of SPLITS parts, as equal as can be, of the tiles that are not passed over:
// tiles [x, y).
fn part_of_visit(w: Work, visit: Visit, count: u32) -> vec2u {
    if (SPLITS == 1u) { return vec2u(0u, count); }
    if (!SKIPS) { return vec2u(count * w.split / SPLITS, count * (w.split + 1u) / SPLITS); }
    var all = 0u;
    for (var i = next_tile(w, visit, 0u, count); i < count; i = next_tile(w, visit, i + 1u, count)) { all += 1u; }
    let first = all * w.split / SPLITS;
    let last = all * (w.split + 1u) / SPLITS;
    var part = vec2u(count);
    var n = 0u;
    for (var i = next_tile(w, visit, 0u, count); i < count && n < last; i = next_tile(w, visit, i + 1u, count)) {
        if (n == first) { part = vec2u(i, count); }
        n += 1u;
        if (n == last) { part.y = i + 1u; }
    }
    return part;
}
