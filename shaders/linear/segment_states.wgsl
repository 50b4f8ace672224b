// First of three passes: what the tokens of each segment leave in an empty state, chunk by chunk (chunk.wgsl), into
// `states` [entries, heads, segments · HEAD_DIM, HEAD_DIM_V], and the sum of their gates into
// `totals` [entries, heads, 1, segments], unless each channel has its own. Of the last segment only if the state after it is wanted (WHOLE).
// Or all of one pass without outputs: from and to where states.wgsl says.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    var w = work_of(workgroup);
    let segments = segments_of(w.batch);
    let wanted = w.place < segments - (1u - WHOLE);
    if (!wanted) { w.count = 0u; }
    load_state(w, thread);
    var total = 0.0;
    var n0 = 0u;
    while (n0 < w.count) {
        let count = tokens_of_chunk(w, n0);
        total += absorb_chunk(w, n0, count, thread);
        n0 += count;
    }
    if (wanted) { store_state(w, thread); }
    if (HAS_PROBLEM && w.column == 0u) { report(w, thread); }
    if (wanted && w.column == 0u && thread == 0u) {
        store_totals(at_totals(w.batch, w.head, 0u) + w.place, bitcast<u32>(total));
    }
}
