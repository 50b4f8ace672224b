// Softmax attention, engine `portable`: core WebGPU only.
//
//   out[i] = Σ_j p[i][j] · v[j] / Σ_j p[i][j],   p[i][j] = exp(score(scale · q[i]·k[j])) where j is visible to i, else 0
//   lse[i] = ln Σ_j p[i][j]
//
// One pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691): nothing of size queries × keys is stored.
//
// A workgroup owns BR query rows of one (batch, query head) and visits tiles of BC keys. Its WG = (BR/RT)·(BC/CT) threads
// form a grid: thread (tr, tc) owns rows tr·RT … and, of each key tile, the keys tc, tc + TC, tc + 2·TC, … (CT of them),
// and of the output the vec4 columns tc, tc + TC, … (OV of them). Everything a thread owns stays in registers.
//
// Workgroup memory, one array used in turn (vec4 elements; `plan` makes TILE the largest of the three):
//   scores   query chunk [BD4][BR], key chunk [BD4][BC]           BD4·(BR + BC)
//   weights  P [PQ][BR], V [4·PQ][OV·TC]                          PQ·(BR + 4·OV·TC)
//   rows     partial maxima or sums [TC][BR/4], results [BR/4]    (TC + 1)·BR/4
// In P a vec4 holds four keys of one row. A thread owns keys that lie TC apart, so quad number n means the keys
// n % TC + TC·(4·(n / TC) + e), e = 0 … 3; V's rows are staged in that order.

const TC: u32 = BC / CT;
const V_BASE: u32 = PQ * BR;
const V_WIDTH: u32 = OV * TC;

var<workgroup> tile_data: array<vec4f, TILE>;
// Set once this workgroup has met a value that is not finite in a tile with masked scores; stays set.
var<workgroup> leak: atomic<u32>;
var<private> o: array<array<vec4f, OV>, RT>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let visit = kv_visit(w);
    let count = kv_count(visit);
    if (thread == 0u) { atomicStore(&leak, 0u); }
    state_reset();
    // A hidden tile is passed over outside of the body: a CPU's driver walks through all of what a `continue` skips.
    for (var i = next_tile(w, 0u, count); i < count; i = next_tile(w, i + 1u, count)) {
        var tile = kv_tile(visit, i);
        tile.kind = veiled_kind(w, i, tile.kind);
        score_tile(w, visit, tile, thread);
        state_weigh(is_masked(tile), thread);
        accumulate(w, visit, tile, thread);
    }
    write_rows(w, visit, thread);
}

fn is_finite4(x: vec4f) -> bool {
    return all((bitcast<vec4u>(x) & vec4u(0x7f800000u)) != vec4u(0x7f800000u));
}

// o += p · v for one tile of keys, PQ quads of keys at a time.
fn accumulate(w: Work, visit: Visit, tile: Tile, thread: u32) {
    let masked = is_masked(tile);
    let busy = owns_rows(visit, (thread / TC) * RT);
    for (var first = 0u; first < BC / 4u; first += PQ) {
        if (stage_values(w, visit, tile, first, thread) && masked) { atomicStore(&leak, 1u); }
        stage_weights(first, thread);
        workgroupBarrier();
        // Finite values come out the same either way.
        var careful = false;
        if (masked) { careful = workgroupUniformLoad(&leak) != 0u; }
        if (careful) { weigh_values_carefully(thread); } else if (busy) { weigh_values(thread); }
        workgroupBarrier();
    }
}

// Brings 4·PQ value rows into workgroup memory, zero past the end. True if this thread met a value that is not finite.
fn stage_values(w: Work, visit: Visit, tile: Tile, first: u32, thread: u32) -> bool {
    var broken = false;
    for (var n = thread; n < 4u * PQ * V_WIDTH; n += WG) {
        let d = n % V_WIDTH;
        let key = n / V_WIDTH;
        let quad = first + key / 4u;
        let token = col_token(visit, tile, quad % TC + TC * (4u * (quad / TC) + key % 4u));
        let inside = min(d, DV4 - 1u);
        let x = load_v4(v_row(w, token) + 4u * inside, HEAD_DIM_V - 4u * inside);
        let value = select(vec4f(), x, token != NONE && d < DV4);
        broken = broken || !is_finite4(value);
        tile_data[V_BASE + n] = value;
    }
    return broken;
}

fn stage_weights(first: u32, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var e = 0u; e < CT / 4u; e++) {
        let quad = tc + TC * e - first;
        if (quad < PQ) {
            for (var i = 0u; i < RT; i++) {
                tile_data[quad * BR + row0 + i] = vec4f(s[i][4u * e], s[i][4u * e + 1u], s[i][4u * e + 2u], s[i][4u * e + 3u]);
            }
        }
    }
}

fn weigh_values(thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var quad = 0u; quad < PQ; quad++) {
        for (var c = 0u; c < OV; c++) {
            let at = V_BASE + 4u * quad * V_WIDTH + tc + TC * c;
            let v0 = tile_data[at];
            let v1 = tile_data[at + V_WIDTH];
            let v2 = tile_data[at + 2u * V_WIDTH];
            let v3 = tile_data[at + 3u * V_WIDTH];
            for (var i = 0u; i < RT; i++) {
                let p = tile_data[quad * BR + row0 + i];
                o[i][c] = fma(vec4f(p.w), v3, fma(vec4f(p.z), v2, fma(vec4f(p.y), v1, fma(vec4f(p.x), v0, o[i][c]))));
            }
        }
    }
}

// The same, where a weight of exactly zero (a masked key: see state_weigh) keeps even a NaN out.
fn weigh_values_carefully(thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var quad = 0u; quad < PQ; quad++) {
        for (var i = 0u; i < RT; i++) {
            let p = tile_data[quad * BR + row0 + i];
            let seen = bitcast<vec4u>(p) != vec4u();
            for (var c = 0u; c < OV; c++) {
                for (var e = 0u; e < 4u; e++) {
                    let v = tile_data[V_BASE + (4u * quad + e) * V_WIDTH + tc + TC * c];
                    o[i][c] = fma(vec4f(p[e]), select(vec4f(), v, seen[e]), o[i][c]);
                }
            }
        }
    }
}
