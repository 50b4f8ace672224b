// What a tile adds to the results in engine `processor`: weights · values, the values handed round as in products.wgsl.

// What a row's sums are multiplied by before more is added.
var<private> kept: array<f32, RT>;

fn begin_sums(thread: u32) {
    for (var i = 0u; i < EACH_RT; i++) { kept[i] = 1.0; }
}

fn rescale(sums: ptr<private, Sums>, i: u32, keep: f32) { kept[i] = keep; }

// sums += weights · values for one tile. The weights are in `s`; `what` says which columns.
//
// A row whose weight at place 0 is exactly zero (a masked column: see state_weigh) does not take the value there, whatever it is.
fn accumulate(what: u32, sums: ptr<private, Sums>, w: Work, visit: Visit, tile: Tile, thread: u32) {
    if (what == SCORES) { add_columns(&score_columns, sums); } else { add_columns(&value_columns, sums); }
}

fn add_columns(columns: ptr<private, Columns>, sums: ptr<private, Sums>) {
    var values: array<array<vec4f, CT>, WIDTH>;
    for (var n = 0u; n < EACH_LOADS; n++) {
        for (var part = 0u; part < EACH_PARTS; part++) {
            for (var j = 0u; j < EACH_CT; j++) { values[n * PARTS + part][j] = subgroupBroadcast((*columns)[n], j * PARTS + part); }
        }
    }
    for (var i = 0u; i < EACH_RT; i++) {
        if ((turn == 0u) | (bitcast<u32>(s[i][0]) != 0u)) {
            for (var d = 0u; d < EACH_WIDTH; d++) {
                var sum = (*sums)[i][d] * kept[i];
                for (var j = 0u; j < EACH_CT; j++) { sum = fma(vec4f(s[i][j]), values[d][j], sum); }
                (*sums)[i][d] = sum;
            }
        }
    }
}

fn sum_at(sums: ptr<private, Sums>, i: u32, c: u32) -> vec4f { return register_at(sums, i, c); }
