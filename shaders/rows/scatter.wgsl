// x[n] = Σ y[l] over the chain of n (chain.wgsl), in ascending l; where MEAN, divided by how many there are; 0 where there is none. How many goes to
// `count`, of index [.., rows], if that is there. A thread makes four elements of a row.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let n = at / D4;
    let d = 4u * (at % D4);
    if (n >= params.rows) { return; }
    let nexts = at_next(batch, own_head(head), 0u);
    var sum = vec4f();
    var found = 0u;
    for (var l = load_chain(at_chain(batch, own_head(head), 0u) + n); l != NONE; l = load_next(nexts + l)) {
        sum += load_y4(at_y(batch, head, l) + d, WIDTH - d);
        found++;
    }
    if (MEAN == 1u) { sum /= f32(max(1u, found)); }
    store_x4(at_x(batch, head, n) + d, WIDTH - d, sum);
    // Heads, and batch entries, that share an index share its count.
    let own = head % INDEX_GROUP == 0u && (SHARED_BATCH == 0u || batch == 0u);
    if (own && d == 0u) { store_count(at_count(batch, own_head(head), 0u) + n, found); }
}
