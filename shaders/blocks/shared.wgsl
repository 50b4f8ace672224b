// What the conversions of block masks share: written by src/block_sparse/convert.rs.
//
// A bitmap has a row of words for each (batch entry, head, block of rows): bit j % 32 of word j / 32 is block j of columns.

const NONE: u32 = 0xffffffffu;

struct Params {
    // (offset, batch stride, head stride, row stride) of what is read, read besides, and written.
    one: vec4u,
    other: vec4u,
    to: vec4u,
    // The grid of what is written, or of what is listed.
    heads: u32,
    rows: u32,
    cols: u32,
    // First piece of work of this slice, and how many there are.
    first: u32,
    count: u32,
    // What becomes of the other: MODE_…
    mode: u32,
    // Indices that there are, or room for.
    capacity: u32,
    queries: u32,
    keys: u32,
    query_block: u32,
    key_block: u32,
    // Where indices and offsets begin.
    indices: u32,
    offsets: u32,
}

const MODE_ONE: u32 = 0u;
const MODE_WITH: u32 = 1u;
const MODE_WITHOUT: u32 = 2u;

// Where row number n of all batch entries and heads lies.
fn row_at(at: vec4u, n: u32, heads: u32, rows: u32) -> u32 {
    let head = n / rows;
    return at.x + head / heads * at.y + head % heads * at.z + n % rows * at.w;
}
