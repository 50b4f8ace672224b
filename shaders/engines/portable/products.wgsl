// Products of rows and columns in engine `portable`: both pass through workgroup memory.
//
// Workgroup memory, one array used in turn (vec4 elements; src/softmax/portable.rs makes TILE the largest of the three):
//   scores   row chunk [BD4][BR], column chunk [BD4][BC]          BD4·(BR + BC)
//   weights  P [PQ][BR], V [4·PQ][OV·TC]                          PQ·(BR + 4·OV·TC)
//   rows     partial maxima or sums [TC][BR/4], results [BR/4]    (TC + 1)·BR/4
//
// In chunks of BD4 vec4 along the head dimension, so that any head dim fits: as [d][row] of vec4, where neighbouring threads read
// neighbouring columns and all threads of a row group read the same row. The memory is free to write before and after.

const K_BASE: u32 = BD4 * BR;

var<workgroup> tile_data: array<vec4f, TILE>;

// The column of a tile that a thread's score number j is of.
fn column_of(j: u32, thread: u32) -> u32 { return thread % TC + TC * j; }

// Rows and columns come chunk by chunk, and each tile in one turn.
fn begin_rows(w: Work, visit: Visit, thread: u32) {}
fn begin_value_rows(w: Work, visit: Visit, thread: u32) {}
fn after_tile(i: u32) -> u32 { return i + 1u; }
fn is_first_turn() -> bool { return true; }

fn multiply_scores(w: Work, visit: Visit, tile: Tile, thread: u32) {
    multiply_tiles(SCORES, w, visit, tile, thread);
}

fn multiply_weight_gradients(w: Work, visit: Visit, tile: Tile, thread: u32) {
    multiply_tiles(VALUES, w, visit, tile, thread);
}

// s = rows · colsᵀ
fn multiply_tiles(what: u32, w: Work, visit: Visit, tile: Tile, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var i = 0u; i < RT; i++) {
        for (var j = 0u; j < CT; j++) { s[i][j] = 0.0; }
    }
    let busy = owns_rows(visit, row0);
    let depth = width_of(what);
    for (var d0 = 0u; d0 < depth; d0 += BD4) {
        stage_rows(what, w, visit, d0, depth, thread);
        stage_cols(what, w, visit, tile, d0, depth, thread);
        workgroupBarrier();
        if (busy) { add_products(tc, row0); }
        workgroupBarrier();
    }
}

// s += rows · colsᵀ over one chunk of the summed dimension. (Loops to EVERY some constant may be written out: src/program/shader/unroll.rs.)
fn add_products(tc: u32, row0: u32) {
    for (var d = 0u; d < BD4; d++) {
        var k: array<vec4f, CT>;
        for (var j = 0u; j < EVERY_CT; j++) { k[j] = tile_data[K_BASE + d * BC + tc + TC * j]; }
        for (var i = 0u; i < EVERY_RT; i++) {
            let q = tile_data[d * BR + row0 + i];
            for (var j = 0u; j < EVERY_CT; j++) {
                s[i][j] = fma(q.w, k[j].w, fma(q.z, k[j].z, fma(q.y, k[j].y, fma(q.x, k[j].x, s[i][j]))));
            }
        }
    }
}

// Whether any of this thread's rows is a query: few queries, and the ends of packed sequences, leave many without.
fn owns_rows(visit: Visit, row0: u32) -> bool {
    var owns = false;
    for (var i = 0u; i < RT; i++) { owns = owns | (row_token(visit, row0 + i) != NONE); }
    return owns;
}

// A thread stages one place of the head dimension for every STAGE_ROWS-th row: eight rows side by side, then along the head
// dimension, so that a load touches few cache lines and a store no bank twice. Threads beyond whole groups of rows rest.
const STAGE_ROWS: u32 = WG / (8u * BD4) * 8u;

fn stage_row(thread: u32) -> u32 {
    return thread % 8u + 8u * (thread / (8u * BD4));
}

fn stage_rows(what: u32, w: Work, visit: Visit, d0: u32, depth: u32, thread: u32) {
    let d = (thread / 8u) % BD4;
    let inside = min(d0 + d, depth - 1u);
    for (var r = stage_row(thread); r < BR && thread < STAGE_ROWS * BD4; r += STAGE_ROWS) {
        let token = row_token(visit, r);
        tile_data[d * BR + r] = select(vec4f(), row_part(what, w, token, inside), token != NONE && d0 + d < depth);
    }
}

fn stage_cols(what: u32, w: Work, visit: Visit, tile: Tile, d0: u32, depth: u32, thread: u32) {
    let d = (thread / 8u) % BD4;
    let inside = min(d0 + d, depth - 1u);
    for (var c = stage_row(thread); c < BC && thread < STAGE_ROWS * BD4; c += STAGE_ROWS) {
        let token = col_token(visit, tile, c);
        tile_data[K_BASE + d * BC + c] = select(vec4f(), col_part(what, w, token, inside), token != NONE && d0 + d < depth);
    }
}
