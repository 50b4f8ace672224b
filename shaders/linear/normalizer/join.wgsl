// o = [v, z, 0 …] of each row; z is 1 where there is none, or, for states, 0. A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let at = (params.first.z + workgroup.x) * WG + thread;
    let r = row_at(workgroup, at / (JOINT / 4u));
    let column = 4u * (at % (JOINT / 4u));
    if (r.is_there) {
        var x = vec4f();
        if (column < WIDTH) { x = load_v4(at_v(r.batch, r.head, r.row) + column, WIDTH - column); }
        if (column <= WIDTH && WIDTH < column + 4u) {
            var last = 1.0;
            if (HAS_Z) { last = load_z(at_z(r.batch, r.head, r.row)); } else if (STATES == 1u) { last = 0.0; }
            x[WIDTH - column] = last;
        }
        store_o4(at_o(r.batch, r.head, r.row) + column, JOINT - column, x);
    }
}
