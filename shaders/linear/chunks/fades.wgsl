// Gates for each channel of a key: what is left of each channel of a state that a chunk of params.segment tokens begins with as each
// token reads it, `fades`, and what is left of the token after the chunk, `rests`. Both [batch, their heads, tokens, HEAD_DIM], f32:
// products of e^g, at most 1. A thread takes four channels.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, params.first.z + workgroup.x, 0u);
    for (var d = 4u * thread; d < HEAD_DIM; d += 4u * WG) {
        var left = vec4f(1.0);
        for (var n = 0u; n < w.count; n++) {
            let t = token_at(w, n);
            let faded = fade_on(left, gates_of(t, d));
            store_fades4(at_fades(t.batch, t.head, t.row) + d, HEAD_DIM - d, select(faded, left, params.late == 1u));
            left = faded;
        }
        left = vec4f(1.0);
        for (var n = w.count; n > 0u; n--) {
            let t = token_at(w, n - 1u);
            let faded = fade_on(left, gates_of(t, d));
            store_rests4(at_rests(t.batch, t.head, t.row) + d, HEAD_DIM - d, select(left, faded, params.late == 1u));
            left = faded;
        }
    }
    if (HAS_PROBLEM) { report(w, thread); }
}

fn fade_on(x: vec4f, g: vec4f) -> vec4f {
    return fma(x, vec4f(change_of(g.x), change_of(g.y), change_of(g.z), change_of(g.w)), x);
}
