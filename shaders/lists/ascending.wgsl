// Lists of tokens as attention reads them: how many each has, then those that are below `keys` and above all before them, up to the first NONE.
//
// problem: four words for each (batch entry, head); in the last NONE − (list · capacity + place) of the first token that is left out, or 0
// (lists/problem.wgsl). A workgroup makes a list. Workgroup memory: 8·WG + 8 bytes.

var<workgroup> largest: array<u32, WG>;
var<workgroup> first_none: atomic<u32>;
var<workgroup> length: u32;

// One above a token that there is, else 0.
fn numbered(token: u32) -> u32 { return select(0u, token + 1u, token < params.keys); }

// The largest number of the threads before this one.
fn largest_before(own: u32, thread: u32) -> u32 {
    largest[thread] = own;
    workgroupBarrier();
    for (var step = 1u; step < WG; step *= 2u) {
        var before = 0u;
        if (thread >= step) { before = largest[thread - step]; }
        workgroupBarrier();
        largest[thread] = max(largest[thread], before);
        workgroupBarrier();
    }
    var before = 0u;
    if (thread > 0u) { before = largest[thread - 1u]; }
    return before;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let list = params.first.z + workgroup.x;
    let begin = at_given(batch, head, list);
    let to = at_tokens(batch, head, list);
    if (thread == 0u) { atomicStore(&first_none, params.capacity); }
    workgroupBarrier();
    for (var i = thread; i < params.capacity; i += WG) {
        if (load_given(begin + i) == NONE) { atomicMin(&first_none, i); }
    }
    workgroupBarrier();
    if (thread == 0u) { length = atomicLoad(&first_none); }
    let end = workgroupUniformLoad(&length);
    // A thread has a run of them; tokens count from 1 here.
    let each = (end + WG - 1u) / WG;
    let first = min(thread * each, end);
    let last = min(first + each, end);
    var own = 0u;
    for (var i = first; i < last; i++) { own = max(own, numbered(load_given(begin + i))); }
    let before = largest_before(own, thread);
    var so_far = before;
    var count = 0u;
    var wrong = NONE;
    for (var i = first; i < last; i++) {
        let token = numbered(load_given(begin + i));
        if (token > so_far) { count += 1u; } else { wrong = min(wrong, i); }
        so_far = max(so_far, token);
    }
    var place = to + 1u + sum_before(count, thread);
    so_far = before;
    for (var i = first; i < last; i++) {
        let token = numbered(load_given(begin + i));
        if (token > so_far) {
            store_tokens(place, token - 1u);
            place += 1u;
        }
        so_far = max(so_far, token);
    }
    let all = sum_of_all();
    if (thread == 0u) { store_tokens(to, all); }
    if (wrong != NONE) { atomicMax(&problem[4u * (batch * HEADS + head) + 3u], NONE - (list * params.capacity + wrong)); }
}
