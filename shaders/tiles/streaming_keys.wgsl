// As streaming.wgsl with the sides exchanged: rows are keys, columns the queries that see them. Key j is seen by the queries at
// p ≥ j, and where it is no sink, at p < j + local.

// The columns that see any row: [x, y) and [z, w).
fn streamed(w: Work, visit: Visit, sink: u32, local: u32) -> vec4i {
    let diagonal = i32(w.keys) - i32(w.queries);
    let end = select(i32(last_row(visit)) - diagonal + i32(local), i32(w.queries), visit.row0 < sink);
    return vec4i(i32(visit.row0) - diagonal, end, 0, 0);
}

// Whether all columns of the tile from `base` on see all rows.
fn all_streamed(w: Work, visit: Visit, base: u32, sink: u32, local: u32) -> bool {
    let diagonal = i32(w.keys) - i32(w.queries);
    let last_key = last_row(visit);
    let near = i32(base + BC - 1u) + diagonal - i32(visit.row0) < i32(local);
    return i32(last_key) <= i32(base) + diagonal && (last_key < sink || near);
}
