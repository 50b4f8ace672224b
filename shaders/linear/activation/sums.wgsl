// Gradients of what heads share: da_log = Σ dy · g and ddt_bias = Σ dx of each channel, in two steps. First of each segment, into rows of
// `sums` [entries, heads, segments, AT + 4]: channels, then, from AT on, da_log. A workgroup takes a segment of a head; workgroup
// memory: 4·WG bytes. total.wgsl adds up segments.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let place = params.first.z + workgroup.x;
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, place, 0u);
    let to = at_sums(w.batch, w.head, place);
    let rate = rate_if_any(w.head);
    var of_rate = 0.0;
    for (var d = 0u; d < WIDTH; d += 4u) {
        var of_bias = vec4f();
        for (var n = thread; n < w.count; n += WG) {
            let row = w.first + n;
            let x = shifted(load_x4(at_x(w.batch, w.head, row) + d, WIDTH - d), w.head, d);
            let dy = load_dy4(at_dy(w.batch, w.head, row) + d, WIDTH - d);
            for (var e = 0u; e < min(4u, WIDTH - d); e++) {
                let found = activated(x[e], rate);
                of_rate = fma(dy[e], found.x, of_rate);
                of_bias[e] = fma(dy[e], found.y, of_bias[e]);
            }
        }
        let sum = vec4f(sum_of(of_bias.x, thread), sum_of(of_bias.y, thread), sum_of(of_bias.z, thread), sum_of(of_bias.w, thread));
        if (thread == 0u) { store_sums4(to + d, AT + 4u - d, sum); }
    }
    let sum = sum_of(of_rate, thread);
    if (thread == 0u) { store_sums4(to + AT, 4u, vec4f(sum, 0.0, 0.0, 0.0)); }
}
