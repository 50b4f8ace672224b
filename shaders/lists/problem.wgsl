// What lists/ascending.wgsl left out first, in full: problem = (NONE − (list · capacity + place) or 0, the token, 0, 0 for the next run), for each
// (batch entry, head). One thread each.

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) workgroup: vec3u) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let at = 4u * (batch * HEADS + head);
    let found = problem[at + 3u];
    problem[at] = found;
    problem[at + 3u] = 0u;
    if (found != 0u) {
        let number = NONE - found;
        problem[at + 1u] = load_given(at_given(batch, head, number / params.capacity) + number % params.capacity);
    }
}
