// A block mask seen from the other side:  to[b][h][j][i] = one[b][h][i][j], bit by bit.
//
// rows, cols: of `to`. A thread makes a word of it; no workgroup memory.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = params.first + workgroup.x * WG + thread;
    if (n >= params.count) { return; }
    let words = (params.cols + 31u) / 32u;
    let word = n % words;
    let row = n / words;
    let j = row % params.rows;
    var bits = 0u;
    for (var i = 0u; i < min(32u, params.cols - 32u * word); i++) {
        let place = grid_row(row / params.rows * params.cols + 32u * word + i, params.cols);
        bits |= ((load_one(at_one(place.x, place.y, place.z) + j / 32u) >> (j % 32u)) & 1u) << i;
    }
    let to = grid_row(row, params.rows);
    store_to(at_to(to.x, to.y, to.z) + word, bits);
}
