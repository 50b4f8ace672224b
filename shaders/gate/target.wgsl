// Training targets:  to[i][j] = wanted[i][j] / (Σ_j wanted[i][j] + 1e-9)  over the blocks j that row i sees, 0 elsewhere
//
// wanted, to [batch, heads, rows, blocks]. A workgroup takes a row, its threads every WG-th block. Workgroup memory: 4·WG bytes.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let row = params.first.z + workgroup.x;
    let seen = seen_blocks(sequences[batch], row);
    let at = at_wanted(batch, head, row);
    var own = 0.0;
    for (var col = thread; col < seen; col += WG) { own += load_wanted(at + col); }
    let sum = sum_of(own, thread) + 1e-9;
    let to = at_to(batch, head, row);
    for (var col = thread; col < params.cols; col += WG) {
        var x = 0.0;
        if (col < seen) { x = load_wanted(at + col) / sum; }
        store_to(to + col, bitcast<u32>(x));
    }
}
