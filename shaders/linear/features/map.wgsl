// φ of each row: shared.wgsl.

// Numbers come one by one, and are stored by four.
var<private> four: vec4f;
var<private> count: u32;

fn put(at: u32, x: f32) {
    four[count % 4u] = x;
    count += 1u;
    if (count % 4u == 0u || count == FEATURES) {
        let first = (count - 1u) / 4u * 4u;
        store_o4(at + first, FEATURES - first, four);
        four = vec4f();
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = (params.first.z + workgroup.x) * WG + thread;
    let head = params.first.y + workgroup.y;
    let w = segment_at(params.first.x + workgroup.z, head, 0u, 0u);
    if (n < w.count) {
        _ = load_row(at_q(w.batch, head, w.first + n));
        let to = at_o(w.batch, head, w.first + n);
        if (MAP == TAYLOR) {
            put(to, 1.0);
            for (var i = 0u; i < WIDTH; i++) { put(to, sqrt(params.gain) * n_at(i)); }
            for (var i = 0u; i < WIDTH; i++) {
                for (var j = i; j < WIDTH; j++) { put(to, pair_factor(i, j) * n_at(i) * n_at(j)); }
            }
        } else {
            for (var d = 0u; d < X4; d++) { store_o4(to + 4u * d, WIDTH - 4u * d, mapped(row[d])); }
        }
    }
}
