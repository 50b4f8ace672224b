// Products of rows and columns in engine `processor`, for adapters whose shaders run on a CPU. There a load costs as much as dozens
// of multiplications, whatever the address; workgroup memory is no nearer than a storage buffer.
//
// A workgroup is one subgroup of WG threads. A thread keeps RT rows, whole, in registers. Columns come CT at a time: PARTS = WG / CT
// threads load one between them, each every PARTS-th vec4, and hand it round by broadcasts, so that each load serves WG · RT rows.
// All loops over registers are written out. No workgroup memory, no barrier.

var<private> score_rows: array<array<vec4f, ROW_D4>, RT>;

fn begin_tiles(w: Work, visit: Visit, thread: u32) { load_score_rows(w, visit, thread); }

// Brings the rows of this thread into `score_rows`. (The loop over the head dimension stays one: a load takes a compiler longer than
// the choice of a register.)
fn load_score_rows(w: Work, visit: Visit, thread: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var d = 0u; d < EACH_ROW_D4; d++) { score_rows[i][d] = vec4f(); }
    }
    for (var at = 0u; at < D4; at++) {
        for (var i = 0u; i < EACH_RT; i++) {
            let token = row_token(visit, thread * RT + i);
            let x = select(vec4f(), row_part(SCORES, w, token, at), token != NONE);
            for (var d = 0u; d < EACH_D4; d++) { score_rows[i][d] = select(score_rows[i][d], x, d == at); }
        }
    }
}

fn multiply_scores(w: Work, visit: Visit, tile: Tile, thread: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) { s[i][j] = 0.0; }
    }
    let token = col_token(visit, tile, thread / PARTS);
    for (var n = 0u; n < EACH_DL; n++) {
        let own = n * PARTS + thread % PARTS;
        let mine = select(vec4f(), col_part(SCORES, w, token, min(own, D4 - 1u)), token != NONE && own < D4);
        for (var part = 0u; part < EACH_PARTS; part++) {
            for (var j = 0u; j < EACH_CT; j++) {
                let k = subgroupBroadcast(mine, j * PARTS + part);
                for (var i = 0u; i < EACH_RT; i++) {
                    let q = score_rows[i][n * PARTS + part];
                    s[i][j] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, s[i][j]))));
                }
            }
        }
    }
}
