// The sum of all rows:  to = Σ_b Σ_h Σ_i x[b][h][i]
//
// x [batch, heads, inner, GATE_DIM], to [1, 1, 1, GATE_DIM]. One workgroup, whose threads take four columns of every LANES-th row:
// a sum in an order that is always the same. Workgroup memory: 16·WG bytes.

const LANES: u32 = WG / WIDTH4;

var<workgroup> parts: array<vec4f, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) thread: u32) {
    let d = 4u * (thread % WIDTH4);
    var sum = vec4f();
    for (var n = thread / WIDTH4; n < params.rows * params.heads * params.inner && thread < LANES * WIDTH4; n += LANES) {
        let head = n / params.inner;
        let row = at_x(head / params.heads, head % params.heads, n % params.inner);
        sum += load_x4(row + d, GATE_DIM - d);
    }
    parts[thread] = sum;
    workgroupBarrier();
    if (thread < WIDTH4) {
        for (var lane = 1u; lane < LANES; lane++) { sum += parts[thread + lane * WIDTH4]; }
        store_to4(at_to(0u, 0u, 0u) + d, GATE_DIM - d, sum);
    }
}
