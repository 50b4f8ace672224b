// What the gradients need of every row of the output:  stats = (lse · log2(e), Σ_d dout · out − dlse)
//
// out, dout [batch, heads, rows, value_dim] by strides; lse, dlse [batch, heads, rows, 1]. A row that has seen nothing gets
// UNSEEN for its LSE, which makes every weight 0. A thread takes a row; no workgroup memory.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let row = (params.first.z + workgroup.x) * WG + thread;
    if (row >= params.queries) { return; }
    let out = at_out(batch, head, row);
    let dout = at_dout(batch, head, row);
    var sum = 0.0;
    for (var d = 0u; d < DV4; d++) {
        sum += dot(load_out4(out + 4u * d, HEAD_DIM_V - 4u * d), load_dout4(dout + 4u * d, HEAD_DIM_V - 4u * d));
    }
    let lse = load_lse(at_lse(batch, head, row));
    let scaled = select(bitcast<f32>(lse) * 1.4426950408889634, UNSEEN, lse == MINUS_INFINITY_BITS);
    stats[stats_place(batch, head, row)] = vec2f(scaled, sum - load_dlse(at_dlse(batch, head, row)));
}
