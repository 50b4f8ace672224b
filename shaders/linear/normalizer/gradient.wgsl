// o = [dv, dz] of each row [v, z] of q from dout, the gradient of v / (z + ε), ε = params.gain:
// dv = dout / (z + ε), dz = −Σ dv · v / (z + ε). A thread takes a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let r = row_at(workgroup, (params.first.z + workgroup.x) * WG + thread);
    if (r.is_there) {
        let source = at_q(r.batch, r.head, r.row);
        let to = at_o(r.batch, r.head, r.row);
        let dout = at_dy(r.batch, r.head, r.row);
        let z = load_q4(source + AT, JOINT - AT).x + params.gain;
        var sum = 0.0;
        for (var column = 0u; column < JOINT; column += 4u) {
            var x = vec4f();
            if (column < WIDTH) { x = load_dy4(dout + column, WIDTH - column) / z; }
            // Past WIDTH, x is 0.
            sum += dot(x, load_q4(source + column, JOINT - column));
            if (column == AT) { x.x = -sum / z; }
            store_o4(to + column, JOINT - column, x);
        }
    }
}
