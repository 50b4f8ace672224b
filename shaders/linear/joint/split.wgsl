// The inverse of join.wgsl: v and z of each row of q, those that are wanted. A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let at = (params.first.z + workgroup.x) * WG + thread;
    let r = row_at(workgroup, at / (JOINT / 4u));
    let column = 4u * (at % (JOINT / 4u));
    if (r.is_there) {
        let x = load_q4(at_q(r.batch, r.head, r.row) + column, JOINT - column);
        if (column < WIDTH) { store_o4(at_o(r.batch, r.head, r.row) + column, WIDTH - column, x); }
        if (column >= AT && column < AT + MORE) {
            store_z4(at_z(r.batch, r.head, r.row) + column - AT, AT + MORE - column, x);
        }
    }
}
