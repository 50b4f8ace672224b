// The k largest of each row: values and indices [batch, groups of heads, groups of queries, k], in the order of the indices; of
// equal values the first ones. Only values above 0 count; where there are fewer, the rest is (0, NONE).
//
// Values are not negative, so that their bits are in their order. A workgroup takes a row, its threads every WG-th column.
// Workgroup memory: 4·WG + 4 bytes.

fn value_bits(at: u32, col: u32) -> u32 {
    return load_one(at + col);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let row = params.first.z + workgroup.x;
    let at = at_one(batch, head, row);
    let k = params.to_cols;
    let least = max(largest(at, params.cols, k, thread), 1u);
    // Those above the k-th largest all count, and as many of its equals as there is room for.
    let above = count_from(at, params.cols, least + 1u, thread);
    let values = at_values(batch, head, row);
    let indices = at_indices(batch, head, row);
    // Of the columns so far: written, and equal to the k-th largest.
    var written = 0u;
    var equals = 0u;
    for (var base = 0u; base < params.cols; base += WG) {
        let col = base + thread;
        var bits = 0u;
        if (col < params.cols) { bits = value_bits(at, col); }
        let before_equal = equals + sum_before(u32(bits == least), thread);
        equals += sum_of_all();
        let takes = bits > least || (bits == least && before_equal < k - min(above, k));
        let place = written + sum_before(u32(takes), thread);
        written += sum_of_all();
        if (takes && place < k) {
            store_values(values + place, bits);
            store_indices(indices + place, col);
        }
    }
    for (var place = written + thread; place < k; place += WG) {
        store_values(values + place, 0u);
        store_indices(indices + place, NONE);
    }
}
