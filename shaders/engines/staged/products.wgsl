// Products of rows and columns in engine `processor` where there are no subgroups. SwiftShader, which runs shaders in browsers without
// a GPU, loads what lies at an address that is a number in the text once for all threads, and anything else for each of them.
//
// Columns come CT at a time: the threads stage them in workgroup memory, and read them at such addresses. Workgroup memory: 48·CT·WIDTH
// bytes, and a flag.

var<private> score_rows: Rows;
var<workgroup> score_columns: array<vec4f, CT * WIDTH>;
var<workgroup> value_columns: array<vec4f, CT * WIDTH>;
// What is not finite of values comes apart where scores are masked: sums.wgsl. Whether there was any.
var<workgroup> broken_columns: array<vec4f, CT * WIDTH>;
var<workgroup> leak: atomic<u32>;

fn column_of(j: u32, thread: u32) -> u32 { return j; }

fn begin_rows(w: Work, visit: Visit, thread: u32) { load_rows(SCORES, &score_rows, w, visit, thread); }

fn after_tile(i: u32) -> u32 { return i + 1u; }

fn is_first_turn() -> bool { return true; }

fn multiply_scores(w: Work, visit: Visit, tile: Tile, thread: u32) {
    workgroupBarrier();
    if (stage_columns(w, visit, tile, thread)) { atomicStore(&leak, 1u); }
    workgroupBarrier();
    for (var i = 0u; i < EACH_RT; i++) {
        for (var j = 0u; j < EACH_CT; j++) { s[i][j] = 0.0; }
    }
    for (var d = 0u; d < EACH_WIDTH; d++) {
        for (var j = 0u; j < EACH_CT; j++) {
            let k = score_columns[j * WIDTH + d];
            for (var i = 0u; i < EACH_RT; i++) {
                let q = score_rows[i][d];
                s[i][j] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, s[i][j]))));
            }
        }
    }
}

// Whether a value of this thread comes apart.
fn stage_columns(w: Work, visit: Visit, tile: Tile, thread: u32) -> bool {
    let masked = is_masked(tile);
    var found = false;
    for (var n = thread; n < CT * WIDTH; n += WG) {
        let token = col_token(visit, tile, n / WIDTH);
        score_columns[n] = column_part(SCORES, w, token, n % WIDTH);
        let value = column_part(VALUES, w, token, n % WIDTH);
        let apart = is_broken(value) & vec4<bool>(masked);
        value_columns[n] = select(value, vec4f(), apart);
        broken_columns[n] = select(vec4f(), value, apart);
        found = found | any(apart);
    }
    return found;
}

fn is_broken(x: vec4f) -> vec4<bool> {
    return (bitcast<vec4u>(x) & vec4u(0x7f800000u)) == vec4u(0x7f800000u);
}

fn column_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    let x = col_part(what, w, token, min(d, width_of(what) - 1u));
    return select(vec4f(), x, token != NONE && d < width_of(what));
}
