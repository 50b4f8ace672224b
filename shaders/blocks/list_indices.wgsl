// The lists of a bitmap, row by row, at the places that list_offsets.wgsl has found. A thread writes a row; no workgroup memory.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = params.first + workgroup.x * WG + thread;
    if (n >= params.count) { return; }
    var at = load_offsets(at_offsets(0u, 0u, 0u) + n);
    let end = load_offsets(at_offsets(0u, 0u, 0u) + n + 1u);
    for (var word = 0u; 32u * word < params.cols; word++) {
        for (var bits = listed(n, word); bits != 0u && at < end; bits &= bits - 1u) {
            store_to(at_to(0u, 0u, 0u) + at, 32u * word + countTrailingZeros(bits));
            at += 1u;
        }
    }
}
