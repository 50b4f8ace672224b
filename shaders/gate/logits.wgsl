// Scores of blocks:  to[i][j] = scale · query[i]·key[j] where row i sees block j, else −inf
//
// query [batch, heads, rows, GATE_DIM], key [batch, its heads, blocks, GATE_DIM], to [batch, heads, rows, blocks]. Where only full
// blocks count, one that is not gives 0: the block that a query's own token is filling. A workgroup makes a tile of SIDE × SIDE, a thread a part of 4 × 4 of it.
// Workgroup memory: 32·DEPTH·SIDE bytes.

const SIDE: u32 = 32u;
const DEPTH: u32 = 8u;
const LANES: u32 = SIDE / 4u;

var<workgroup> queries: array<vec4f, DEPTH * SIDE>;
var<workgroup> keys: array<vec4f, DEPTH * SIDE>;

// Blocks of keys that have a vector.
fn counted_cols(sequence: vec4u) -> u32 {
    return select(params.cols, min(params.cols, sequence.w / params.key_block), params.complete == 1u);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let tile = params.first.z + workgroup.x;
    let across = (params.cols + SIDE - 1u) / SIDE;
    let row0 = tile / across * SIDE;
    let col0 = tile % across * SIDE;
    let sequence = sequences[batch];
    let r0 = thread / LANES;
    let c0 = thread % LANES;
    var s: array<vec4f, 4>;
    // Later rows see more.
    if (col0 < seen_blocks(sequence, min(row0 + SIDE, (sequence.y + params.query_block - 1u) / params.query_block) - 1u)) {
        for (var d0 = 0u; d0 < WIDTH4; d0 += DEPTH) {
            for (var at = thread; at < DEPTH * SIDE; at += WG) {
                let d = d0 + at / SIDE;
                let n = at % SIDE;
                var q: vec4f;
                var k: vec4f;
                if (d < WIDTH4 && row0 + n < params.rows) {
                    q = load_query4(row_of(params.query, batch, head, row0 + n) + 4u * d, GATE_DIM - 4u * d);
                }
                if (d < WIDTH4 && col0 + n < counted_cols(sequence)) {
                    k = load_key4(row_of(params.key, batch, head / params.heads, col0 + n) + 4u * d, GATE_DIM - 4u * d);
                }
                queries[at] = q;
                keys[at] = k;
            }
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d++) {
                for (var i = 0u; i < 4u; i++) {
                    let q = queries[d * SIDE + r0 + LANES * i];
                    for (var j = 0u; j < 4u; j++) {
                        let k = keys[d * SIDE + c0 + LANES * j];
                        s[i][j] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, s[i][j]))));
                    }
                }
            }
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + r0 + LANES * i;
        let seen = seen_blocks(sequence, row);
        let counted = counted_blocks(batch, row);
        for (var j = 0u; j < 4u; j++) {
            let col = col0 + c0 + LANES * j;
            if (row < params.rows && col < params.cols) {
                let bits = select(0u, bitcast<u32>(params.scale * s[i][j]), col < counted);
                store_to(row_of(params.to, batch, head, row) + col, select(MINUS_INFINITY_BITS, bits, col < seen));
            }
        }
    }
}
