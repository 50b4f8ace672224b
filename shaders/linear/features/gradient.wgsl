// dx of each row from `dy`, the gradient of φ (shared.wgsl): dn = φ'ᵀ dy; with a norm, dx = factor · (dn − n (n · dn)).

var<private> dn: array<vec4f, X4>;

fn add(d: u32, x: f32) { dn[d / 4u][d % 4u] += x; }

fn gradient_at(at: u32, i: u32) -> f32 { return load_dy4(at + i / 4u * 4u, FEATURES - i / 4u * 4u)[i % 4u]; }

fn pull_back(at: u32) {
    if (MAP == TAYLOR) {
        for (var i = 0u; i < WIDTH; i++) { add(i, sqrt(params.gain) * gradient_at(at, 1u + i)); }
        var place = 1u + WIDTH;
        for (var i = 0u; i < WIDTH; i++) {
            for (var j = i; j < WIDTH; j++) {
                let x = pair_factor(i, j) * gradient_at(at, place);
                add(i, x * n_at(j));
                add(j, x * n_at(i));
                place += 1u;
            }
        }
    } else {
        for (var d = 0u; d < X4; d++) { dn[d] = slope_of(row[d]) * load_dy4(at + 4u * d, WIDTH - 4u * d); }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = (params.first.z + workgroup.x) * WG + thread;
    let head = params.first.y + workgroup.y;
    let w = segment_at(params.first.x + workgroup.z, head, 0u, 0u);
    if (n < w.count) {
        let factor = load_row(at_q(w.batch, head, w.first + n));
        pull_back(at_dy(w.batch, head, w.first + n));
        var along = 0.0;
        if (NORMS == 1u) {
            for (var d = 0u; d < X4; d++) { along += dot(row[d], dn[d]); }
        }
        let to = at_o(w.batch, head, w.first + n);
        for (var d = 0u; d < X4; d++) { store_o4(to + 4u * d, WIDTH - 4u * d, factor * (dn[d] - along * row[d])); }
    }
}
