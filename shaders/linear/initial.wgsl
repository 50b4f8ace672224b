// What a walk begins with, brought to where it goes on: `ht`, or, where KEPT, the first of `states`. A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let at = (params.first.z + workgroup.x) * WG + thread;
    let columns = (HEAD_DIM_V + 3u) / 4u;
    let row = at / columns;
    let column = 4u * (at % columns);
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, column);
    if (row < HEAD_DIM) {
        let x = initial_state(w, row, column);
        if (KEPT == 1u) {
            store_states4(at_states(w.batch, w.head, row) + column, HEAD_DIM_V - column, x);
        } else {
            write_state(w, row, column, x);
        }
    }
}
