// The baseline of the flash bench: attention as three kernels with the scores in memory, each well tiled.
//   scores = scale · q kᵀ  (entry `score`);   p = softmax(scores) by rows  (entry `soften`);   out = p v  (entry `weigh`)
// All tensors contiguous f32: q, k, v, out [heads, n, d], scores [heads, n, n]; d and n any numbers.
//
// `score` and `weigh`: a workgroup owns 64 × 64 results, a thread 8 × 4 of them, as in the fused kernel: rows 8·(t / 16) on,
// columns t % 16 + 16·j. Both operands pass through 8 KiB of workgroup memory, 16 of the summed index at a time, as vec4
// along it: [4][64]. `soften`: a workgroup of 128 threads owns a row.

struct Sizes { n: u32, d: u32, scale: f32, causal: u32 }

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

var<workgroup> a_tile: array<vec4f, 256>;
var<workgroup> b_tile: array<vec4f, 256>;
var<private> sums: array<array<f32, 4>, 8>;

// sums += a_tile · b_tileᵀ
fn multiply(thread: u32) {
    for (var e = 0u; e < 4u; e++) {
        var b: array<vec4f, 4>;
        for (var j = 0u; j < 4u; j++) { b[j] = b_tile[64u * e + thread % 16u + 16u * j]; }
        for (var i = 0u; i < 8u; i++) {
            let a = a_tile[64u * e + thread / 16u * 8u + i];
            for (var j = 0u; j < 4u; j++) {
                sums[i][j] = fma(a.w, b[j].w, fma(a.z, b[j].z, fma(a.y, b[j].y, fma(a.x, b[j].x, sums[i][j]))));
            }
        }
    }
}

// What is multiplied: q kᵀ, or p v.
fn left(weigh: bool, head: u32, row: u32, i: u32) -> f32 {
    if (weigh) { return scores[(head * sizes.n + row) * sizes.n + i]; }
    return q[(head * sizes.n + row) * sizes.d + i];
}

fn right(weigh: bool, head: u32, i: u32, col: u32) -> f32 {
    if (weigh) { return v[(head * sizes.n + i) * sizes.d + col]; }
    return k[(head * sizes.n + col) * sizes.d + i];
}

// The 64 × 64 results of a workgroup, in `sums`, with `depth` summed up.
fn products(weigh: bool, group: vec3u, thread: u32, depth: u32) {
    let cols = select(sizes.n, sizes.d, weigh);
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) { sums[i][j] = 0.0; }
    }
    for (var first = 0u; first < depth; first += 16u) {
        for (var at = thread; at < 256u; at += 128u) {
            let row = group.y * 64u + at % 64u;
            let col = group.x * 64u + at % 64u;
            var x: vec4f;
            var y: vec4f;
            for (var e = 0u; e < 4u; e++) {
                let i = first + at / 64u * 4u + e;
                if (i < depth && row < sizes.n) { x[e] = left(weigh, group.z, row, i); }
                if (i < depth && col < cols) { y[e] = right(weigh, group.z, i, col); }
            }
            a_tile[at] = x;
            b_tile[at] = y;
        }
        workgroupBarrier();
        multiply(thread);
        workgroupBarrier();
    }
}

@compute @workgroup_size(128)
fn score(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    // Under a causal mask, tiles above the diagonal are left to `soften`.
    if (sizes.causal != 0u && group.x > group.y) { return; }
    products(false, group, thread, sizes.d);
    for (var i = 0u; i < 8u; i++) {
        let row = group.y * 64u + thread / 16u * 8u + i;
        for (var j = 0u; j < 4u; j++) {
            let col = group.x * 64u + thread % 16u + 16u * j;
            if (row < sizes.n && col < sizes.n) {
                scores[(group.z * sizes.n + row) * sizes.n + col] = sums[i][j] * sizes.scale;
            }
        }
    }
}

var<workgroup> parts: array<f32, 128>;

fn reduce(x: f32, sum: bool, thread: u32) -> f32 {
    parts[thread] = x;
    workgroupBarrier();
    for (var step = 64u; step > 0u; step /= 2u) {
        if (thread < step) {
            let y = parts[thread + step];
            parts[thread] = select(max(parts[thread], y), parts[thread] + y, sum);
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}

@compute @workgroup_size(128)
fn soften(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let row = (group.z * sizes.n + group.x) * sizes.n;
    let seen = select(sizes.n, group.x + 1u, sizes.causal != 0u);
    var top = -3e38;
    for (var j = thread; j < seen; j += 128u) { top = max(top, scores[row + j]); }
    top = reduce(top, false, thread);
    var sum = 0.0;
    for (var j = thread; j < seen; j += 128u) {
        let p = exp(scores[row + j] - top);
        scores[row + j] = p;
        sum += p;
    }
    sum = reduce(sum, true, thread);
    for (var j = thread; j < sizes.n; j += 128u) {
        if (j < seen) { scores[row + j] /= sum; } else { scores[row + j] = 0.0; }
    }
}

@compute @workgroup_size(128)
fn weigh(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    products(true, group, thread, select(sizes.n, min(sizes.n, group.y * 64u + 64u), sizes.causal != 0u));
    for (var i = 0u; i < 8u; i++) {
        let row = group.y * 64u + thread / 16u * 8u + i;
        for (var j = 0u; j < 4u; j++) {
            let col = group.x * 64u + thread % 16u + 16u * j;
            if (row < sizes.n && col < sizes.d) { out[(group.z * sizes.n + row) * sizes.d + col] = sums[i][j]; }
        }
    }
}
