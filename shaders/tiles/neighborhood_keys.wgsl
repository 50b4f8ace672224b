// As neighborhood.wgsl with the sides exchanged: rows are keys, columns the queries that see them.
//
// On an axis with window k and stride s, key i of a group of n is seen by the queries [lo, hi), with r = k − 1 − ⌊k/2⌋ and
// o = s − ⌊s/2⌋ − 1:
//   not causal  lo = 0 where i < k, else ⌊(i − r + o)/s⌋·s;  hi = n where i ≥ n − k, else min(⌊(i + ⌊k/2⌋ + o + 1)/s⌋·s, n)
//   causal      lo = i;                                       hi = min((⌊(i + k)/s⌋ + [i + k ≥ n])·s, n)

fn seen_range(i: vec3u, n: vec3u) -> Range {
    let window = space[WINDOW].xyz;
    let stride = space[STRIDE].xyz;
    let causal = space[CAUSAL].xyz != vec3u();
    let right = window - 1u - window / 2u;
    let offset = stride - stride / 2u - 1u;
    let lo = select((max(i, window) - right + offset) / stride * stride, vec3u(), i < window);
    let hi = select(min((i + window / 2u + offset + 1u) / stride * stride, n), n, i >= n - window);
    let end = ((i + window) / stride + select(vec3u(), vec3u(1u), i + window >= n)) * stride;
    return Range(select(lo, i, causal), select(hi, min(end, n), causal));
}

// What is computed at a token past the end is not used.
fn position_of(r: Row, c: Col, w: Work) -> Position {
    let last = w.queries - 1u;
    return Position(w.batch, w.head, min(c.token, last), min(r.token, last), w.queries, w.keys, axes_first(c.place), axes_first(r.place));
}
