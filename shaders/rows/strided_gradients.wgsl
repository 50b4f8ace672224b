// Where the rows of gradients lie, beside strided.wgsl.

fn dout_row(w: Work, token: u32) -> u32 { return row_of(params.dout, w.batch, w.head, query_of(w, token)); }
fn dq_row(w: Work, token: u32) -> u32 { return row_of(params.dq, w.batch, w.head, query_of(w, token)); }
fn dk_row(w: Work, token: u32) -> u32 { return row_of(params.dk, w.batch, w.kv_head, key_of(w, token)); }
fn dv_row(w: Work, token: u32) -> u32 { return row_of(params.dv, w.batch, w.kv_head, key_of(w, token)); }
fn stats_row(w: Work, token: u32) -> u32 { return row_of(params.stats, w.batch, w.head, query_of(w, token)); }
