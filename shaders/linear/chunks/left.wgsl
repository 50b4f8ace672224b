// Where channels fade apart, fades.wgsl has written what is left of each of them. Of the state before the chunk, as token t reads it:
fn left_before(t: Token, d: u32) -> vec4f {
    if (!HAS_FADES) { return vec4f(1.0); }
    return load_fades4(at_fades(t.batch, t.head / FADES_GROUP, t.row) + d, HEAD_DIM - d);
}

// Of token t, after the chunk.
fn left_after(t: Token, d: u32) -> vec4f {
    if (!HAS_FADES) { return vec4f(1.0); }
    return load_rests4(at_rests(t.batch, t.head / FADES_GROUP, t.row) + d, HEAD_DIM - d);
}

// Of channel d of the state before the chunk that begins at token n, after it.
fn left_of_channel(w: Work, n: u32, d: u32) -> f32 {
    let t = token_at(w, n);
    let four = d / 4u * 4u;
    return left_before(t, four)[d % 4u] * left_after(t, four)[d % 4u];
}
