// Gradient of queries:   dq[i] = scale · Σ_j ds[i][j] · k[j] + what other keys gave so far
//
// Recomputed from the log-sum-exp (Dao, FlashAttention-2, arXiv 2307.08691, algorithm 2); no atomics. A workgroup owns BR
// query rows of one (batch, query head) and visits the tiles of keys that they see, as forward.wgsl does, with the same
// division among threads and the same workgroup memory.

var<private> dq: Sums;
var<private> row_stats: array<vec2f, RT>;

fn pair_stats(i: u32, j: u32) -> vec2f { return row_stats[i]; }

// What dq is added to: the part of another pass over other keys.
fn so_far(w: Work, token: u32, d: u32) -> vec4f {
    if (!HAS_DQ_SO_FAR) { return vec4f(); }
    return load_dq_so_far4(at_dq_so_far(w.batch, w.head, query_of(w, token)) + 4u * d, HEAD_DIM - 4u * d);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let w = work_of(workgroup);
    let visit = visit_of(w);
    let count = tile_count(visit);
    begin_visit(w, visit, thread);
    let row0 = (thread / TC) * RT;
    begin_rows(w, visit, thread);
    begin_value_rows(w, visit, thread);
    begin_sums(thread);
    reset_sums(&dq);
    for (var i = 0u; i < EACH_RT; i++) {
        row_stats[i] = stats_of(w, row_token(visit, row0 + i));
    }
    for (var i = next_tile(w, visit, 0u, count); i < count; i = next_tile(w, visit, after_tile(i), count)) {
        let tile = nth_tile(w, visit, i);
        gradient_tile(w, visit, tile, thread);
        give_gradients();
        accumulate(SCORES, &dq, w, visit, tile, thread);
    }
    let tc = thread % TC;
    for (var i = 0u; i < EACH_RT; i++) {
        let token = written_token(w, visit, row0 + i);
        if (token != NONE) {
            let none = row_token(visit, row0 + i) == NONE;
            for (var c = 0u; c < OV; c++) {
                let d = tc + TC * c;
                if (d < D4) {
                    let sum = fma(sum_at(&dq, i, c), vec4f(params.sum_factor), so_far(w, token, d));
                    store_dq4(at_dq(w.batch, w.head, query_of(w, token)) + 4u * d, HEAD_DIM - 4u * d, select(sum, vec4f(), none));
                }
            }
        }
    }
}
