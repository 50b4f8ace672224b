// Gradients of memory with momentum (shared.wgsl), from the last token to the first, after forward.wgsl has KEPT states and errors. With dM and dS
// the gradients of M and S after a token, its own query included, dM' that of the memory its chunk begins with, and w = dSᵀ k:
//
//   dM += scale · q doutᵀ,  dS += dM,  dq = scale · M dout
//   dα = −⟨dM, M before⟩,  dη = ⟨dS, S before⟩,  dθ = −w · e
//   dv = θ w,  dk = −θ (dS e + M' w),  dM' −= θ k wᵀ
//   dM ← (1 − α) dM, and dM' besides where the chunk begins,  dS ← η dS
//
// A segment's states are computed again first, and go into the slots of its tokens. Errors are replaced by dv. What is summed over columns is summed
// over those of a tile: dq, dk and `dsteps` = (dα, dη, dθ, 0) have TILES rows of heads a head. Workgroup memory: 32·(1 + PART)·WG bytes.

var<private> dmemory: array<array<vec4f, 4>, PART>;
var<private> dmomentum: array<array<vec4f, 4>, PART>;
var<private> dstart: array<array<vec4f, 4>, PART>;

var<workgroup> weights: array<vec4f, WG>;
var<workgroup> of_steps: array<vec4f, WG>;
var<workgroup> of_queries: array<vec4f, PART * WG>;
var<workgroup> of_keys: array<vec4f, PART * WG>;
// Threads that add up what those behind them have of `of_steps`.
const ADDERS: u32 = 8u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let s = stretch_of(workgroup, true);
    if (s.begin >= s.end) { return; }
    load_slot(s, GRADIENTS, thread);
    for (var i = 0u; i < PART; i++) {
        for (var r = 0u; r < 4u; r++) {
            dmemory[i][r] = memory[i][r];
            dmomentum[i][r] = momentum[i][r];
            dstart[i][r] = vec4f();
        }
    }
    var end = s.end;
    while (end > s.begin) {
        let begin = end - 1u - place_in_segment(end - 1u);
        restore(s, begin, end, thread);
        for (var n = end; n > begin; n--) { pass_token(s, n - 1u, thread); }
        end = begin;
    }
    for (var i = 0u; i < PART; i++) {
        for (var r = 0u; r < 4u; r++) {
            memory[i][r] = dmemory[i][r];
            momentum[i][r] = dmomentum[i][r];
        }
    }
    store_slot(s, GRADIENTS, thread);
}

// The states before each token of a segment.
fn restore(s: Stretch, begin: u32, end: u32, thread: u32) {
    load_slot(s, slot_of(begin), thread);
    for (var n = begin; n < end; n++) {
        store_slot(s, n - begin, thread);
        let t = token_of(s, n);
        if (n + 1u < end) { absorb(t, step_of(t), error_of(t, column_of(s, thread)), thread); }
    }
}

// The slot of the memory that the chunk of token n begins with: within the segment, or what was kept.
fn slot_of_chunk(n: u32) -> u32 {
    if (CHUNK <= SEGMENT) { return place_in_segment(n) - n % UNIT % CHUNK; }
    return slot_of(n - n % CHUNK);
}

fn pass_token(s: Stretch, n: u32, thread: u32) {
    let t = token_of(s, n);
    let step = step_of(t);
    let column = column_of(s, thread);
    let inside = inside_row(column);
    let e = error_of(t, column);
    let loaded = load_dout4(at_dout(t.batch, t.head, t.row) + inside, HEAD_DIM_V - inside);
    let dout = select(vec4f(), params.scale * loaded, column < HEAD_DIM_V);
    let own = place_in_segment(n);
    // dα and dη, by columns; w.
    var dalpha = vec4f();
    var deta = vec4f();
    var weight = vec4f();
    var dk: array<vec4f, PART>;
    for (var i = 0u; i < PART; i++) {
        let d = row_of(i, thread);
        let q = query_of(t, d);
        let k = key_of(t, d);
        var dq = vec4f();
        for (var r = 0u; r < 4u; r++) {
            var before = vec4f();
            var pace = vec4f();
            if (4u * d + r < HEAD_DIM && column < HEAD_DIM_V) {
                before = slot_row(s, own, 4u * d + r, column);
                pace = slot_row(s, own, HEAD_DIM + 4u * d + r, column);
            }
            let after = fma(vec4f(-step.x), before, before) + fma(vec4f(step.y), pace, -step.z * k[r] * e);
            dq[r] = dot(after, dout);
            let dm = fma(vec4f(q[r]), dout, dmemory[i][r]);
            let ds = dmomentum[i][r] + dm;
            dmemory[i][r] = dm;
            dmomentum[i][r] = ds;
            dalpha = fma(-dm, before, dalpha);
            deta = fma(ds, pace, deta);
            weight = fma(vec4f(k[r]), ds, weight);
            dk[i][r] = dot(ds, e);
        }
        of_queries[d * QUADS + thread % QUADS] = dq;
    }
    weights[thread] = weight;
    of_steps[thread] = vec4f(dot(dalpha, vec4f(1.0)), dot(deta, vec4f(1.0)), 0.0, 0.0);
    workgroupBarrier();
    var w = vec4f();
    for (var lane = 0u; lane < LANES; lane++) { w += weights[lane * QUADS + thread % QUADS]; }
    if (thread < QUADS) { store_error(t, column, step.z * w); }
    var sum = vec4f();
    if (thread < ADDERS) {
        for (var other = thread; other < WG; other += ADDERS) { sum += of_steps[other]; }
    }
    let begins = n % UNIT % CHUNK == 0u;
    for (var i = 0u; i < PART; i++) {
        let d = row_of(i, thread);
        let k = key_of(t, d);
        for (var r = 0u; r < 4u; r++) {
            var start = vec4f();
            if (4u * d + r < HEAD_DIM && column < HEAD_DIM_V) { start = slot_row(s, slot_of_chunk(n), 4u * d + r, column); }
            dk[i][r] = -step.z * (dk[i][r] + dot(start, w));
            dstart[i][r] = fma(vec4f(-step.z * k[r]), w, dstart[i][r]);
            dmemory[i][r] = fma(vec4f(-step.x), dmemory[i][r], dmemory[i][r]);
            if (begins) {
                dmemory[i][r] += dstart[i][r];
                dstart[i][r] = vec4f();
            }
            dmomentum[i][r] *= step.y;
        }
        of_keys[d * QUADS + thread % QUADS] = dk[i];
    }
    workgroupBarrier();
    if (thread < ADDERS) { of_steps[thread] = sum; }
    // dθ of four columns.
    if (thread < QUADS) { weights[thread] = vec4f(-dot(w, e)); }
    workgroupBarrier();
    write(s, t, thread);
    workgroupBarrier();
}

// The sums over the columns of the tile.
fn write(s: Stretch, t: Token, thread: u32) {
    let head = s.head * TILES + s.column / COLS;
    for (var d = thread; d < D4; d += WG) {
        var dq = vec4f();
        var dk = vec4f();
        for (var quad = 0u; quad < QUADS; quad++) {
            dq += of_queries[d * QUADS + quad];
            dk += of_keys[d * QUADS + quad];
        }
        store_dq4(at_dq(t.batch, head, t.row) + 4u * d, HEAD_DIM - 4u * d, dq);
        store_dk4(at_dk(t.batch, head, t.row) + 4u * d, HEAD_DIM - 4u * d, dk);
    }
    if (thread == WG - 1u) {
        var sum = vec4f();
        for (var other = 0u; other < ADDERS; other++) { sum += of_steps[other]; }
        for (var quad = 0u; quad < QUADS; quad++) { sum.z += weights[quad].x; }
        store_dsteps4(at_dsteps(t.batch, head, t.row), 4u, sum);
    }
}
