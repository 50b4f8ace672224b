// Only the mask is wanted.
fn write_scores(row: RowOfLogits, batch: u32, head: u32, number: u32, thread: u32) {}
