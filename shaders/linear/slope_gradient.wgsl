// Gradient of a head's slope, g = −slope at every token: dslope = −Σ dg over entries and tokens, always in the same order. A
// workgroup takes a head; workgroup memory: 4·WG bytes.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let head = params.first.y + workgroup.y;
    var sum = 0.0;
    for (var entry = 0u; entry < ENTRIES; entry++) {
        let w = segment_at(entry, head, 0u, 0u);
        var part = 0.0;
        for (var n = thread; n < w.count; n += WG) { part += load_dg(at_dg(entry, head, token_at(w, n).row)); }
        sum += part;
    }
    let all = sum_of(sum, thread);
    if (thread == 0u) { store_o(at_o(0u, head, 0u), bitcast<u32>(-all)); }
}
