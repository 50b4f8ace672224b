// y[l] = x[index[l]], 0 where the index names no row; where there is a count, of index [.., rows], each row of x is divided by its own.
// A thread makes four elements of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let l = at / D4;
    let d = 4u * (at % D4);
    if (l >= params.count) { return; }
    let n = load_index(at_index(batch, own_head(head), 0u) + l);
    var row = vec4f();
    if (n < params.rows) {
        row = load_x4(at_x(batch, head, n) + d, WIDTH - d);
        if (HAS_COUNT) { row /= f32(max(1u, load_count(at_count(batch, own_head(head), 0u) + n))); }
    }
    store_y4(at_y(batch, head, l) + d, WIDTH - d, row);
}
