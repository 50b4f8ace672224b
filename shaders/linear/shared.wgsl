// What the shaders of linear attention share: written by src/linear/plan.rs.
//
// The table `sequences` has (first row, tokens, 0, 0) of each batch entry or packed sequence.

struct Params {
    // (offset, batch stride, head stride, row stride) of each tensor.
    q: vec4u,
    k: vec4u,
    v: vec4u,
    g: vec4u,
    h0: vec4u,
    o: vec4u,
    ht: vec4u,
    // First batch entry, head and tile of columns of this slice.
    first: vec3u,
    heads: u32,
    // Heads of the state to one of q, of k, of v.
    groups: vec3u,
    scale: f32,
    // Whether a token sees only those before it and itself; whether the order is reversed.
    causal: u32,
    reverse: u32,
    pad: vec2u,
}
