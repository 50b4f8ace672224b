// Sequences whose offsets or lengths lie on the GPU: makes the table that workgroups/packed.wgsl and padded.wgsl read.
//
// seqlens_q, seqlens_k: where sequences are PACKED params.sequences + 1 offsets each, else a length for each batch entry, or nothing:
// full length. What is not in order, not within the tensors, or further apart than stated is clamped, and the first such is reported
// in `problem`: (NONE − number, value, the one before), where number is (index · 2 + side) · 4 + rule, side 0 for queries; 0 for none.
//
// One workgroup; a thread takes every WG-th sequence. Workgroup memory: 4·WG + 4 bytes.

const NONE: u32 = 0xffffffffu;
const RULE_START: u32 = 0u;
const RULE_ORDER: u32 = 1u;
const RULE_END: u32 = 2u;
const RULE_LENGTH: u32 = 3u;

struct Params {
    at: Addresses,
    sequences: u32,
    // Rows of the tensors (for queries, before QUERY_ROWS), and the longest sequence as stated.
    queries: u32,
    keys: u32,
    max_queries: u32,
    max_keys: u32,
    // Rows of a tile, and tiles that there is room for.
    rows: u32,
    items: u32,
    // 1 for tiles of keys instead of queries.
    by_keys: u32,
}

var<workgroup> first_problem: atomic<u32>;

fn given(side: u32, i: u32) -> u32 {
    if (side == 0u) { return load_seqlens_q(at_seqlens_q(0u, 0u, 0u) + i); }
    return load_seqlens_k(at_seqlens_k(0u, 0u, 0u) + i);
}

// (first row, rows) of sequence i.
fn rows_of(side: u32, i: u32) -> vec2u {
    let total = select(params.keys, params.queries, side == 0u);
    if (PACKED == 0u) {
        let length = select(total, given(side, i), select(HAS_SEQLENS_K, HAS_SEQLENS_Q, side == 0u));
        if (length > total) { complain(i, side, RULE_END); }
        return vec2u(0u, min(length, total));
    }
    let longest = select(params.max_keys, params.max_queries, side == 0u);
    let start = given(side, i);
    let end = given(side, i + 1u);
    if (i == 0u && start != 0u) { complain(0u, side, RULE_START); }
    if (end < start) { complain(i + 1u, side, RULE_ORDER); }
    else if (end > total) { complain(i + 1u, side, RULE_END); }
    else if (end - start > longest) { complain(i + 1u, side, RULE_LENGTH); }
    let first = min(start, total);
    return vec2u(first, min(max(min(end, total), first) - first, longest));
}

fn complain(index: u32, side: u32, rule: u32) {
    atomicMin(&first_problem, (index * 2u + side) * 4u + rule);
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) thread: u32) {
    if (thread == 0u) { atomicStore(&first_problem, NONE); }
    workgroupBarrier();
    var next = 0u;
    for (var base = 0u; base < params.sequences; base += WG) {
        let i = base + thread;
        var tiles = 0u;
        if (i < params.sequences) {
            let q = rows_of(0u, i);
            let k = rows_of(1u, i);
            sequences[i] = vec4u(q.x, q.y * QUERY_ROWS, k);
            tiles = (select(q.y, k.y, params.by_keys == 1u) + params.rows - 1u) / params.rows;
        }
        let first = next + sum_before(tiles, thread);
        for (var j = 0u; j < tiles && first + j < params.items; j++) {
            sequences[params.sequences + first + j] = vec4u(i, j, 0u, 0u);
        }
        next += sum_of_all();
    }
    for (var item = next + thread; item < params.items; item += WG) {
        sequences[params.sequences + item] = vec4u(NONE, 0u, 0u, 0u);
    }
    workgroupBarrier();
    if (thread == 0u) {
        let number = atomicLoad(&first_problem);
        problem[0] = NONE - number;
        if (number != NONE) {
            let index = number / 8u;
            let side = (number / 4u) % 2u;
            problem[1] = given(side, index);
            problem[2] = given(side, max(index, 1u) - 1u);
        }
    }
}
