// Gradient of the betas of the delta rule: dbeta = Σ du · e, with e = v − Sᵀ k what a token is corrected by, du the gradient of beta · e,
// both f32 [batch, heads, tokens, WIDTH]; summed over the GROUP heads that share a beta. A thread takes a token.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let n = (params.first.z + workgroup.x) * WG + thread;
    let head = params.first.y + workgroup.y;
    let w = segment_at(params.first.x + workgroup.z, head, 0u, 0u);
    if (n < w.count) {
        let row = w.first + n;
        var sum = 0.0;
        for (var other = head * GROUP; other < (head + 1u) * GROUP; other++) {
            let e = at_e(w.batch, other, row);
            let du = at_du(w.batch, other, row);
            for (var d = 0u; d < WIDTH; d += 4u) {
                sum += dot(load_e4(e + d, WIDTH - d), load_du4(du + d, WIDTH - d));
            }
        }
        store_dbeta(at_dbeta(w.batch, head, row), bitcast<u32>(sum));
    }
}
