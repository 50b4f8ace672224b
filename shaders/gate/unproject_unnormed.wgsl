// There is no norm.
fn write_straight(p: Place, r: u32, column: u32) {
    let d = 4u * column;
    store_to4(row_of(params.to, p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, straight[r * WIDTH4 + column]);
}
