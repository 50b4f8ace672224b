// o from x, or, where GRADIENT, its gradient, o = dy · derivative. A thread takes four channels of a token.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let quads = (WIDTH + 3u) / 4u;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, 0u);
    let d = 4u * (at % quads);
    let row = w.first + at / quads;
    if (at / quads < w.count) {
        let x = shifted(load_x4(at_x(w.batch, w.head, row) + d, WIDTH - d), w.head, d);
        let rate = rate_if_any(w.head);
        var found: array<vec2f, 4>;
        for (var e = 0u; e < 4u; e++) { found[e] = activated(x[e], rate); }
        var y = vec4f(found[0].x, found[1].x, found[2].x, found[3].x);
        if (GRADIENT == 1u) {
            let slope = vec4f(found[0].y, found[1].y, found[2].y, found[3].y);
            y = slope * load_dy4(at_dy(w.batch, w.head, row) + d, WIDTH - d);
        }
        store_o4(at_o(w.batch, w.head, row) + d, WIDTH - d, y);
    }
}
