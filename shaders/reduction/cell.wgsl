// What is read at a column: its value.
fn cell(batch: u32, head: u32, row: u32, col: u32) -> vec2u {
    return vec2u(load_one(row_of(params.one, batch, head, row) + col), col);
}
