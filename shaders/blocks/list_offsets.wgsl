// Where each row's list begins, from a bitmap:  to[r + 1] = to[r] + the bits of row r,  at most params.capacity.
//
// one, other: bitmaps; the other's blocks are left out (MODE_WITHOUT). problem[0] gets the number of bits where there is no room
// for them, else 0. One workgroup; a thread takes every WG-th row. Workgroup memory: 4·WG bytes.

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) thread: u32) {
    var next = 0u;
    for (var base = 0u; base < params.count; base += WG) {
        let n = base + thread;
        var own = 0u;
        if (n < params.count) {
            for (var word = 0u; 32u * word < params.cols; word++) { own += countOneBits(listed(n, word)); }
        }
        let end = next + sum_before(own, thread) + own;
        if (n < params.count) { store_to(at_to(0u, 0u, 0u) + n + 1u, min(end, params.capacity)); }
        next += sum_of_all();
    }
    if (thread == 0u) {
        store_to(at_to(0u, 0u, 0u), 0u);
        problem[0] = select(0u, next, next > params.capacity);
    }
}
