// Which blocks of keys a row of the gate sees: the first ones, so many.

// One past the last position of a row's own tokens, among the keys; 0 for a row without tokens.
fn end_of_row(sequence: vec4u, row: u32) -> u32 {
    let first = row * params.query_block;
    let end = i32(min(first + params.query_block, sequence.y)) + offset_of(sequence);
    return select(0u, u32(clamp(end, 0, i32(sequence.w))), first < sequence.y);
}

fn seen_blocks(sequence: vec4u, row: u32) -> u32 {
    var keys = end_of_row(sequence, row);
    if (params.causal == 0u && row * params.query_block < sequence.y) { keys = sequence.w; }
    return (keys + params.key_block - 1u) / params.key_block - select(0u, 1u, params.past == 1u && keys > 0u);
}

// Those whose logits are products of the row with them: blocks that are not full may count as 0.
fn counted_blocks(batch: u32, row: u32) -> u32 {
    let sequence = sequences[batch];
    let full = select(NONE, end_of_row(sequence, row) / params.key_block, params.complete == 1u);
    return min(seen_blocks(sequence, row), full);
}
