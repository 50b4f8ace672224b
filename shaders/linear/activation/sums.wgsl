// Gradients of what heads share: da_log = Σ dy · g and ddt_bias = Σ dx of each channel, over the tokens of ENTRIES entries, always in the
// same order. A workgroup takes a head; workgroup memory: 4·WG bytes.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let head = params.first.y + workgroup.y;
    let rate = rate_if_any(head);
    var of_rate = 0.0;
    for (var d = 0u; d < WIDTH; d += 4u) {
        var of_bias = vec4f();
        for (var entry = 0u; entry < ENTRIES; entry++) {
            let w = segment_at(entry, head, 0u, 0u);
            var part = vec4f();
            for (var n = thread; n < w.count; n += WG) {
                let row = w.first + n;
                let x = shifted(load_x4(at_x(entry, head, row) + d, WIDTH - d), head, d);
                let dy = load_dy4(at_dy(entry, head, row) + d, WIDTH - d);
                for (var e = 0u; e < min(4u, WIDTH - d); e++) {
                    let found = activated(x[e], rate);
                    of_rate = fma(dy[e], found.x, of_rate);
                    part[e] = fma(dy[e], found.y, part[e]);
                }
            }
            of_bias += part;
        }
        if (HAS_DDT_BIAS) {
            let sum = vec4f(sum_of(of_bias.x, thread), sum_of(of_bias.y, thread), sum_of(of_bias.z, thread), sum_of(of_bias.w, thread));
            if (thread == 0u) { store_ddt_bias4(at_ddt_bias(0u, head, 0u) + d, WIDTH - d, sum); }
        }
    }
    let sum = sum_of(of_rate, thread);
    if (thread == 0u) { store_da_log(at_da_log(0u, head, 0u), bitcast<u32>(sum)); }
}
