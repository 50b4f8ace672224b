// What a tile adds to the results where columns are staged: weights · values, read as in products.wgsl.

// A row's marks: see mark_broken.
var<private> raised: array<array<u32, WORDS>, RT>;
var<private> lowered: array<array<u32, WORDS>, RT>;

fn begin_sums(thread: u32) {
    if (thread == 0u) { atomicStore(&leak, 0u); }
}

fn rescale(sums: ptr<private, Sums>, i: u32, keep: f32) {
    for (var d = 0u; d < EACH_WIDTH; d++) { (*sums)[i][d] *= keep; }
}

// sums += weights · values for one tile. The weights are in `s`.
fn accumulate(what: u32, sums: ptr<private, Sums>, w: Work, visit: Visit, tile: Tile, thread: u32) {
    add_columns(sums);
    mark_broken(select(0u, CT, is_masked(tile) & (atomicLoad(&leak) != 0u)));
}

fn add_columns(sums: ptr<private, Sums>) {
    for (var d = 0u; d < EACH_WIDTH; d++) {
        for (var j = 0u; j < EACH_CT; j++) {
            let v = value_columns[j * WIDTH + d];
            for (var i = 0u; i < EACH_RT; i++) { (*sums)[i][d] = fma(vec4f(s[i][j]), v, (*sums)[i][d]); }
        }
    }
}

// A value that is not finite must not reach rows that do not see its column, and zero times NaN is NaN. A row whose weight is not exactly
// zero (a masked column's is: see state_weigh) marks it: a bit for +inf, one for −inf, both for NaN. (Loops, no `if`: a driver that walks
// through both sides of a branch passes over a loop that does not go round.)
fn mark_broken(columns: u32) {
    for (var column = 0u; column < columns; column++) {
        for (var d = 0u; d < WIDTH; d++) {
            let v = bitcast<vec4u>(broken_columns[column * WIDTH + d]);
            let broken = is_broken(bitcast<vec4f>(v));
            let nan = (v & vec4u(0x007fffffu)) != vec4u();
            let bits = bits_of(d);
            let up = all_bits(select(vec4u(), bits, broken & (nan | (v < vec4u(0x80000000u)))));
            let down = all_bits(select(vec4u(), bits, broken & (nan | (v >= vec4u(0x80000000u)))));
            for (var i = 0u; i < EACH_RT; i++) {
                var weight = 0.0;
                for (var j = 0u; j < EACH_CT; j++) { weight = select(weight, s[i][j], j == column); }
                let seen = bitcast<u32>(weight) != 0u;
                for (var word = 0u; word < EACH_WORDS; word++) {
                    raised[i][word] |= select(0u, up, seen & (d / 8u == word));
                    lowered[i][word] |= select(0u, down, seen & (d / 8u == word));
                }
            }
        }
    }
}

// Of the four values of vec4 number d, in word d / 8.
fn bits_of(d: u32) -> vec4u { return vec4u(1u, 2u, 4u, 8u) << vec4u(4u * (d % 8u)); }

fn all_bits(x: vec4u) -> u32 { return x.x | x.y | x.z | x.w; }

fn sum_at(sums: ptr<private, Sums>, i: u32, c: u32) -> vec4f {
    var up = 0u;
    var down = 0u;
    for (var word = 0u; word < EACH_WORDS; word++) {
        up = select(up, raised[i][word], c / 8u == word);
        down = select(down, lowered[i][word], c / 8u == word);
    }
    let bits = bits_of(c);
    let raise = (bits & vec4u(up)) != vec4u();
    let lower = (bits & vec4u(down)) != vec4u();
    // By the bits: compilers may assume that there is no infinity.
    let sum = bitcast<vec4u>(register_at(sums, i, c));
    let nan = ((sum & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)) | (raise & (lower | (sum == vec4u(MINUS_INFINITY_BITS))))
        | (lower & (sum == vec4u(0x7f800000u)));
    let infinite = select(select(sum, vec4u(0x7f800000u), raise), vec4u(MINUS_INFINITY_BITS), lower);
    return bitcast<vec4f>(select(infinite, vec4u(0x7fc00000u), nan));
}
