// Kullback-Leibler divergence of the logits' softmax P from the target T, and its gradient, row by row:
//
//   shares[i] = weight · Σ_j T[i][j] · ln(T[i][j] / P[i][j]),   to[i][j] = weight · (P[i][j] · Σ_j T[i][j] − T[i][j])
//
// over the blocks that row i sees, from row `from_row` on, else 0; NaN in a broken row. wanted = T, to [batch, heads, rows,
// blocks]; shares [batch, heads, rows, 1]. The weight holds the mean's divisor. A workgroup takes a row, its threads every WG-th
// block. Workgroup memory: that of row.wgsl.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let number = params.first.z + workgroup.x;
    let row = row_of_logits(batch, head, number, thread);
    let counts = number >= params.from_row;
    let at = at_wanted(batch, head, number);
    let to = at_to(batch, head, number);
    var share = 0.0;
    if (counts && !row.broken && row.seen > 0u) {
        var own = 0.0;
        for (var col = thread; col < row.seen; col += WG) { own += load_wanted(at + col); }
        let mass = sum_of(own, thread);
        var divergence = 0.0;
        for (var col = thread; col < row.seen; col += WG) {
            let wanted = load_wanted(at + col);
            // The logarithm of P does not underflow where P does.
            let log_p = bitcast<f32>(load_logits(row.at + col)) - row.top - log(row.sum);
            if (wanted > 0.0) { divergence += wanted * (log(wanted) - log_p); }
            store_to(to + col, bitcast<u32>(params.weight * (probability(row, col) * mass - wanted)));
        }
        share = params.weight * sum_of(divergence, thread);
    }
    if (!counts || row.broken) {
        let bits = select(0u, NAN_BITS, counts);
        share = bitcast<f32>(bits);
        for (var col = thread; col < row.seen; col += WG) { store_to(to + col, bits); }
    }
    for (var col = row.seen + thread; col < params.cols; col += WG) { store_to(to + col, 0u); }
    if (thread == 0u) { store_shares(at_shares(batch, head, number), bitcast<u32>(share)); }
}
