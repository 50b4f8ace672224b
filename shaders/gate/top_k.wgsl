// The blocks with the largest logits, as many as the table `most` says for a sequence of so many blocks; of equal ones the first.
fn key_of(row: RowOfLogits, col: u32) -> u32 { return ordered(load_logits(row.at + col)); }

fn value_bits(at: u32, col: u32) -> u32 { return ordered(load_logits(at + col)); }

fn choose(row: RowOfLogits, batch: u32, thread: u32) -> Choice {
    let blocks = (sequences[batch].w + params.key_block - 1u) / params.key_block;
    let k = most[min(blocks, MOST - 1u)].x;
    if (k >= row.seen) { return Choice(0u, 0u); }
    let least = largest(row.at, row.seen, k, thread);
    let above = count_from(row.at, row.seen, least + 1u, thread);
    return Choice(least, k - above);
}
