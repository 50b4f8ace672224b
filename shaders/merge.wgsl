// Merge of partial attention results over disjoint keys, by their log-sum-exp:
//
//   lse = ln Σ_i exp(lse_i),   out = Σ_i exp(lse_i − lse) · out_i
//
// Where the parts lie say merge/pair.wgsl and merge/splits.wgsl: out [batch, heads, rows, value_dim] by strides, lse [batch, heads,
// rows, 1] of each. A workgroup takes WG vec4 of the output, along rows and value_dim; a thread one. No workgroup memory.

const MINUS_INFINITY_BITS: u32 = 0xff800000u;

struct Params {
    at: Addresses,
    // First batch entry, head and block of WG vec4 of this slice.
    first: vec3u,
    parts: u32,
    rows: u32,
}

// exp(lse − top), 0 for an empty part; what decides is integer bits, because compilers may assume that there is no infinity.
fn weight(lse: u32, top: f32) -> f32 {
    if (lse == MINUS_INFINITY_BITS) { return 0.0; }
    return exp(bitcast<f32>(lse) - top);
}

fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let row = at / DV4;
    let d = at % DV4;
    if (row >= params.rows) { return; }
    let low = -3.4028234663852886e38;
    var top = low;
    var nan = false;
    var empty = true;
    for (var part = 0u; part < params.parts; part++) {
        let lse = lse_of_part(part, batch, head, row);
        nan = nan || is_nan(lse);
        if (lse != MINUS_INFINITY_BITS) {
            top = max(top, bitcast<f32>(lse));
            empty = false;
        }
    }
    var sum = 0.0;
    for (var part = 0u; part < params.parts; part++) { sum += weight(lse_of_part(part, batch, head, row), top); }
    let n = HEAD_DIM_V - 4u * d;
    var x = vec4f();
    for (var part = 0u; part < params.parts; part++) {
        let lse = lse_of_part(part, batch, head, row);
        // A part without keys holds nothing, be it NaN; one whose weight underflows may hold a NaN that shows.
        if (lse != MINUS_INFINITY_BITS) { x += weight(lse, top) / sum * out_of_part(part, batch, head, row, d, n); }
    }
    var bits = bitcast<u32>(top + log(sum));
    if (empty) { bits = MINUS_INFINITY_BITS; }
    if (nan) {
        bits = 0x7fc00000u;
        x = vec4f(bitcast<f32>(bits));
    }
    store_out4(at_out(batch, head, row) + 4u * d, n, x);
    if (d == 0u) { store_lse(at_lse(batch, head, row), bits); }
}
