// The first index of a head that is neither below `rows` nor NONE: problem[2 · (batch · heads + head)] = NONE − its place, and it behind that; else
// 0. A workgroup goes over the index of a head. Workgroup memory: 4 bytes.

var<workgroup> first_wrong: atomic<u32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let indices = at_index(batch, head, 0u);
    if (thread == 0u) { atomicStore(&first_wrong, NONE); }
    workgroupBarrier();
    for (var l = thread; l < params.count; l += WG) {
        let n = load_index(indices + l);
        if (n >= params.rows && n != NONE) { atomicMin(&first_wrong, l); }
    }
    workgroupBarrier();
    if (thread == 0u) {
        let l = atomicLoad(&first_wrong);
        let at = 2u * (batch * HEADS + head);
        problem[at] = NONE - l;
        problem[at + 1u] = 0u;
        if (l != NONE) { problem[at + 1u] = load_index(indices + l); }
    }
}
