// A block mask from the caller's functions, which are asked for every pair:  a block is chosen where they show any of it, and
// full where they hide nothing of it.
//
// to: the chosen blocks; other: the full ones. A workgroup makes a word of 32 blocks of keys for one block of queries; its
// threads share the pairs. Workgroup memory: 8 bytes.

struct Row { token: u32 }
struct Col { token: u32 }
struct Work { batch: u32, head: u32 }

var<workgroup> shown: atomic<u32>;
var<workgroup> hidden: atomic<u32>;

fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, r.token, c.token, params.queries, params.keys);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = params.first + workgroup.x;
    let words = (params.cols + 31u) / 32u;
    let word = n % words;
    let row = n / words;
    let head = row / params.rows;
    let w = Work(head / params.heads, head % params.heads);
    if (thread == 0u) {
        atomicStore(&shown, 0u);
        atomicStore(&hidden, 0u);
    }
    workgroupBarrier();
    let first_query = row % params.rows * params.query_block;
    let queries = min(params.query_block, params.queries - first_query);
    let first_key = 32u * word * params.key_block;
    let keys = min(32u * params.key_block, params.keys - first_key);
    // Neighbouring threads ask neighbouring keys.
    for (var key = thread; key < keys; key += WG) {
        let bit = 1u << (key / params.key_block);
        for (var query = 0u; query < queries; query++) {
            let seen = mask_allows(Row(first_query + query), Col(first_key + key), w);
            if (seen) { atomicOr(&shown, bit); } else { atomicOr(&hidden, bit); }
        }
    }
    workgroupBarrier();
    if (thread == 0u) {
        let bits = atomicLoad(&shown);
        let to = grid_row(row, params.rows);
        store_to(at_to(to.x, to.y, to.z) + word, bits);
        store_other(at_other(to.x, to.y, to.z) + word, bits & ~atomicLoad(&hidden));
    }
}
