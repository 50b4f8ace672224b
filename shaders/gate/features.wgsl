// Features of a row: x of one head, which SHARE heads of the gate use, or of `joined` heads one after another. x holds pooled tokens
// or (TOKENS) the tokens themselves.

// Where feature f of a row lies.
fn feature_at(batch: u32, head: u32, row: u32, f: u32) -> u32 {
    let first = select(0u, tokens_of(batch).x, TOKENS == 1u);
    return at_x(batch, head * params.joined / SHARE + f / WIDTH_X, first + row) + f % WIDTH_X;
}

// Whether a batch entry has this row: of a ring, only full blocks.
fn exists(batch: u32, row: u32) -> bool {
    let start = (first_block(batch) + row) * block_size();
    return start + select(1u, block_size(), params.ring > 0u) <= tokens_of(batch).y;
}
