// The way back of project.wgsl, from the gradient of the gate's vectors to that of the projected features:
//
//   u = turn⁻¹(gradient[m]),   to[m] = f · (u · norm − y · f² · mean(u · norm · y)),   shares[m] = u · y · f,   f = 1 / rms(y)
//
// with y the projected features, computed again; without a norm to[m] = u. A workgroup takes ROWS rows of a head.
// Workgroup memory: that of projected.wgsl and 16·ROWS·WIDTH4 bytes.

var<workgroup> straight: array<vec4f, ROWS * WIDTH4>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let p = place_of(workgroup);
    if (HAS_NORM) {
        project(p, thread);
        share_projected(thread);
    }
    let column = thread % WIDTH4;
    let d = 4u * column;
    for (var i = 0u; i < PART; i++) {
        let r = row_of_part(thread, i);
        let row = p.row0 + r;
        if (r == NONE) { continue; }
        var u = vec4f();
        if (row < params.rows && exists(p.batch, row)) {
            let at = at_gradient(p.batch, p.head, row);
            for (var e = 0u; e < 4u; e++) {
                if (d + e < GATE_DIM) { u[e] = load_gradient(at + d + e); }
                if (TURNS && d + e < GATE_DIM) {
                    let half = max(GATE_DIM / 2u, 1u);
                    let turn = turn_of(p.batch, row, (d + e) % half);
                    let sine = select(-turn.y, turn.y, d + e < half);
                    u[e] = fma(u[e], turn.x, load_gradient(at + (d + e + half) % GATE_DIM) * sine);
                }
            }
        }
        straight[r * WIDTH4 + column] = u;
    }
    workgroupBarrier();
    for (var i = 0u; i < PART; i++) {
        let r = row_of_part(thread, i);
        if (r != NONE && p.row0 + r < params.rows) { write_straight(p, r, column); }
    }
}

// Through the norm, if there is one.
fn write_straight(p: Place, r: u32, column: u32) {
    if (!HAS_NORM) {
        let d = 4u * column;
        store_to4(at_to(p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, straight[r * WIDTH4 + column]);
        return;
    }
    let factor = norm_factor(r);
    let d = 4u * column;
    var mean = 0.0;
    for (var e = 0u; e < GATE_DIM; e++) { mean = fma(straight[r * WIDTH4 + e / 4u][e % 4u] * norm_weight(e), element(r, e), mean); }
    mean = mean / f32(GATE_DIM) * factor * factor;
    let u = straight[r * WIDTH4 + column];
    let y = projected[r * WIDTH4 + column];
    let norm = vec4f(norm_weight(d), norm_weight(d + 1u), norm_weight(d + 2u), norm_weight(d + 3u));
    store_to4(at_to(p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, factor * (u * norm - y * mean));
    store_shares4(at_shares(p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, factor * u * y);
}
