// What the conversions of block masks share: the uniform struct is that of src/block_mask/conversions.rs.
//
// A bitmap has a row of words for each (batch entry, head, block of rows): bit j % 32 of word j / 32 is block j of columns.

const NONE: u32 = 0xffffffffu;

struct Params {
    at: Addresses,
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
}

const MODE_ONE: u32 = 0u;
const MODE_WITH: u32 = 1u;
const MODE_WITHOUT: u32 = 2u;

// Batch entry, head and row of row number n of them all.
fn grid_row(n: u32, rows: u32) -> vec3u {
    return vec3u(n / rows / params.heads, n / rows % params.heads, n % rows);
}
