// Gradient of the gate's queries:  to[i] = scale · Σ_j gradient[i][j] · key[j]  over the blocks j that row i sees. `gradient`
// is that of the logits. A workgroup takes ROWS rows of a head. Workgroup memory: that of product.wgsl.

fn left(p: Place, row: u32, col: u32) -> f32 {
    if (col >= counted_blocks(p.batch, row)) { return 0.0; }
    return params.scale * load_gradient(at_gradient(p.batch, p.head, row) + col);
}

fn right(p: Place, col: u32, column: u32) -> vec4f {
    return load_key4(at_key(p.batch, p.head / params.heads, col) + 4u * column, GATE_DIM - 4u * column);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let p = place_of(workgroup);
    multiply(p, params.cols, thread);
    store_sums(p, thread);
}
