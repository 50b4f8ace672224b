// The state after every token is written: rows [n · HEAD_DIM, (n + 1) · HEAD_DIM) for token n.
fn snapshot(w: Work, n: u32, row: u32, column: u32, x: vec4f) {
    let at = row_of(params.snapshots, w.batch, w.head, n * HEAD_DIM + row) + column;
    store_snapshots4(at, HEAD_DIM_V - column, x);
}
