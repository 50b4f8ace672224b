// Where each row's list begins, from a bitmap:  to[r + 1] = to[r] + the bits of row r,  at most params.capacity.
//
// one, other: bitmaps; the other's blocks are left out (MODE_WITHOUT). problem[0] gets the number of bits where there is no room
// for them. One workgroup; a thread takes every WG-th row. Workgroup memory: 4·WG bytes.

var<workgroup> sums: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) thread: u32) {
    var next = 0u;
    for (var base = 0u; base < params.count; base += WG) {
        let n = base + thread;
        var own = 0u;
        if (n < params.count) {
            for (var word = 0u; 32u * word < params.cols; word++) { own += countOneBits(listed(n, word)); }
        }
        sums[thread] = own;
        workgroupBarrier();
        for (var step = 1u; step < WG; step *= 2u) {
            var before = 0u;
            if (thread >= step) { before = sums[thread - step]; }
            workgroupBarrier();
            sums[thread] += before;
            workgroupBarrier();
        }
        if (n < params.count) { store_to(params.to.x + n + 1u, min(next + sums[thread], params.capacity)); }
        next += workgroupUniformLoad(&sums[WG - 1u]);
    }
    if (thread == 0u) {
        store_to(params.to.x, 0u);
        if (next > params.capacity) { problem[0] = next; }
    }
}
