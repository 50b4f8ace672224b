// The bits of a word that are listed: those of `one`, less those of `other` (MODE_WITHOUT), within the columns.
fn listed(n: u32, word: u32) -> u32 {
    var bits = load_one(row_at(params.one, n, params.heads, params.rows) + word);
    if (params.mode == MODE_WITHOUT) { bits &= ~load_other(row_at(params.other, n, params.heads, params.rows) + word); }
    let room = params.cols - 32u * word;
    return select(bits & ((1u << room) - 1u), bits, room >= 32u);
}
