// The second step of sums.wgsl: the sum over the segments of ENTRIES entries, one after another. A thread takes four channels of a head, or
// da_log.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let head = params.first.y + workgroup.y;
    for (var d = 4u * thread; d <= AT; d += 4u * WG) {
        var sum = vec4f();
        for (var entry = 0u; entry < ENTRIES; entry++) {
            for (var place = 0u; place < segments_of(entry); place++) {
                sum += load_sums4(at_sums(entry, head, place) + d, AT + 4u - d);
            }
        }
        if (d == AT) { store_da_log(at_da_log(0u, head, 0u), bitcast<u32>(sum.x)); }
        if (HAS_DDT_BIAS && d < WIDTH) { store_ddt_bias4(at_ddt_bias(0u, head, 0u) + d, WIDTH - d, sum); }
    }
}
