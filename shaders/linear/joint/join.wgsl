// o = [v, z] of each row; z is ONE in its first column where there is none. A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let at = (params.first.z + workgroup.x) * WG + thread;
    let r = row_at(workgroup, at / (JOINT / 4u));
    let column = 4u * (at % (JOINT / 4u));
    if (r.is_there) {
        var x = vec4f();
        if (column < WIDTH) { x = load_v4(at_v(r.batch, r.head, r.row) + column, WIDTH - column); }
        if (column == AT) { x.x = f32(ONE); }
        if (HAS_Z && column >= AT && column < AT + MORE) {
            x = load_z4(at_z(r.batch, r.head, r.row) + column - AT, AT + MORE - column);
        }
        store_o4(at_o(r.batch, r.head, r.row) + column, JOINT - column, x);
    }
}
