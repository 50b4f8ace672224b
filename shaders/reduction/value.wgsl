// A cell is its value and, where it is wanted, the key that it is of.
fn write_cell(batch: u32, head: u32, row: u32, col: u32, cell: vec2u) {
    store_values(at_values(batch, head, row) + col, cell.x);
    if (HAS_INDICES) { store_indices(at_indices(batch, head, row) + col, cell.y); }
}
