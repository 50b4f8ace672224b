// o = v / (z + ε) of each row [v, z] of q, ε = params.gain. A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let columns = (WIDTH + 3u) / 4u;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let r = row_at(workgroup, at / columns);
    let column = 4u * (at % columns);
    if (r.is_there) {
        let source = at_q(r.batch, r.head, r.row);
        let z = load_q4(source + AT, JOINT - AT).x;
        let x = load_q4(source + column, JOINT - column);
        store_o4(at_o(r.batch, r.head, r.row) + column, WIDTH - column, x / (z + params.gain));
    }
}
