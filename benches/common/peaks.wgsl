// The limits of an adapter: a kernel that only multiplies and adds in registers, and one that only reads.

override THREADS: u32;

// Rounds of each thread, and vec4 in `source`.
@group(0) @binding(0) var<uniform> params: vec4u;
@group(0) @binding(1) var<storage, read_write> results: array<vec4f>;
@group(0) @binding(2) var<storage, read> source: array<vec4f>;

// Twelve chains, so that none waits for another and all stay in registers: 384 floating-point operations a round and thread.
@compute @workgroup_size(THREADS)
fn multiply(@builtin(global_invocation_id) id: vec3u) {
    let x = f32(id.x) * 1e-9;
    let factor = 0.999 + x;
    var a = vec4f(x, x + 1.0, x + 2.0, x + 3.0);
    var b = a + 4.0;
    var c = a + 8.0;
    let f = vec4f(factor);
    let y = vec4f(x);
    for (var i = 0u; i < params.x; i++) {
        // Written out: with an inner loop llvmpipe reached a third of it.
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
        a = fma(a, f, y); b = fma(b, f, y); c = fma(c, f, y);
    }
    results[id.x] = a + b + c;
}

// Neighbours read neighbours.
@compute @workgroup_size(THREADS)
fn read_all(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) workgroups: vec3u) {
    let threads = workgroups.x * THREADS;
    var sum = vec4f();
    // Four at a time, so that one does not wait for another.
    for (var i = id.x; i < params.y; i += 4u * threads) {
        sum += (source[i] + source[i + threads]) + (source[i + 2u * threads] + source[i + 3u * threads]);
    }
    results[id.x] = sum;
}
