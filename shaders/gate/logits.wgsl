// Scores of blocks:  to[i][j] = scale · query[i]·key[j] where row i sees block j, else −inf
//
// query [batch, heads, rows, GATE_DIM], key [batch, its heads, blocks, GATE_DIM], to [batch, heads, rows, blocks]. Where only full
// blocks count, one that is not gives 0: the block that a query's own token is filling. A workgroup makes a tile of TILE_ROWS × TILE_COLS, a thread
// 4 × 4 of it. Both pass through workgroup memory, DEPTH vec4 of their width at a time: 16·DEPTH·(TILE_ROWS + TILE_COLS) bytes.

const ROW_LANES: u32 = TILE_ROWS / 4u;
const COL_LANES: u32 = TILE_COLS / 4u;

var<workgroup> queries: array<vec4f, DEPTH * TILE_ROWS>;
var<workgroup> keys: array<vec4f, DEPTH * TILE_COLS>;

// Blocks of keys that have a vector.
fn counted_cols(sequence: vec4u) -> u32 {
    return select(params.cols, min(params.cols, sequence.w / params.key_block), params.complete == 1u);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let tile = params.first.z + workgroup.x;
    let across = (params.cols + TILE_COLS - 1u) / TILE_COLS;
    let row0 = tile / across * TILE_ROWS;
    let col0 = tile % across * TILE_COLS;
    let sequence = sequences[batch];
    let r0 = thread / COL_LANES;
    let c0 = thread % COL_LANES;
    var s = array<vec4f, 4>();
    // Later rows see more.
    if (col0 < seen_blocks(sequence, min(row0 + TILE_ROWS, (sequence.y + params.query_block - 1u) / params.query_block) - 1u)) {
        for (var d0 = 0u; d0 < WIDTH4; d0 += DEPTH) {
            for (var at = thread; at < DEPTH * TILE_ROWS; at += WG) {
                let d = d0 + at / TILE_ROWS;
                let row = row0 + at % TILE_ROWS;
                var q = vec4f();
                if (d < WIDTH4 && row < params.rows) {
                    q = load_query4(at_query(batch, head, row) + 4u * d, GATE_DIM - 4u * d);
                }
                queries[at] = q;
            }
            for (var at = thread; at < DEPTH * TILE_COLS; at += WG) {
                let d = d0 + at / TILE_COLS;
                let col = col0 + at % TILE_COLS;
                var k = vec4f();
                if (d < WIDTH4 && col < counted_cols(sequence)) {
                    k = load_key4(at_key(batch, head / params.heads, col) + 4u * d, GATE_DIM - 4u * d);
                }
                keys[at] = k;
            }
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d++) {
                for (var i = 0u; i < 4u; i++) {
                    let q = queries[d * TILE_ROWS + r0 + ROW_LANES * i];
                    for (var j = 0u; j < 4u; j++) {
                        let k = keys[d * TILE_COLS + c0 + COL_LANES * j];
                        s[i][j] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, s[i][j]))));
                    }
                }
            }
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + r0 + ROW_LANES * i;
        let seen = seen_blocks(sequence, row);
        let counted = counted_blocks(batch, row);
        for (var j = 0u; j < 4u; j++) {
            let col = col0 + c0 + COL_LANES * j;
            if (row < params.rows && col < params.cols) {
                let bits = select(0u, bitcast<u32>(params.scale * s[i][j]), col < counted);
                store_to(at_to(batch, head, row) + col, select(MINUS_INFINITY_BITS, bits, col < seen));
            }
        }
    }
}
