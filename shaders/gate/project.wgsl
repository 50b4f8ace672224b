// From features to the gate's vectors:  to[m] = turn(norm(Σ_f x[m][f] · weights[head][f]))
//
// x [batch, heads of x, rows, WIDTH_X] are pooled tokens or (TOKENS) tokens; the features of a head are those of `joined` heads
// of x, one after another. norm is an RMS norm or nothing, turn a rotary embedding or nothing. A workgroup takes ROWS rows of a
// head. Workgroup memory: that of product.wgsl and 16·ROWS·WIDTH4 bytes.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let p = place_of(workgroup);
    project(p, thread);
    share_projected(thread);
    let column = thread % WIDTH4;
    for (var i = 0u; i < PART; i++) {
        let r = row_of_part(thread, i);
        if (r != NONE && p.row0 + r < params.rows) {
            let d = 4u * column;
            let number = first_block(p.batch) + p.row0 + r;
            let factor = norm_factor(r);
            var x = vec4f();
            for (var e = 0u; e < 4u; e++) {
                x[e] = element(r, d + e) * norm_weight(d + e);
                if (TURNS && d + e < GATE_DIM) {
                    let half = max(GATE_DIM / 2u, 1u);
                    let partner = (d + e + half) % GATE_DIM;
                    let turn = turn_of(p.batch, number, (d + e) % half);
                    let sine = select(turn.y, -turn.y, d + e < half);
                    x[e] = fma(x[e], turn.x, element(r, partner) * norm_weight(partner) * sine);
                }
            }
            let there = exists(p.batch, p.row0 + r);
            // Beyond a ring's last full block lies what was not written yet.
            if (there || params.ring == 0u) {
                store_to4(at_to(p.batch, p.head, number) + d, GATE_DIM - d, select(vec4f(), x * factor, there));
            }
        }
    }
}
