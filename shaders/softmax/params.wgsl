// What the host tells a softmax kernel: written by src/softmax/uniforms.rs, the same for every workgroup of a slice.

// No token, no bound.
const NONE: u32 = 0xffffffffu;
const MINUS_INFINITY_BITS: u32 = 0xff800000u;

struct Params {
    at: Addresses,
    // First batch entry, head and tile of queries of this slice.
    first: vec3u,
    softcap: f32,
    // Rows of the tensors; a sequence may be shorter.
    queries: u32,
    keys: u32,
    // Query heads per key and value head.
    group: u32,
    q_factor: f32,
    // Last tile of this slice, and tiles of a batch entry.
    last_tile: u32,
    tiles: u32,
    // Packed sequences.
    sequences: u32,
    // Words of the tile map from one tile of queries to the next, and from one head to the next.
    map_tile: u32,
    map_head: u32,
    // Rows of the tensor that is written: those behind a sequence's end are written too.
    rows: u32,
    // For gradients: query heads that a workgroup adds up, and the factor of the sums, scale where keys are summed up (dq); queries
    // are summed up with q_factor on them already (dk).
    heads_together: u32,
    sum_factor: f32,
    // Gradient of the bias: batch entries, heads, tiles of queries and tiles of keys that are added up; its tiles of keys, rows and
    // columns.
    together: vec4u,
    key_tiles: u32,
    bias_rows: u32,
    bias_cols: u32,
    // Statistics of rows for gradients from one batch entry to the next.
    stats_batch: u32,
}

// Log-sum-exp of a row that has seen nothing, in log2 units, where weights are computed again: exp2(s − UNSEEN) is 0.
const UNSEEN: f32 = 3e38;

struct Work {
    batch: u32,
    head: u32,
    kv_head: u32,
    // Tile of the sequence's queries, and its number among those of all sequences.
    tile: u32,
    item: u32,
    first_query: u32,
    queries: u32,
    first_key: u32,
    keys: u32,
    // Which of SPLITS parts of what the tile visits.
    split: u32,
}

// Where the statistics of a row lie.
fn stats_place(batch: u32, head: u32, row: u32) -> u32 {
    return batch * params.stats_batch + head * params.queries + row;
}
