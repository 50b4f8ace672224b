// The k-th largest of a row of numbers, by the order of their bits (value_bits): the bits are found one by one, from the highest,
// each by counting the numbers that are at least as large. Workgroup memory: 4 bytes.

var<workgroup> counted: atomic<u32>;

// How many numbers of the row have at least these bits.
fn count_from(at: u32, cols: u32, least: u32, thread: u32) -> u32 {
    if (thread == 0u) { atomicStore(&counted, 0u); }
    workgroupBarrier();
    var own = 0u;
    for (var col = thread; col < cols; col += WG) { own += u32(value_bits(at, col) >= least); }
    atomicAdd(&counted, own);
    workgroupBarrier();
    return workgroupUniformLoad(&counted);
}

// 0 if there are fewer than k.
fn largest(at: u32, cols: u32, k: u32, thread: u32) -> u32 {
    var least = 0u;
    for (var bit = 32u; bit > 0u; bit--) {
        let candidate = least | (1u << (bit - 1u));
        if (count_from(at, cols, candidate, thread) >= k) { least = candidate; }
    }
    return least;
}
