// From keys to segments:  values[row][s] = the sum, or the largest, of one[row][j] over the keys j with segments[j] = s.
//
// A workgroup takes one segment of one row, its threads every WG-th key. A number that is out of range leaves its key out; the
// first such of a batch entry is reported in problem[batch] = (NONE − key, number). Workgroup memory: 8·WG + 4 bytes.

var<workgroup> parts: array<vec2u, WG>;
var<workgroup> first_problem: atomic<u32>;

// What is read at a column: its value, and the key that it is of.
fn cell(batch: u32, head: u32, row: u32, col: u32) -> vec2u {
    var key = col;
    if (HAS_ONE_INDICES) { key = load_one_indices(at_one_indices(batch, head, row) + col); }
    return vec2u(load_one(at_one(batch, head, row) + col), key);
}

fn joined(a: vec2u, b: vec2u) -> vec2u {
    if (params.adds == 1u) { return vec2u(bitcast<u32>(bitcast<f32>(a.x) + bitcast<f32>(b.x)), NONE); }
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}

fn segment_of(batch: u32, key: u32) -> u32 {
    return load_segments(at_segments(batch, 0u, 0u) + key);
}

fn report(batch: u32, thread: u32) {
    if (thread == 0u) { atomicStore(&first_problem, NONE); }
    workgroupBarrier();
    for (var j = thread; j < params.cols; j += WG) {
        if (segment_of(batch, j) >= params.to_cols) { atomicMin(&first_problem, j); }
    }
    workgroupBarrier();
    if (thread == 0u) {
        let key = atomicLoad(&first_problem);
        problem[batch] = vec2u();
        if (key != NONE) { problem[batch] = vec2u(NONE - key, segment_of(batch, key)); }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let item = params.first.z + workgroup.x;
    let row = item / params.to_cols;
    let segment = item % params.to_cols;
    if (item == 0u && head == 0u) { report(batch, thread); }
    var own = vec2u(0u, NONE);
    for (var j = thread; j < params.cols; j += WG) {
        if (segment_of(batch, j) == segment) { own = joined(own, cell(batch, head, row, j)); }
    }
    parts[thread] = own;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (thread < step) { parts[thread] = joined(parts[thread], parts[thread + step]); }
        workgroupBarrier();
    }
    if (thread == 0u) { write_cell(batch, head, row, segment, parts[0]); }
}
