// Gates for each channel of a key: what is left of each channel of a state that a chunk of params.segment tokens begins with as each
// token reads it, `fades`, and what is left of the token after the chunk, `rests`. Both [batch, their heads, tokens, HEAD_DIM], f32:
// products of e^g, at most 1. For walks whose state fades before a token reads it. A thread takes four channels.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, params.first.z + workgroup.x, 0u);
    for (var d = 4u * thread; d < HEAD_DIM; d += 4u * WG) {
        var left = vec4f(1.0);
        for (var n = 0u; n < w.count; n++) {
            let t = token_at(w, n);
            left = fma(left, changes_of(gates_of(t, d)), left);
            store_fades4(at_fades(t.batch, t.head, t.row) + d, HEAD_DIM - d, left);
        }
        left = vec4f(1.0);
        for (var n = w.count; n > 0u; n--) {
            let t = token_at(w, n - 1u);
            store_rests4(at_rests(t.batch, t.head, t.row) + d, HEAD_DIM - d, left);
            left = fma(left, changes_of(gates_of(t, d)), left);
        }
    }
    if (HAS_PROBLEM) { report(w, thread); }
}
