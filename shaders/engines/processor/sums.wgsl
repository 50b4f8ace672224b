// What a tile adds to the results in engine `processor`: weights · values, the values handed round as in scores.wgsl.

alias Sums = array<array<vec4f, OV>, RT>;

// sums += weights · values for one tile. The weights are in `s`; `what` is for sum_part.
//
// Where a value is not finite and scores may be MASKED, columns go one by one, and a row whose weight is exactly zero (a masked
// column: see state_weigh) keeps what it has: then even a NaN stays out. Finite values come out the same either way.
fn accumulate(what: u32, sums: ptr<private, Sums>, w: Work, visit: Visit, tile: Tile, thread: u32) {
    let column = thread / PARTS;
    let token = col_token(visit, tile, column);
    var mine: array<vec4f, OL>;
    // Finite where all squares are; a square that overflows only costs time.
    var squares = vec4f();
    for (var n = 0u; n < EACH_OL; n++) {
        let d = n * PARTS + thread % PARTS;
        mine[n] = select(vec4f(), sum_part(what, w, token, min(d, sum_width(what) - 1u)), token != NONE && d < sum_width(what));
        squares = fma(mine[n], mine[n], squares);
    }
    let careful = is_masked(tile) && subgroupAny(!is_finite4(squares));
    // The column of a turn; CT for all together.
    let end = select(CT + 1u, CT, careful);
    for (var turn = select(CT, 0u, careful); turn < end; turn++) {
        let shown = turn == CT || turn == column;
        var seen: array<bool, RT>;
        for (var i = 0u; i < EACH_RT; i++) {
            seen[i] = turn == CT;
            for (var j = 0u; j < EACH_CT; j++) { seen[i] = seen[i] | ((turn == j) & (bitcast<u32>(s[i][j]) != 0u)); }
        }
        for (var n = 0u; n < EACH_OL; n++) {
            let value = select(vec4f(), mine[n], shown);
            for (var part = 0u; part < EACH_PARTS; part++) {
                var sum: array<vec4f, RT>;
                for (var i = 0u; i < EACH_RT; i++) { sum[i] = (*sums)[i][n * PARTS + part]; }
                for (var j = 0u; j < EACH_CT; j++) {
                    let v = subgroupBroadcast(value, j * PARTS + part);
                    for (var i = 0u; i < EACH_RT; i++) { sum[i] = fma(vec4f(s[i][j]), v, sum[i]); }
                }
                for (var i = 0u; i < EACH_RT; i++) {
                    (*sums)[i][n * PARTS + part] = select((*sums)[i][n * PARTS + part], sum[i], seen[i]);
                }
            }
        }
    }
}
