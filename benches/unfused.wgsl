// The baseline of the flash bench: attention as three kernels with the scores in memory, one thread a score.
//   scores = scale · q kᵀ   (entry `score`, a thread an element);   p = softmax(scores) by rows   (entry `soften`, a thread
//   a row);   out = p v   (entry `weigh`, a thread an element)
// All tensors contiguous: q [heads, n, d], k [heads, n, d], v [heads, n, d], scores [heads, n, n].

struct Sizes { n: u32, d: u32, scale: f32, causal: u32 }

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(16, 16)
fn score(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= sizes.n || id.y >= sizes.n) { return; }
    let qi = (id.z * sizes.n + id.y) * sizes.d;
    let kj = (id.z * sizes.n + id.x) * sizes.d;
    var sum = 0.0;
    for (var e = 0u; e < sizes.d; e++) { sum = fma(q[qi + e], k[kj + e], sum); }
    let hidden = sizes.causal != 0u && id.x > id.y;
    scores[(id.z * sizes.n + id.y) * sizes.n + id.x] = select(sum * sizes.scale, -1e30, hidden);
}

@compute @workgroup_size(64)
fn soften(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= sizes.n) { return; }
    let row = (id.z * sizes.n + id.x) * sizes.n;
    var top = scores[row];
    for (var j = 1u; j < sizes.n; j++) { top = max(top, scores[row + j]); }
    var sum = 0.0;
    for (var j = 0u; j < sizes.n; j++) {
        let p = exp(scores[row + j] - top);
        scores[row + j] = p;
        sum += p;
    }
    for (var j = 0u; j < sizes.n; j++) { scores[row + j] /= sum; }
}

@compute @workgroup_size(16, 16)
fn weigh(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= sizes.d || id.y >= sizes.n) { return; }
    let row = (id.z * sizes.n + id.y) * sizes.n;
    var sum = 0.0;
    for (var j = 0u; j < sizes.n; j++) {
        sum = fma(scores[row + j], v[(id.z * sizes.n + j) * sizes.d + id.x], sum);
    }
    out[(id.z * sizes.n + id.y) * sizes.d + id.x] = sum;
}
