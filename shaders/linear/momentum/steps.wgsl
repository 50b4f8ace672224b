// What a token does to memory and momentum: `steps` [batch, heads, tokens, 4] = (alpha, eta, theta, 0). alpha and eta are within [0, 1], theta is
// finite and at least 0. One that is not is clamped; NaN, and an infinite theta, count as 0; and the first token of a workgroup's that has one is
// reported (report.wgsl): 3 · row, plus 0 for alpha, 1 for eta, 2 for theta. A thread takes a token.

fn within_one(x: f32, place: u32) -> f32 {
    let bits = bitcast<u32>(x);
    // The bits of numbers from 0 up go up as they do: those of 1, of infinity.
    let good = bits <= 0x3f800000u || bits == 0x80000000u;
    wrong = min(wrong, select(place, NO_ROW, good));
    return select(select(0.0, 1.0, bits <= 0x7f800000u), x, good);
}

fn finite(x: f32, place: u32) -> f32 {
    let bits = bitcast<u32>(x);
    let good = bits < 0x7f800000u || bits == 0x80000000u;
    wrong = min(wrong, select(place, NO_ROW, good));
    return select(0.0, x, good);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let place = params.first.z + workgroup.x;
    let n = place * WG + thread;
    var w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, 0u, 0u);
    if (n < w.count) {
        let row = w.first + n;
        let alpha = within_one(load_alpha(at_alpha(w.batch, w.head / ALPHA_GROUP, row)), 3u * row);
        let eta = within_one(load_eta(at_eta(w.batch, w.head / ETA_GROUP, row)), 3u * row + 1u);
        let theta = finite(load_theta(at_theta(w.batch, w.head / THETA_GROUP, row)), 3u * row + 2u);
        store_steps4(at_steps(w.batch, w.head, row), 4u, vec4f(alpha, eta, theta, 0.0));
    }
    w.place = place;
    report(w, thread);
}
