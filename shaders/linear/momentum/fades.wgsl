// With momentum (shared.wgsl), what is left of both states, M_0 and S_0, that a chunk of params.segment tokens begins with, and of a token n after
// the chunk's last token, L; all f32 [batch, heads, tokens, 4]:
//
//   M_n = a_n M_0 + b_n S_0 + …,   a_n = Π_(s ≤ n) (1 − α_s),   b_n = (1 − α_n) b_(n − 1) + Π_(s ≤ n) η_s
//   fades  (a_n, b_n, a_p, b_p)     p the token before the ERRORS tokens whose errors read the same memory
//   rests  (c(L, n), Π_(n < s ≤ L) η_s, Π_(n ≤ s ≤ L) η_s, 0),   c(L, n) = Π_(n < s ≤ L) (1 − α_s) + η_(n + 1) c(L, n + 1)
//
// A thread takes a chunk.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let place = (params.first.z + workgroup.x) * WG + thread;
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, place, 0u);
    var left = vec4f(1.0, 0.0, 1.0, 0.0);
    var momentum = 1.0;
    for (var n = 0u; n < w.count; n++) {
        let t = token_at(w, n);
        let step = step_of(t);
        if (n % ERRORS == 0u) { left = left.xyxy; }
        momentum *= step.y;
        left.x = fma(-step.x, left.x, left.x);
        left.y = fma(-step.x, left.y, left.y) + momentum;
        store_fades4(at_fades(t.batch, t.head, t.row), 4u, left);
    }
    var counts = 0.0;
    var memory = 1.0;
    // Of the tokens after n, and η of the next.
    momentum = 1.0;
    var next = 0.0;
    for (var n = w.count; n > 0u; n--) {
        let t = token_at(w, n - 1u);
        let step = step_of(t);
        counts = fma(next, counts, memory);
        store_rests4(at_rests(t.batch, t.head, t.row), 4u, vec4f(counts, momentum, step.y * momentum, 0.0));
        memory = fma(-step.x, memory, memory);
        momentum *= step.y;
        next = step.y;
    }
}
