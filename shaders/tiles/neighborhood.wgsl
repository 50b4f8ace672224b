// Rows are queries. Who sees whom: each query the window of its nearest keys, shifted inwards at a border so that it keeps its
// size (Hassani et al., Neighborhood Attention, arXiv 2204.07143; strides: Generalized Neighborhood Attention, 2504.16922).
//
// On an axis with window k and stride s, query i of a group of n:
//   not causal  leader c = min(⌊i/s⌋·s + ⌊s/2⌋, n − 1),  lo = clamp(c − ⌊k/2⌋, 0, n − k),  hi = lo + k
//   causal      leader c = min(⌊i/s⌋·s + s − 1, n − 1),  lo = max(c − k + 1, 0),           hi = i + 1

fn seen_range(i: vec3u, n: vec3u) -> Range {
    let window = space[WINDOW].xyz;
    let stride = space[STRIDE].xyz;
    let causal = space[CAUSAL].xyz != vec3u();
    let leader = min(i / stride * stride + select(stride / 2u, stride - 1u, causal), n - 1u);
    let shifted = min(max(leader, window / 2u) - window / 2u, n - window);
    let lo = select(shifted, max(leader + 1u, window) - window, causal);
    return Range(lo, select(lo + window, i + 1u, causal));
}

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    let last = w.queries - 1u;
    return Position(w.batch, w.head, min(r.token, last), min(c.token, last), w.queries, w.keys, axes_first(r.place), axes_first(c.place));
}
