// Softmax attention.
//
//   out[i] = Σ_j p[i][j] · v[j] / Σ_j p[i][j],   p[i][j] = exp(score(scale · q[i]·k[j])) where j is visible to i, else 0
//   lse[i] = ln Σ_j p[i][j]
//
// One pass over the keys (Dao, FlashAttention-2, arXiv 2307.08691): nothing of size queries × keys is stored.
//
// A workgroup owns BR query rows of one (batch, query head) and visits tiles of BC keys, or one of SPLITS parts of them. Its WG =
// (BR/RT)·(BC/CT) threads form a grid: thread (tr, tc) owns rows tr·RT … and, of each key tile, the keys tc, tc + TC, tc + 2·TC, …
// (CT of them), and of the output the vec4 columns tc, tc + TC, … (OV of them). Everything a thread owns stays in registers.
// How rows and columns come together is an engine's: engines/portable, engines/processor or engines/staged.

const GRADIENTS: bool = false;

var<private> o: Sums;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let visit = visit_of(w);
    let part = part_of_visit(w, visit, tile_count(visit));
    begin_visit(w, visit, thread);
    begin_rows(w, visit, thread);
    begin_sums(thread);
    state_reset();
    // A hidden tile is passed over outside of the body: a CPU's driver walks through all of what a `continue` skips.
    for (var i = next_tile(w, visit, part.x, part.y); i < part.y; i = next_tile(w, visit, after_tile(i), part.y)) {
        let tile = nth_tile(w, visit, i);
        score_tile(w, visit, tile, thread);
        state_weigh(is_masked(tile), thread);
        accumulate(VALUES, &o, w, visit, tile, thread);
    }
    write_rows(w, visit, thread);
}
