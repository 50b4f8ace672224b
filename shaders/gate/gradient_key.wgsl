// Gradient of the gate's keys:  to[j] = scale · Σ_h Σ_i gradient[h][i][j] · query[h][i]  over the heads h that share the keys and
// the rows i that see block j. `gradient` is that of the logits. A workgroup takes ROWS blocks of a head.
// Workgroup memory: that of product.wgsl.

// `heads` share a head of keys; `inner` rows each.
fn head_of(p: Place, n: u32) -> u32 { return p.head * params.heads + n / params.inner; }

fn left(p: Place, col: u32, n: u32) -> f32 {
    let row = n % params.inner;
    if (col >= counted_blocks(p.batch, row)) { return 0.0; }
    return params.scale * load_gradient(at_gradient(p.batch, head_of(p, n), row) + col);
}

fn right(p: Place, n: u32, column: u32) -> vec4f {
    return load_query4(at_query(p.batch, head_of(p, n), n % params.inner) + 4u * column, GATE_DIM - 4u * column);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let p = place_of(workgroup);
    multiply(p, params.heads * params.inner, thread);
    store_sums(p, thread);
}
