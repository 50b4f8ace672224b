// Gradient of the gates of each channel: that of gate_gradient.wgsl, channel by channel. With S and U turned, A_t = Σ U_t · S_t down a
// column, and dg_t = A_(t−1) = A_t + q_t · dq_t − k_t · (dk_t + less_t), element by element. A thread takes four channels of a
// segment, once from its start and once from its end.

// A where segment `number` begins.
fn product_of_states(w: Work, number: u32) -> vec4f {
    let segments = segments_of(w.batch);
    let rest = HEAD_DIM_V - w.column;
    var sum = vec4f();
    for (var row = 0u; row < select(0u, HEAD_DIM, number <= segments); row++) {
        let s = load_states4(at_states(w.batch, w.head, number * HEAD_DIM + row) + w.column, rest);
        let u = load_behind4(at_behind(w.batch, w.head, (segments - number) * HEAD_DIM + row) + w.column, rest);
        sum = fma(u, s, sum);
    }
    return sum;
}

fn term_of(t: Token, d: u32) -> vec4f {
    let n = HEAD_DIM_V - d;
    let q = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + d, n);
    let k = load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + d, n);
    let dq = load_dq4(at_dq(t.batch, t.head, t.row) + d, n);
    let dk = load_dk4(at_dk(t.batch, t.head, t.row) + d, n);
    return q * dq - k * (dk + load_less4(at_less(t.batch, t.head, t.row) + d, n));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let quads = (HEAD_DIM_V + 3u) / 4u;
    let at = (params.first.z + workgroup.x) * WG + thread;
    let w = segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, at / quads, 4u * (at % quads));
    let rest = HEAD_DIM_V - w.column;
    if (w.count > 0u) {
        var sum = product_of_states(w, w.place);
        for (var n = 0u; n < w.count; n++) {
            let t = token_at(w, n);
            store_dg4(at_dg(t.batch, t.head, t.row) + w.column, rest, (1.0 - f32(n) / f32(w.count)) * sum);
            sum -= term_of(t, w.column);
        }
        sum = product_of_states(w, w.place + 1u);
        for (var n = w.count; n > 0u; n--) {
            let t = token_at(w, n - 1u);
            sum += term_of(t, w.column);
            let to = at_dg(t.batch, t.head, t.row) + w.column;
            store_dg4(to, rest, fma(vec4f(f32(n - 1u) / f32(w.count)), sum, load_dg4(to, rest)));
        }
    }
}
