// Blocks whose probability is above a bound.
fn key_of(row: RowOfLogits, col: u32) -> u32 { return bitcast<u32>(probability(row, col)); }

fn choose(row: RowOfLogits, batch: u32, thread: u32) -> Choice {
    return Choice(bitcast<u32>(params.bound), 0u);
}
