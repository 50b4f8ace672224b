// With a normaliser, values have 1 as one more column, so that a state has the running sum z of keys as one more, and a walk's output q · z:
// rows of WIDTH numbers, that one behind them, and 0 up to JOINT, a multiple of 4. A head has rows of tokens, or, where STATES, HEAD_DIM of
// a state.

// A row of a head: where it lies, and whether it is there.
struct Row { batch: u32, head: u32, row: u32, is_there: bool }

fn row_at(workgroup: vec3u, n: u32) -> Row {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, 0u);
    if (STATES == 1u) { return Row(w.batch, w.head, n, n < HEAD_DIM); }
    return Row(w.batch, w.head, w.first + n, n < w.count);
}
