// Score reduction, engine `portable`: what becomes of the probabilities
//
//   p[i][j] = exp(score(scale · q[i]·k[j]) − lse[i])   where j is visible to i
//
// over each cell: the heads, queries and keys that go together. The largest, their sum, how many are above a bound, or the largest
// with its key. Nothing of size queries × keys is stored.
//
// values, indices [batch, groups of heads, groups of queries, groups of keys] by strides. Groups of queries and keys are powers of
// two of them, or all. A workgroup owns the cells of one tile (or of the tiles that go together), visits the tiles of one head
// after the other, and keeps what each thread has found of its pairs, as (bits of the value, key). Division among threads and
// workgroup memory are those of forward.wgsl and engines/portable, and cells [PASS][BC] of vec2u.

// The table `reduction`: (queries of a group within a tile, keys of one, groups of queries, groups of keys), (heads, tiles of
// queries, tiles of keys that go together, parts along the keys), (bits of the bound, 0, 0, 0). The constant MODE says what
// is made of the pairs of a cell.
const MODE_MAX: u32 = 0u;
const MODE_SUM: u32 = 1u;
const MODE_COUNT: u32 = 2u;
const MODE_ARGMAX: u32 = 3u;

// Rows of the tile that pass through workgroup memory at a time.
const PASS: u32 = 8u;
const NOTHING: vec2u = vec2u(0u, NONE);
const NAN_BITS: u32 = 0x7fc00000u;

var<workgroup> cells: array<vec2u, PASS * BC>;
var<private> found: array<array<vec2u, CT>, RT>;

// A tile of queries and one of keys.
struct Pair { w: Work, visit: Visit, i: u32, seen: bool }

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    for (var i = 0u; i < RT; i++) {
        for (var j = 0u; j < CT; j++) { found[i][j] = NOTHING; }
    }
    let together = reduction[1].xyz;
    let end = together.x * together.y * together.z;
    for (var step = next_step(workgroup, 0u, end); step < end; step = next_step(workgroup, step + 1u, end)) {
        let pair = pair_of(workgroup, step);
        let tile = nth_tile(pair.w, pair.visit, pair.i);
        score_tile(pair.w, pair.visit, tile, thread);
        add_pairs(pair.w, pair.visit, tile, thread);
    }
    let item = params.first.z + workgroup.x;
    write_cells(params.first.x + workgroup.z, params.first.y + workgroup.y, item / reduction[1].w, item % reduction[1].w, thread);
}

fn pair_of(workgroup: vec3u, step: u32) -> Pair {
    let batch = params.first.x + workgroup.z;
    let item = params.first.z + workgroup.x;
    let together = reduction[1].xyz;
    let head = (params.first.y + workgroup.y) * together.x + step / (together.y * together.z);
    let query_tile = item / reduction[1].w * together.y + step / together.z % together.y;
    let key_tile = item % reduction[1].w * together.z + step % together.z;
    let sequence = sequences[batch];
    let w = Work(batch, head, head / params.group, query_tile, 0u, sequence.x, sequence.y, sequence.z, sequence.w, 0u);
    let visit = visit_of(w);
    let i = key_tile - visit.first_tile;
    return Pair(w, visit, i, key_tile >= visit.first_tile && i < tile_count(visit));
}

// The next step from `start` on in which something is seen: passed over outside of the body, see forward.wgsl.
fn next_step(workgroup: vec3u, start: u32, end: u32) -> u32 {
    for (var step = start; step < end; step++) {
        if (pair_of(workgroup, step).seen) { return step; }
    }
    return end;
}

fn worth(p: f32) -> u32 {
    if (MODE == MODE_COUNT) { return select(0u, bitcast<u32>(1.0), p > bitcast<f32>(reduction[2].x)); }
    return bitcast<u32>(p);
}

// Probabilities are not negative: their bits are in the order of their values, and NaN is the largest.
fn joined(a: vec2u, b: vec2u) -> vec2u {
    if (MODE == MODE_SUM || MODE == MODE_COUNT) {
        return vec2u(bitcast<u32>(bitcast<f32>(a.x) + bitcast<f32>(b.x)), 0u);
    }
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}

fn add_pairs(w: Work, visit: Visit, tile: Tile, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    let masked = is_masked(tile);
    for (var i = 0u; i < RT; i++) {
        let token = row_token(visit, row0 + i);
        let bits = load_lse(at_lse(w.batch, w.head * SPLITS + w.split, query_of(w, token)));
        let nan = (bits & 0x7fffffffu) > 0x7f800000u;
        let lse = bitcast<f32>(bits) * 1.4426950408889634;
        for (var j = 0u; j < CT; j++) {
            let hidden = masked && bitcast<u32>(s[i][j]) == MASKED_BITS;
            if (token != NONE && !hidden && bits != MINUS_INFINITY_BITS) {
                let p = select(worth(exp2(s[i][j] - lse)), NAN_BITS, nan);
                found[i][j] = joined(found[i][j], vec2u(p, col_token(visit, tile, tc + TC * j)));
            }
        }
    }
}

// Joins what a thread has of one cell, in registers: `high` of its rows, `wide` of its columns, powers of two up to 16 and 8. The
// steps are written out, so that every index is known to the compiler.
fn fold(high: u32, wide: u32) {
    for (var j = 0u; j < CT; j++) {
        if (high > 1u) { for (var i = 0u; i + 1u < RT; i += 2u) { found[i][j] = joined(found[i][j], found[i + 1u][j]); } }
        if (high > 2u) { for (var i = 0u; i + 2u < RT; i += 4u) { found[i][j] = joined(found[i][j], found[i + 2u][j]); } }
        if (high > 4u) { for (var i = 0u; i + 4u < RT; i += 8u) { found[i][j] = joined(found[i][j], found[i + 4u][j]); } }
        if (high > 8u) { for (var i = 0u; i + 8u < RT; i += 16u) { found[i][j] = joined(found[i][j], found[i + 8u][j]); } }
    }
    for (var i = 0u; i < RT; i++) {
        if (wide > 1u) { for (var j = 0u; j + 1u < CT; j += 2u) { found[i][j] = joined(found[i][j], found[i][j + 1u]); } }
        if (wide > 2u) { for (var j = 0u; j + 2u < CT; j += 4u) { found[i][j] = joined(found[i][j], found[i][j + 2u]); } }
        if (wide > 4u) { for (var j = 0u; j + 4u < CT; j += 8u) { found[i][j] = joined(found[i][j], found[i][j + 4u]); } }
    }
}

fn write_cells(batch: u32, head: u32, query_part: u32, key_part: u32, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    // Of a cell, what each thread has joined, and how many such pieces are left of it, down and across.
    let high = min(reduction[0].x, RT);
    let wide = max(reduction[0].y / TC, 1u);
    fold(high, wide);
    let height = reduction[0].x / high;
    let width = reduction[0].y / wide;
    let across = BC / reduction[0].y;
    let rows = min(PASS, BR / high);
    // What a thread has of a cell that takes several passes.
    var carried = NOTHING;
    for (var pass0 = 0u; pass0 < BR / high; pass0 += PASS) {
        for (var i = 0u; i < RT; i++) {
            let r = (row0 + i) / high - pass0;
            if (i % high == 0u && r < PASS) {
                for (var j = 0u; j < CT; j++) {
                    if (j % wide == 0u) { cells[r * BC + tc + TC * (j / wide)] = found[i][j]; }
                }
            }
        }
        workgroupBarrier();
        let down = min(height, rows);
        for (var cell = thread; cell < rows / down * across; cell += WG) {
            let first = cell / across * down;
            var all = NOTHING;
            if (pass0 % height != 0u) { all = carried; }
            for (var r = first; r < first + down; r++) {
                for (var c = cell % across * width; c < (cell % across + 1u) * width; c++) { all = joined(all, cells[r * BC + c]); }
            }
            carried = all;
            if ((pass0 + first + down) % height == 0u) {
                let row = query_part * (BR / reduction[0].x) + (pass0 + first) / height;
                let col = key_part * across + cell % across;
                if (row < reduction[0].z && col < reduction[0].w) { write_cell(batch, head, row, col, all); }
            }
        }
        workgroupBarrier();
    }
}
