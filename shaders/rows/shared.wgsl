// Rows by index: written by src/rows.rs. x [batch, heads, rows, WIDTH], y [batch, heads, count, WIDTH], index [batch or 1, heads or 1, 1, count],
// all by strides. An index of NONE, or one that is not below `rows`, names no row.

const NONE: u32 = 0xffffffffu;

struct Params {
    at: Addresses,
    // First batch entry, head and block of this slice.
    first: vec3u,
    // Rows of x, and of y.
    rows: u32,
    count: u32,
}

// A head's row of the index, or of what is made of it.
fn own_head(head: u32) -> u32 { return head / INDEX_GROUP; }
