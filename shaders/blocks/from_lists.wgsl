// A bitmap from lists:  bit j of row r is set where an index between offsets[r] and offsets[r + 1] is j, or where it is set in
// `other` (MODE_WITH).
//
// one: params.rows of all batch entries and heads, and one more, offsets; indices: params.capacity. Offsets that do not ascend
// or lie beyond the indices are clamped, indices that do not ascend within a row or name no column are left out, and the first
// such is reported: problem[3] = NONE − (place · 4 + rule), for list_problem.wgsl. A thread makes a row; no workgroup memory.

const RULE_OFFSET_ASCENDS: u32 = 0u;
const RULE_OFFSET_RANGE: u32 = 1u;
const RULE_INDEX_ASCENDS: u32 = 2u;
const RULE_INDEX_RANGE: u32 = 3u;

fn complain(place: u32, rule: u32) {
    atomicMax(&problem[3], NONE - (place * 4u + rule));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = params.first + workgroup.x * WG + thread;
    if (n >= params.count) { return; }
    let offsets = at_one(0u, 0u, 0u);
    var at = load_one(offsets + n);
    let end = load_one(offsets + n + 1u);
    if (n == 0u && at != 0u) { complain(0u, RULE_OFFSET_ASCENDS); }
    if (end < at) { complain(n + 1u, RULE_OFFSET_ASCENDS); }
    if (end > params.capacity) { complain(n + 1u, RULE_OFFSET_RANGE); }
    let last = min(end, params.capacity);
    // The lowest number that may come next, so that numbers ascend.
    var least = 0u;
    let words = (params.cols + 31u) / 32u;
    let row = grid_row(n, params.rows);
    for (var word = 0u; word < words; word++) {
        var bits = 0u;
        while (at < last) {
            let j = load_indices(at_indices(0u, 0u, 0u) + at);
            if (j >= params.cols) {
                complain(at, RULE_INDEX_RANGE);
            } else if (j < least) {
                complain(at, RULE_INDEX_ASCENDS);
            } else {
                if (j / 32u > word) { break; }
                bits |= 1u << (j % 32u);
                least = j + 1u;
            }
            at += 1u;
        }
        if (params.mode == MODE_WITH) { bits |= load_other(at_other(row.x, row.y, row.z) + word); }
        store_to(at_to(row.x, row.y, row.z) + word, bits);
    }
}
