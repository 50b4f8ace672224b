// What the heads of the walk leave for one that they share, summed in their order: o[head] = Σ (q − less)[head · groups.x + n], in o's
// type; `less` may be absent.
// A thread takes four columns of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let columns = (WIDTH + 3u) / 4u;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let column = 4u * (at % columns);
    let head = params.first.y + workgroup.y;
    let w = segment_at(params.first.x + workgroup.z, head, 0u, column);
    if (at / columns < w.count) {
        let row = w.first + at / columns;
        var sum = vec4f();
        for (var n = 0u; n < GROUP; n++) {
            let other = head * GROUP + n;
            sum += load_q4(at_q(w.batch, other, row) + column, WIDTH - column) - load_less4(at_less(w.batch, other, row) + column, WIDTH - column);
        }
        store_o4(at_o(w.batch, head, row) + column, WIDTH - column, sum);
    }
}
