// Sums over the threads of a workgroup, in order. Workgroup memory: 4·WG bytes.

var<workgroup> sums: array<u32, WG>;

// The sum of the threads before this one. All threads call it, and then sum_of_all.
fn sum_before(own: u32, thread: u32) -> u32 {
    sums[thread] = own;
    workgroupBarrier();
    for (var step = 1u; step < WG; step *= 2u) {
        var before = 0u;
        if (thread >= step) { before = sums[thread - step]; }
        workgroupBarrier();
        sums[thread] += before;
        workgroupBarrier();
    }
    return sums[thread] - own;
}

fn sum_of_all() -> u32 {
    return workgroupUniformLoad(&sums[WG - 1u]);
}
