// What a tile adds to the results in engine `portable`: weights · values, through workgroup memory.
//
// In P a vec4 holds four columns of one row. A thread owns columns that lie TC apart, so quad number n means the columns
// n % TC + TC·(4·(n / TC) + e), e = 0 … 3; the rows of values are staged in that order.

const V_BASE: u32 = PQ * BR;
const V_WIDTH: u32 = OV * TC;

// Set once this workgroup has met a value that is not finite in a tile with masked scores; stays set.
var<workgroup> leak: atomic<u32>;
alias Sums = array<array<vec4f, OV>, RT>;

fn begin_sums(thread: u32) {
    if (thread == 0u) { atomicStore(&leak, 0u); }
}

// Makes what a row has so far smaller, before more is added.
fn rescale(sums: ptr<private, Sums>, i: u32, keep: f32) {
    for (var c = 0u; c < EVERY_OV; c++) { (*sums)[i][c] *= keep; }
}

fn sum_at(sums: ptr<private, Sums>, i: u32, c: u32) -> vec4f { return (*sums)[i][c]; }

// sums += weights · values for one tile, PQ quads of columns at a time. The weights are in `s`; `what` says which columns.
fn accumulate(what: u32, sums: ptr<private, Sums>, w: Work, visit: Visit, tile: Tile, thread: u32) {
    let masked = is_masked(tile);
    let busy = owns_rows(visit, (thread / TC) * RT);
    for (var first = 0u; first < BC / 4u; first += PQ) {
        if (stage_values(what, w, visit, tile, first, thread) && masked) { atomicStore(&leak, 1u); }
        stage_weights(first, thread);
        workgroupBarrier();
        // Finite values come out the same either way.
        var careful = false;
        if (masked) { careful = workgroupUniformLoad(&leak) != 0u; }
        if (careful) { weigh_values_carefully(sums, thread); } else if (busy) { weigh_values(sums, thread); }
        workgroupBarrier();
    }
}

// Brings 4·PQ rows of values into workgroup memory, zero past the end. True if this thread met a value that is not finite.
fn stage_values(what: u32, w: Work, visit: Visit, tile: Tile, first: u32, thread: u32) -> bool {
    var broken = false;
    for (var n = thread; n < 4u * PQ * V_WIDTH; n += WG) {
        let d = n % V_WIDTH;
        let key = n / V_WIDTH;
        let quad = first + key / 4u;
        let token = col_token(visit, tile, quad % TC + TC * (4u * (quad / TC) + key % 4u));
        let x = col_part(what, w, token, min(d, width_of(what) - 1u));
        let value = select(vec4f(), x, token != NONE && d < width_of(what));
        broken = broken || !is_finite4(value);
        tile_data[V_BASE + n] = value;
    }
    return broken;
}

fn stage_weights(first: u32, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var e = 0u; e < EVERY_CT / 4u; e++) {
        let quad = tc + TC * e - first;
        if (quad < PQ) {
            for (var i = 0u; i < EVERY_RT; i++) {
                tile_data[quad * BR + row0 + i] = vec4f(s[i][4u * e], s[i][4u * e + 1u], s[i][4u * e + 2u], s[i][4u * e + 3u]);
            }
        }
    }
}

fn weigh_values(sums: ptr<private, Sums>, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var quad = 0u; quad < PQ; quad++) {
        for (var c = 0u; c < EVERY_OV; c++) {
            let at = V_BASE + 4u * quad * V_WIDTH + tc + TC * c;
            let v0 = tile_data[at];
            let v1 = tile_data[at + V_WIDTH];
            let v2 = tile_data[at + 2u * V_WIDTH];
            let v3 = tile_data[at + 3u * V_WIDTH];
            for (var i = 0u; i < EVERY_RT; i++) {
                let p = tile_data[quad * BR + row0 + i];
                (*sums)[i][c] = fma(vec4f(p.w), v3, fma(vec4f(p.z), v2, fma(vec4f(p.y), v1, fma(vec4f(p.x), v0, (*sums)[i][c]))));
            }
        }
    }
}

// The same, where a weight of exactly zero (a masked key: see state_weigh) keeps even a NaN out.
fn weigh_values_carefully(sums: ptr<private, Sums>, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var quad = 0u; quad < PQ; quad++) {
        for (var i = 0u; i < RT; i++) {
            let p = tile_data[quad * BR + row0 + i];
            let seen = bitcast<vec4u>(p) != vec4u();
            for (var c = 0u; c < OV; c++) {
                for (var e = 0u; e < 4u; e++) {
                    let v = tile_data[V_BASE + (4u * quad + e) * V_WIDTH + tc + TC * c];
                    (*sums)[i][c] = fma(vec4f(p[e]), select(vec4f(), v, seen[e]), (*sums)[i][c]);
                }
            }
        }
    }
}
