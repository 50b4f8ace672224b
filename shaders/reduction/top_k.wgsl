// The k largest of each row: values and indices [batch, groups of heads, groups of queries, k], in the order of the indices; of
// equal values the first ones. Only values above 0 count; where there are fewer, the rest is (0, NONE).
//
// Values are not negative, so that their bits are in their order. The bits of the k-th largest are found one by one, from the
// highest, each by counting the values that are at least as large. A workgroup takes a row, its threads every WG-th column.
// Workgroup memory: 4·WG + 4 bytes.

var<workgroup> counted: atomic<u32>;

fn value_bits(at: u32, col: u32) -> u32 {
    return load_one(at + col);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let row = params.first.z + workgroup.x;
    let at = row_of(params.one, batch, head, row);
    let k = params.to_cols;
    var least = 0u;
    for (var bit = 31u; bit > 0u; bit--) {
        let candidate = least | (1u << (bit - 1u));
        if (count_from(at, candidate, thread) >= k) { least = candidate; }
    }
    least = max(least, 1u);
    // Those above the k-th largest all count, and as many of its equals as there is room for.
    let above = count_from(at, least + 1u, thread);
    let values = row_of(params.values, batch, head, row);
    let indices = row_of(params.indices, batch, head, row);
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

// How many values of the row have at least these bits.
fn count_from(at: u32, least: u32, thread: u32) -> u32 {
    if (thread == 0u) { atomicStore(&counted, 0u); }
    workgroupBarrier();
    var own = 0u;
    for (var col = thread; col < params.cols; col += WG) { own += u32(value_bits(at, col) >= least); }
    atomicAdd(&counted, own);
    workgroupBarrier();
    return workgroupUniformLoad(&counted);
}
