// Products of rows and columns in engine `processor`, for adapters whose shaders run on a CPU. There a load costs as much as dozens
// of multiplications, whatever the address; workgroup memory is no nearer than a storage buffer.
//
// A workgroup is one subgroup of WG threads. Columns come CT at a time: PARTS = WG / CT threads load one between them, each every
// PARTS-th vec4, and hand it round by broadcasts, so that each load serves WG · RT rows. No workgroup memory, no barrier.

alias Columns = array<vec4f, LOADS>;

var<private> value_rows: Rows;
var<private> score_columns: Columns;
var<private> value_columns: Columns;

// A value that is not finite must not reach rows that do not see its column, and zero times NaN is NaN. Where a tile with masked
// scores has one, its columns take turns after turn 0, in which all values are zero: each alone is added up, from place 0, where sums.wgsl
// looks after it. Else turn 0 is the only one. The sums have the same bits either way.
var<private> turn: u32;
var<private> in_turns: bool;

// The column at place j, the same for all threads.
fn column_of(j: u32, thread: u32) -> u32 { return (j + max(turn, 1u) - 1u) % CT; }

fn is_first_turn() -> bool { return turn == 0u; }

fn begin_value_rows(w: Work, visit: Visit, thread: u32) { load_rows(VALUES, &value_rows, w, visit, thread); }

// The number to go on from: the same tile's while its columns take turns.
fn after_tile(i: u32) -> u32 {
    turn = select(0u, (turn + 1u) % (CT + 1u), in_turns);
    return select(i, i + 1u, turn == 0u);
}

fn multiply_scores(w: Work, visit: Visit, tile: Tile, thread: u32) {
    multiply(SCORES, &score_rows, &score_columns, w, visit, tile, thread);
    // Finite where all squares are; a square that overflows only costs time.
    var squares = vec4f();
    for (var n = 0u; n < EACH_LOADS; n++) {
        squares = fma(score_columns[n], score_columns[n], fma(value_columns[n], value_columns[n], squares));
    }
    in_turns = is_masked(tile) && subgroupAny(!is_finite4(squares));
    let added = !in_turns | ((turn > 0u) & (thread / PARTS == 0u));
    for (var n = 0u; n < EACH_LOADS; n++) {
        score_columns[n] = select(vec4f(), score_columns[n], added);
        value_columns[n] = select(vec4f(), value_columns[n], added);
    }
}

fn multiply_weight_gradients(w: Work, visit: Visit, tile: Tile, thread: u32) {
    multiply(VALUES, &value_rows, &value_columns, w, visit, tile, thread);
}

// s = rows · columnsᵀ; the columns stay in registers for what else is done with them.
fn multiply(what: u32, rows: ptr<private, Rows>, columns: ptr<private, Columns>, w: Work, visit: Visit, tile: Tile, thread: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) { s[i][j] = 0.0; }
    }
    let token = col_token(visit, tile, column_of(thread / PARTS, thread));
    for (var n = 0u; n < EACH_LOADS; n++) {
        (*columns)[n] = column_part(what, w, token, n * PARTS + thread % PARTS);
        if (!GRADIENTS) { value_columns[n] = column_part(VALUES, w, token, n * PARTS + thread % PARTS); }
        for (var part = 0u; part < EACH_PARTS; part++) {
            for (var j = 0u; j < EACH_CT; j++) {
                let k = subgroupBroadcast((*columns)[n], j * PARTS + part);
                for (var i = 0u; i < EACH_RT; i++) {
                    let q = (*rows)[i][n * PARTS + part];
                    s[i][j] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, s[i][j]))));
                }
            }
        }
    }
}
