// The sum of floats over the threads of a workgroup, in an order that is always the same. Workgroup memory: 4·WG bytes.

var<workgroup> parts: array<f32, WG>;

// Of WG, a power of two. All threads call it.
fn sum_of(own: f32, thread: u32) -> f32 {
    parts[thread] = own;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        if (thread < step) { parts[thread] += parts[thread + step]; }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&parts[0]);
}
