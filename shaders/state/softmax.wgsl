// The running state of a softmax row: m, the largest score so far (log2 units); l, this thread's part of Σ exp2(s − m).
//
//   m' = max(m, max_j s[j]),  p[j] = exp2(s[j] − m'),  l' = l·exp2(m − m') + Σ_j p[j],  o' = o·exp2(m − m')
//
// A row that has seen no key yet has m = MASKED and l = 0. Inputs may hold NaN, and compilers may assume that they do not:
// what decides is integer bits.

// Weight of a visible key whose exp2 underflows in a tile with masked scores: there zero means masked. Too small to change a sum.
const TINY: f32 = 1e-37;

var<private> m: array<f32, RT>;
var<private> l: array<f32, RT>;
var<private> row_value: array<f32, RT>;

fn state_reset() {
    for (var i = 0u; i < EVERY_RT; i++) {
        m[i] = MASKED;
        l[i] = 0.0;
        for (var c = 0u; c < EVERY_OV; c++) { o[i][c] = vec4f(); }
    }
}

// Turns the scores in `s` into weights and rescales what was accumulated so far.
fn state_weigh(masked: bool, thread: u32) {
    for (var i = 0u; i < EVERY_RT; i++) {
        row_value[i] = s[i][0];
        for (var j = 1u; j < EVERY_CT; j++) { row_value[i] = max(row_value[i], s[i][j]); }
    }
    reduce_rows(false, thread);
    for (var i = 0u; i < EVERY_RT; i++) {
        let top = max(m[i], row_value[i]);
        let keep = exp2(m[i] - top);
        m[i] = top;
        var part = 0.0;
        for (var j = 0u; j < EVERY_CT; j++) {
            var p = exp2(s[i][j] - top);
            if (masked) {
                p = select(p, TINY, bitcast<u32>(p) == 0u);
                p = select(p, 0.0, bitcast<u32>(s[i][j]) == MASKED_BITS);
            }
            s[i][j] = p;
            part += p;
        }
        // A tile that comes in turns counts once.
        l[i] = fma(l[i], keep, select(0.0, part, is_first_turn()));
        rescale(&o, i, keep);
    }
}

struct Finished { factor: f32, lse: u32 }

// For a row's whole sum and maximum: what to multiply its output by, and the bits of its LSE.
fn state_finish(sum: f32, top: f32) -> Finished {
    let bits = bitcast<u32>(sum);
    if (bits == 0u) { return Finished(0.0, 0xff800000u); }
    // exp2 of a NaN is +inf on one driver: either way the row has seen a NaN.
    if ((bits & 0x7f800000u) == 0x7f800000u) { return Finished(bitcast<f32>(bits | 0x7fc00000u), 0x7fc00000u); }
    return Finished(1.0 / sum, bitcast<u32>((top + log2(sum)) * 0.6931471805599453));
}
