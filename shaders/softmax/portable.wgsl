// Softmax attention, engine `portable`: core WebGPU only.
//
//   out[i] = Σ_j p[i][j] · v[j] / Σ_j p[i][j],   p[i][j] = exp(score(scale · q[i]·k[j])) where j is visible to i, else 0
//   lse[i] = ln Σ_j p[i][j]
//
// One pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691): nothing of size queries × keys is stored.
//
// A workgroup owns BR query rows of one (batch, query head) and visits tiles of BC keys, or one of SPLITS parts of them. Its WG = (BR/RT)·(BC/CT) threads
// form a grid: thread (tr, tc) owns rows tr·RT … and, of each key tile, the keys tc, tc + TC, tc + 2·TC, … (CT of them),
// and of the output the vec4 columns tc, tc + TC, … (OV of them). Everything a thread owns stays in registers.
//
// Workgroup memory, one array used in turn (vec4 elements; src/softmax/portable.rs makes TILE the largest of the three):
//   scores   query chunk [BD4][BR], key chunk [BD4][BC]           BD4·(BR + BC)
//   weights  P [PQ][BR], V [4·PQ][OV·TC]                          PQ·(BR + 4·OV·TC)
//   rows     partial maxima or sums [TC][BR/4], results [BR/4]    (TC + 1)·BR/4
// In P a vec4 holds four keys of one row. A thread owns keys that lie TC apart, so quad number n means the keys
// n % TC + TC·(4·(n / TC) + e), e = 0 … 3; V's rows are staged in that order.

var<private> o: Sums;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let visit = visit_of(w);
    let part = part_of_visit(w, visit, tile_count(visit));
    begin_visit(w, visit, thread);
    if (thread == 0u) { atomicStore(&leak, 0u); }
    state_reset();
    // A hidden tile is passed over outside of the body: a CPU's driver walks through all of what a `continue` skips.
    for (var i = next_tile(w, visit, part.x, part.y); i < part.y; i = next_tile(w, visit, i + 1u, part.y)) {
        let tile = nth_tile(w, visit, i);
        score_tile(w, visit, tile, thread);
        state_weigh(is_masked(tile), thread);
        accumulate(0u, &o, w, visit, tile, thread);
    }
    write_rows(w, visit, thread);
}
