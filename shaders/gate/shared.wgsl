// What the shaders of SeerAttention's gate share: the uniform struct is that of src/gate/task.rs.
//
// A row of the gate is a block of queries, or a query; a column is a block of keys. The table `sequences` has (first query,
// queries, first key, keys) of each batch entry.

const NONE: u32 = 0xffffffffu;
const MINUS_INFINITY_BITS: u32 = 0xff800000u;
const NAN_BITS: u32 = 0x7fc00000u;

struct Params {
    at: Addresses,
    // First batch entry, head and tile of this slice.
    first: vec3u,
    // Rows of the tensor that is written, and blocks of keys.
    rows: u32,
    cols: u32,
    // Queries and keys of a block.
    query_block: u32,
    key_block: u32,
    // CAUSAL_…: which diagonal is causal.
    causal: u32,
    // Whether a row sees only blocks of keys before its own.
    past: u32,
    // Whether a block of keys that is not full counts as 0.
    complete: u32,
    // What is forced: FORCE_…
    forced: u32,
    // Of the rows: 0 for those of queries, 1 for those of keys.
    side: u32,
    // Heads of x that one head of what is written joins.
    joined: u32,
    // What is pooled: POOL_… of each part, and how many parts.
    pools: u32,
    // Rows of x where it is a ring: token t lies in row t % ring. Else 0.
    ring: u32,
    pool: vec4u,
    // Of the selector, of the logits, of the norm, of the loss.
    bound: f32,
    scale: f32,
    epsilon: f32,
    weight: f32,
    // Heads that share a head of keys, or heads and rows of what is summed over; the first row that counts.
    heads: u32,
    inner: u32,
    from_row: u32,
    end: u32,
}

const CAUSAL_BOTTOM_RIGHT: u32 = 1u;
const CAUSAL_TOP_LEFT: u32 = 2u;

fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

// What stands at a query's number to give its position among the keys.
fn offset_of(sequence: vec4u) -> i32 {
    return select(0, i32(sequence.w) - i32(sequence.y), params.causal == CAUSAL_BOTTOM_RIGHT);
}

// Tokens that a block's rows are made of: of queries or of keys.
fn block_size() -> u32 {
    return select(params.query_block, params.key_block, params.side == 1u);
}

// Over a ring of keys work begins with a block that is not the first: sequences[batch].x says with which.
fn first_block(batch: u32) -> u32 {
    return select(0u, sequences[batch].x, params.ring > 0u);
}

// (first token, tokens) of a batch entry on this side.
fn tokens_of(batch: u32) -> vec2u {
    let sequence = sequences[batch];
    return select(sequence.xy, sequence.zw, params.side == 1u);
}
