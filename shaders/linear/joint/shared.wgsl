// Rows of two parts: WIDTH numbers, 0 up to AT, a multiple of 4, MORE numbers, and 0 up to JOINT, another. A head has rows of tokens,
// or, where STATES, HEAD_DIM of a state. With a normaliser, values have 1 as their second part, so that a state has the running sum z of keys,
// and a walk's output q · z. A summary's values have 0, and its state begins with the identity there, or a column of ones.

const AT: u32 = (WIDTH + 3u) / 4u * 4u;

// A row of a head: where it lies, and whether it is there.
struct Row { batch: u32, head: u32, row: u32, is_there: bool }

fn row_at(workgroup: vec3u, n: u32) -> Row {
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, 0u);
    if (STATES == 1u) { return Row(w.batch, w.head, n, n < HEAD_DIM); }
    return Row(w.batch, w.head, w.first + n, n < w.count);
}
