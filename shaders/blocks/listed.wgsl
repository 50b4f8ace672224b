// The bits of a word that are listed: those of `one`, less those of `other` (MODE_WITHOUT), within the columns.
fn listed(n: u32, word: u32) -> u32 {
    let row = grid_row(n, params.rows);
    var bits = load_one(at_one(row.x, row.y, row.z) + word);
    if (params.mode == MODE_WITHOUT) { bits &= ~load_other(at_other(row.x, row.y, row.z) + word); }
    let room = params.cols - 32u * word;
    return select(bits & ((1u << room) - 1u), bits, room >= 32u);
}
