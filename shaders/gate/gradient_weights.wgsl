// Gradient of a head's weights:  to[f] = Σ_b Σ_m x[b][m][f] · gradient[b][m]  over the batch entries b and their rows m. `gradient`
// is that of the projected features, 0 for rows that a batch entry does not have. A workgroup takes ROWS features. Workgroup memory: that of product.wgsl.

// `heads` batch entries, of `inner` rows each.
fn left(p: Place, f: u32, n: u32) -> f32 {
    return load_x(feature_at(n / params.inner, p.head, n % params.inner, f));
}

fn right(p: Place, n: u32, column: u32) -> vec4f {
    let at = at_gradient(n / params.inner, p.head, n % params.inner);
    return load_gradient4(at + 4u * column, GATE_DIM - 4u * column);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let p = place_of(workgroup);
    multiply(p, params.heads * params.inner, thread);
    store_sums(p, thread);
}
