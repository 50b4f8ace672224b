// Gradient of the additive bias, engine `portable`:
//
//   dbias[b][h][i][j] = Σ d score, over the batch entries, heads, queries and keys that the bias is repeated along
//
// A workgroup owns BC keys of one tile of queries (all keys or all tiles, where the bias is repeated along them), one head and one
// batch entry of the bias, and adds up what is repeated, one after another: no atomics, the same bits every time. Division
// among threads and workgroup memory are those of forward.wgsl and engines/portable. dbias is f32.

var<private> row_stats: array<vec2f, RT>;
var<private> total: array<array<f32, CT>, RT>;

fn pair_stats(i: u32, j: u32) -> vec2f { return row_stats[i]; }

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let own_batch = params.first.x + workgroup.z;
    let own_head = params.first.y + workgroup.y;
    let item = params.first.z + workgroup.x;
    let key_tile = item % params.key_tiles;
    let own_tile = item / params.key_tiles;
    for (var i = 0u; i < RT; i++) {
        for (var j = 0u; j < CT; j++) { total[i][j] = 0.0; }
    }
    for (var b = 0u; b < params.together.x; b++) {
        let batch = own_batch * params.together.x + b;
        let sequence = sequences[batch];
        for (var h = 0u; h < params.together.y; h++) {
            let head = own_head * params.together.y + h;
            for (var n = 0u; n < params.together.z; n++) {
                let tile = own_tile * params.together.z + n;
                let w = Work(batch, head, head / params.group, tile, 0u, sequence.x, sequence.y, sequence.z, sequence.w, 0u);
                for (var m = 0u; m < params.together.w; m++) { add_tile(w, key_tile * params.together.w + m, thread); }
            }
        }
    }
    let tc = thread % TC;
    let tr = thread / TC;
    let by_query = params.bias_rows > 1u;
    if (BIAS_STEP == 0u) { add_cols(thread); }
    if (!by_query) { add_rows(thread); }
    for (var i = 0u; i < RT; i++) {
        let query = own_tile * BR + tr * RT + i;
        let writes = select(tr == 0u && i == 0u, query < params.bias_rows, by_query);
        for (var j = 0u; j < CT; j++) {
            let key = key_tile * BC + tc + TC * j;
            if (writes && key < params.bias_cols) {
                store_dbias(at_dbias(own_batch, own_head, select(0u, query, by_query)) + key, bitcast<u32>(total[i][j]));
            }
        }
    }
}

fn add_tile(w: Work, key_tile: u32, thread: u32) {
    let visit = visit_of(w);
    let count = tile_count(visit);
    let i = key_tile - visit.first_tile;
    if (key_tile >= visit.first_tile && i < count && next_tile(w, visit, i, count) == i) {
        let row0 = (thread / TC) * RT;
        for (var r = 0u; r < RT; r++) {
            row_stats[r] = stats_of(w, row_token(visit, row0 + r));
        }
        let tile = nth_tile(w, visit, i);
        gradient_tile(w, visit, tile, thread);
        for (var r = 0u; r < RT; r++) {
            for (var c = 0u; c < CT; c++) { total[r][c] += t[r][c]; }
        }
    }
}

// The sum over all columns of the tile, in the first column of the first threads of each row.
fn add_cols(thread: u32) {
    let tc = thread % TC;
    for (var e = 0u; e < RT / 4u; e++) {
        var x = vec4f();
        for (var j = 0u; j < CT; j++) {
            x += vec4f(total[4u * e][j], total[4u * e + 1u][j], total[4u * e + 2u][j], total[4u * e + 3u][j]);
        }
        tile_data[thread * (RT / 4u) + e] = x;
    }
    workgroupBarrier();
    if (tc == 0u) {
        for (var e = 0u; e < RT / 4u; e++) {
            var x = vec4f();
            for (var c = 0u; c < TC; c++) { x += tile_data[(thread + c) * (RT / 4u) + e]; }
            for (var i = 0u; i < 4u; i++) { total[4u * e + i][0] = x[i]; }
        }
    }
    workgroupBarrier();
}

// The sum over all rows of the tile, in the first row of the first threads.
fn add_rows(thread: u32) {
    let tc = thread % TC;
    let tr = thread / TC;
    for (var e = 0u; e < CT / 4u; e++) {
        var x = vec4f();
        for (var i = 0u; i < RT; i++) {
            x += vec4f(total[i][4u * e], total[i][4u * e + 1u], total[i][4u * e + 2u], total[i][4u * e + 3u]);
        }
        tile_data[(tr * TC + tc) * (CT / 4u) + e] = x;
    }
    workgroupBarrier();
    if (tr == 0u) {
        for (var e = 0u; e < CT / 4u; e++) {
            var x = vec4f();
            for (var r = 0u; r < BR / RT; r++) { x += tile_data[(r * TC + tc) * (CT / 4u) + e]; }
            for (var c = 0u; c < 4u; c++) { total[0][4u * e + c] = x[c]; }
        }
    }
}
