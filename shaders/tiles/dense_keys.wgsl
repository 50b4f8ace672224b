// As dense.wgsl with the sides exchanged: rows are keys, columns the queries that see them.
//
// Key j is seen by the queries [lo, hi): from the inverse of what query i sees,
//   lo = max(j − diagonal − right, j − causal diagonal),  hi = j − diagonal + left + 1,  cut to [0, queries).

fn seen_range(j: u32, queries: u32, keys: u32) -> vec2u {
    let diagonal = i32(keys) - i32(queries);
    let causal = dense[0].x;
    let left = dense[0].y;
    let right = dense[0].z;
    let at = i32(j);
    var lo = 0;
    var hi = i32(queries);
    if (causal == CAUSAL_BOTTOM_RIGHT) { lo = max(lo, at - diagonal); }
    if (causal == CAUSAL_TOP_LEFT) { lo = max(lo, at); }
    if (right != NONE) { lo = max(lo, at - diagonal - i32(right)); }
    if (left != NONE) { hi = min(hi, at - diagonal + i32(left) + 1); }
    return vec2u(u32(lo), u32(max(hi, lo)));
}

fn rows_of_sequence(w: Work) -> u32 { return w.keys; }
fn cols_of_sequence(w: Work) -> u32 { return w.queries; }

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, min(c.token, w.queries - 1u), min(r.token, w.keys - 1u), w.queries, w.keys);
}
