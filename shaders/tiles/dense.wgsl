// Rows are queries. Who sees whom: every key, less what a causal mask, a sliding window and the sequence's length take away.
//
// Query i sees the keys [lo, hi):  lo = i + diagonal − left,  hi = i + min(diagonal + right, causal diagonal) + 1,  cut to
// [0, keys).

fn seen_range(i: u32, queries: u32, keys: u32) -> vec2u {
    let diagonal = i32(keys) - i32(queries);
    let causal = dense[0].x;
    let left = dense[0].y;
    let right = dense[0].z;
    let at = i32(i);
    var lo = 0;
    var hi = i32(keys);
    if (causal == CAUSAL_BOTTOM_RIGHT) { hi = min(hi, at + diagonal + 1); }
    if (causal == CAUSAL_TOP_LEFT) { hi = min(hi, at + 1); }
    if (left != NONE) { lo = max(lo, at + diagonal - i32(left)); }
    if (right != NONE) { hi = min(hi, at + diagonal + i32(right) + 1); }
    return vec2u(u32(lo), u32(max(hi, lo)));
}

fn rows_of_sequence(w: Work) -> u32 { return w.queries; }
fn cols_of_sequence(w: Work) -> u32 { return w.keys; }

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, min(r.token, w.queries - 1u), min(c.token, w.keys - 1u), w.queries, w.keys);
}
