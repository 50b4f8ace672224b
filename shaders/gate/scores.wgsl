// The softmax of the logits is wanted too: 0 where a row does not see a block, NaN in a broken row.
fn write_scores(row: RowOfLogits, batch: u32, head: u32, number: u32, thread: u32) {
    let to = row_of(params.scores, batch, head, number);
    for (var col = thread; col < params.cols; col += WG) {
        var bits = 0u;
        if (col < row.seen && row.broken) { bits = NAN_BITS; }
        if (col < row.seen && !row.broken) { bits = bitcast<u32>(probability(row, col)); }
        store_scores(to + col, bits);
    }
}
