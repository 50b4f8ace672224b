// Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864): pairs of elements turn by an angle that grows with the
// position p of their row,
//
//   out[a] = x[a] · cos(p·f) − x[b] · sin(p·f),   out[b] = x[b] · cos(p·f) + x[a] · sin(p·f),   f = theta^(−2i / DIM)
//
// for pair i = (a, b) of the first DIM elements; the rest stays. Backward turns the other way.
//
// x, out [batch, heads, rows, head_dim] by strides; positions [batch or 1, heads or 1, 1, rows], or counted. A thread makes four elements
// of a row; no workgroup memory.

struct Params {
    at: Addresses,
    // First batch entry, head and block of WG quads of this slice.
    first: vec3u,
    rows: u32,
    // Where positions are counted: that of the first row, and from row to row.
    start: u32,
    step: u32,
    // Whether pairs are neighbours, and whether they turn back.
    interleaved: u32,
    backward: u32,
}

fn position_of(batch: u32, head: u32, row: u32) -> u32 {
    if (HAS_POSITIONS) { return load_positions(at_positions(batch, head / POSITIONS_GROUP, 0u) + row); }
    return params.start + row * params.step;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let row = at / D4;
    let d0 = 4u * (at % D4);
    if (row >= params.rows) { return; }
    let position = position_of(batch, head, row);
    let partners = at_partner(batch, head, row);
    var x = load_x4(at_x(batch, head, row) + d0, HEAD_DIM - d0);
    for (var e = 0u; e < 4u; e++) {
        let d = d0 + e;
        if (d < DIM) {
            let half = DIM / 2u;
            let first = select(d < half, d % 2u == 0u, params.interleaved == 1u);
            let pair = select(d % half, d / 2u, params.interleaved == 1u);
            let partner = select((d + half) % DIM, d ^ 1u, params.interleaved == 1u);
            let turn = angle(position, pair);
            let sine = select(turn.y, -turn.y, first != (params.backward == 1u));
            x[e] = fma(x[e], turn.x, load_partner(partners + partner) * sine);
        }
    }
    store_out4(at_out(batch, head, row) + d0, HEAD_DIM - d0, x);
}
