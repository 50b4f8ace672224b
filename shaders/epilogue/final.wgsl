// What is written at the end: the finished output rows, and their LSE.

fn write_rows(w: Work, visit: Visit, thread: u32) {
    let tc = thread % TC;
    let row0 = (thread / TC) * RT;
    for (var i = 0u; i < EACH_RT; i++) { row_value[i] = l[i]; }
    reduce_rows(true, thread);
    for (var i = 0u; i < EACH_RT; i++) {
        let token = written_token(w, visit, row0 + i);
        if (token != NONE) {
            // A tile that all its queries see whole is not masked: rows of padding have gathered something there.
            let padding = row_token(visit, row0 + i) == NONE;
            let end = state_finish(select(row_value[i], 0.0, padding), m[i]);
            for (var c = 0u; c < OV; c++) {
                let d = tc + TC * c;
                if (d < DV4) { store_out4(at_out(w.batch, w.head * SPLITS + w.split, query_of(w, token)) + 4u * d, HEAD_DIM_V - 4u * d, select(sum_at(&o, i, c) * end.factor, vec4f(), padding)); }
            }
            if (tc == 0u) { store_lse(at_lse(w.batch, w.head * SPLITS + w.split, query_of(w, token)), end.lse); }
        }
    }
}
