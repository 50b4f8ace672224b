// Products of rows and columns in engine `processor` in subgroups of fewer than 8 threads, or without any. SwiftShader, which runs
// shaders in browsers without a GPU, loads once for all threads where the address is a constant in the text, and once for each thread
// otherwise.
//
// Columns come CT at a time: the threads stage them in workgroup memory, and read them at such addresses. Workgroup memory: 48·CT·WIDTH
// bytes, and a flag.

var<workgroup> score_columns: array<vec4f, CT * WIDTH>;
var<workgroup> value_columns: array<vec4f, CT * WIDTH>;
// Values that are not finite, set aside where scores are masked (sums.wgsl), and whether there was one.
var<workgroup> broken_columns: array<vec4f, CT * WIDTH>;
var<workgroup> leak: atomic<u32>;

fn column_of(j: u32, thread: u32) -> u32 { return j; }

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

// Whether this thread has set a value aside.
fn stage_columns(w: Work, visit: Visit, tile: Tile, thread: u32) -> bool {
    let masked = is_masked(tile);
    var found = false;
    for (var n = thread; n < CT * WIDTH; n += WG) {
        let token = col_token(visit, tile, n / WIDTH);
        score_columns[n] = column_part(SCORES, w, token, n % WIDTH);
        let value = column_part(VALUES, w, token, n % WIDTH);
        let aside = is_broken(value) & vec4<bool>(masked);
        value_columns[n] = select(value, vec4f(), aside);
        broken_columns[n] = select(vec4f(), value, aside);
        found = found | any(aside);
    }
    return found;
}
