// What rows of a tile see of a head that streams, where rows are queries: query i at p = i + keys − queries sees the keys
// [0, sink) and (p − local, p].

// The columns that any row sees: [x, y) and [z, w).
fn streamed(w: Work, visit: Visit, sink: u32, local: u32) -> vec4i {
    let diagonal = i32(w.keys) - i32(w.queries);
    let end = i32(last_row(visit)) + diagonal + 1;
    return vec4i(0, min(i32(sink), end), i32(visit.row0) + diagonal + 1 - i32(local), end);
}

// Whether all rows see all columns of the tile from `base` on.
fn all_streamed(w: Work, visit: Visit, base: u32, sink: u32, local: u32) -> bool {
    let diagonal = i32(w.keys) - i32(w.queries);
    let last_key = base + BC - 1u;
    let near = i32(last_row(visit)) + diagonal - i32(base) < i32(local);
    return i32(last_key) <= i32(visit.row0) + diagonal && (last_key < sink || near);
}
