// The fewest blocks whose probabilities add up to a bound; of equal ones the first. Where rounding keeps the sum of all below
// it: all that have a probability.
fn key_of(row: RowOfLogits, col: u32) -> u32 { return bitcast<u32>(probability(row, col)); }

// The probabilities with at least these bits together.
fn mass_from(row: RowOfLogits, least: u32, thread: u32) -> f32 {
    var own = 0.0;
    for (var col = thread; col < row.seen; col += WG) {
        let p = probability(row, col);
        own += select(0.0, p, bitcast<u32>(p) >= least);
    }
    return sum_of(own, thread);
}

// Bit by bit, from the highest: the largest probability that those from it on are enough.
fn choose(row: RowOfLogits, batch: u32, thread: u32) -> Choice {
    var least = 0u;
    for (var bit = 31u; bit > 0u; bit--) {
        let candidate = least | (1u << (bit - 1u));
        if (mass_from(row, candidate, thread) >= params.bound) { least = candidate; }
    }
    let missing = params.bound - mass_from(row, least + 1u, thread);
    let each = bitcast<f32>(least);
    if (least == 0u || missing <= 0.0) { return Choice(least, 0u); }
    return Choice(least, u32(ceil(min(missing / each, f32(row.seen)))));
}
