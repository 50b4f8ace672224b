// What a workgroup finds out of a row of logits: their largest, and the sum behind their softmax
//
//   p[j] = exp(z[j] − top) / sum
//
// over the blocks that the row sees. Inputs may hold NaN and infinities, and compilers may assume that they do not: what decides is
// integer bits. A row with a NaN, with +inf, or with nothing but −inf is broken: its softmax is not known.
// Workgroup memory: 4 bytes, and that of lib/sum.wgsl.

const INFINITE: u32 = 0xff800000u;
const NOTHING: u32 = 0x007fffffu;

struct RowOfLogits { at: u32, seen: u32, top: f32, sum: f32, broken: bool }

var<workgroup> highest: atomic<u32>;

// Bits in the order of the numbers, NaN above all.
fn ordered(bits: u32) -> u32 {
    if (is_nan(bits)) { return NONE; }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn weight(row: RowOfLogits, col: u32) -> f32 {
    let bits = load_logits(row.at + col);
    if (bits == MINUS_INFINITY_BITS) { return 0.0; }
    return exp(bitcast<f32>(bits) - row.top);
}

fn probability(row: RowOfLogits, col: u32) -> f32 {
    return weight(row, col) / row.sum;
}

fn row_of_logits(batch: u32, head: u32, number: u32, thread: u32) -> RowOfLogits {
    var row = RowOfLogits(at_logits(batch, head, number), seen_blocks(sequences[batch], number), 0.0, 0.0, false);
    if (thread == 0u) { atomicStore(&highest, 0u); }
    workgroupBarrier();
    var own = 0u;
    for (var col = thread; col < row.seen; col += WG) { own = max(own, ordered(load_logits(row.at + col))); }
    atomicMax(&highest, own);
    workgroupBarrier();
    let top = workgroupUniformLoad(&highest);
    row.broken = row.seen > 0u && (top >= INFINITE || top <= NOTHING);
    if (row.seen > 0u && !row.broken) {
        row.top = bitcast<f32>(select(~top, top & 0x7fffffffu, (top >> 31u) == 1u));
        var sum = 0.0;
        for (var col = thread; col < row.seen; col += WG) { sum += weight(row, col); }
        row.sum = sum_of(sum, thread);
    }
    return row;
}
