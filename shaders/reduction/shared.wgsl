// What the steps behind a score reduction share: written by src/score_reduction/steps.rs.

const NONE: u32 = 0xffffffffu;

struct Params {
    at: Addresses,
    // First batch entry, head and row of this slice.
    first: vec3u,
    // Columns that are read, and those that are written.
    cols: u32,
    to_cols: u32,
    // Whether values add up; else the largest counts.
    adds: u32,
    pad: vec2u,
}
