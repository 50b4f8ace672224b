// Gradients of keys and values:
//
//   dv[j] = Σ_i p[i][j] · dout[i],   dk[j] = scale · Σ_i ds[i][j] · q[i],   over all query heads that use the key's head
//
// A workgroup owns BR keys of one (batch, key head) and visits, head by head, the tiles of queries that see them; the
// division among threads is that of forward.wgsl. No atomics: the same bits every time. Where a
// device has too few storage buffers, dk and dv come in two passes, each without the other (HAS_DK, HAS_DV).

var<private> col_stats: array<vec2f, CT>;

fn pair_stats(i: u32, j: u32) -> vec2f { return col_stats[j]; }

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    var w = work_of(workgroup);
    w.kv_head = w.head;
    let visit = visit_of(w);
    let count = tile_count(visit);
    begin_visit(w, visit, thread);
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    begin_rows(w, visit, thread);
    begin_value_rows(w, visit, thread);
    begin_sums(thread);
    reset_dk();
    reset_dv();
    // One loop, not one in another: a CPU's driver walks through the body of an inner loop that has nothing to do.
    let end = params.heads_together * count;
    for (var step = next_step(w, visit, 0u, count); step < end; step = next_step(w, visit, after_tile(step), count)) {
        w.head = w.kv_head * params.heads_together + step / count;
        let tile = nth_tile(w, visit, step % count);
        col_stats = column_stats(w, visit, tile, thread);
        gradient_tile(w, visit, tile, thread);
        add_dv(w, visit, tile, thread);
        add_dk(w, visit, tile, thread);
    }
    for (var i = 0u; i < EACH_RT; i++) {
        let token = written_token(w, visit, row0 + i);
        if (token != NONE) {
            let none = row_token(visit, row0 + i) == NONE;
            for (var c = 0u; c < OV; c++) {
                let d = tc + TC * c;
                if (d < D4) { write_dk(w, token, d, i, c, none); }
                if (d < DV4) { write_dv(w, token, d, i, c, none); }
            }
        }
    }
}

// The next step from number `start` on in which something is seen: all tiles of one head, then those of the next.
fn next_step(own: Work, visit: Visit, start: u32, count: u32) -> u32 {
    let end = params.heads_together * count;
    var w = own;
    var step = start;
    while (step < end) {
        let first = step - step % count;
        w.head = w.kv_head * params.heads_together + step / count;
        let i = next_tile(w, visit, step - first, count);
        if (i < count) { return first + i; }
        step = first + count;
    }
    return end;
}
